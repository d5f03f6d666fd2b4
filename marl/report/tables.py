"""The tables of a report, and their Markdown, LaTeX and CSV."""

import csv
import io
import math
from dataclasses import dataclass

from marl.report.compare import Comparison, Estimate


@dataclass
class Table:
    """A table: a caption, the columns' names and rows of text; `best` marks cells (row, column) set in bold."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """The table in Markdown, without its caption."""
        cells = [[f"**{c}**" if (i, j) in self.best else c for j, c in enumerate(r)] for i, r in enumerate(self.rows)]
        body = [self.columns, ["---"] * len(self.columns), *cells]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in body) + "\n"

    def latex(self) -> str:
        """A `table` environment for the package booktabs."""
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(self.caption)}}}"]
        lines += [rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}", r"\toprule"]
        lines += [" & ".join(map(escape, self.columns)) + r" \\", r"\midrule"]
        for i, row in enumerate(self.rows):
            cells = [rf"\textbf{{{escape(c)}}}" if (i, j) in self.best else escape(c) for j, c in enumerate(row)]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def csv(self) -> str:
        """Comma-separated values with a header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


ESCAPES = {c: "\\" + c for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPES |= {"\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def escape(text: str) -> str:
    """`text` with what LaTeX would take for commands made harmless."""
    return "".join(ESCAPES.get(c, c) for c in text)


def number(value: float) -> str:
    """A number with four figures; a dash for none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def estimate(one: Estimate) -> str:
    """`value [low, high]`."""
    bounds = f" [{number(float(one.low))}, {number(float(one.high))}]" if math.isfinite(float(one.low)) else ""
    return number(float(one.value)) + bounds


def make(comparison: Comparison) -> dict[str, Table]:
    """All tables of a report by name, in the order in which they are shown."""
    by_name = {"scores": scores(comparison)}
    if comparison.complete:
        by_name["aggregates"] = aggregates(comparison)
    if len(comparison.complete) > 1:
        by_name["improvement"] = improvements(comparison)
    by_name["sample_efficiency"] = efficiency(comparison)
    agents = parts(comparison)
    if agents.rows:
        by_name["agents"] = agents
    return by_name


def scores(comparison: Comparison) -> Table:
    """IQM, mean and every seed's score per task and algorithm; the best IQM of a task is marked."""
    rows, best, intervals = [], set(), comparison.scores()
    for task in comparison.tasks:
        here = {a: intervals[task, a] for a in comparison.algorithms if (task, a) in intervals}
        top = max(one["IQM"].value for one in here.values())
        for algorithm, one in here.items():
            if one["IQM"].value == top and len(here) > 1:
                best.add((len(rows), 2))
            runs = comparison.groups[algorithm, task]
            each = ", ".join(number(value) for value in comparison.score(algorithm, task))
            rows.append([task, algorithm, estimate(one["IQM"]), estimate(one["mean"]), str(len(runs)), each])
    what = f"{comparison.which} {comparison.metric.replace('_', ' ')}"
    caption = f"Scores ({what}) with 95 % intervals of the stratified bootstrap over runs."
    return Table(caption, ["task", "algorithm", "IQM", "mean", "runs", "each run"], rows, frozenset(best))


def aggregates(comparison: Comparison) -> Table:
    """Aggregates of normalised scores over all tasks."""
    intervals = comparison.aggregates()
    names = list(next(iter(intervals.values())))
    rows = [[a, *(estimate(one[name]) for name in names)] for a, one in intervals.items()]
    best = set()
    for j, name in enumerate(names):
        pick = min if name == "optimality gap" else max
        values = [one[name].value for one in intervals.values()]
        if len(values) > 1:
            best |= {(i, j + 1) for i, value in enumerate(values) if value == pick(values)}
    caption = f"Normalised scores over {len(comparison.tasks)} tasks (0 and 1: a task's worst and best, see limits)."
    return Table(caption, ["algorithm", *names], rows, frozenset(best))


def improvements(comparison: Comparison) -> Table:
    """P(row > column)."""
    intervals, names = comparison.improvements(), comparison.complete
    rows = [[x, *("–" if x == y else estimate(intervals[x, y]) for y in names)] for x in names]
    return Table("Probability that a run of the row beats one of the column.", ["P(row > column)", *names], rows)


def efficiency(comparison: Comparison) -> Table:
    """Frames and seconds to shares of the way from a task's worst score to its best."""
    milestones = comparison.milestones()
    shares = list(next(iter(milestones.values())))
    rows = []

    def order(task: str, algorithm: str) -> tuple[int, int]:
        return comparison.tasks.index(task), comparison.algorithms.index(algorithm)

    for (task, algorithm), reached in sorted(milestones.items(), key=lambda item: order(*item[0])):
        total = len(comparison.groups[algorithm, task])
        cells = []
        for share in shares:
            units, seconds, count = reached[share]
            took = f"{number(units)} / {number(seconds)} s" if count else "–"
            cells.append(took if count == total else f"{took} ({count} of {total} runs)")
        rows.append([task, algorithm, *cells])
    caption = f"{comparison.unit.capitalize()} and wall-clock seconds until an evaluation was so far between limits."
    return Table(caption, ["task", "algorithm", *(f"{share:.0%}" for share in shares)], rows)


def parts(comparison: Comparison) -> Table:
    """Returns of groups and single agents at the end of training."""
    rows = [
        [task, part, algorithm, estimate(one)]
        for task in comparison.tasks
        for (part, algorithm), one in comparison.part_scores(task).items()
    ]
    return Table("Returns of groups and agents, last evaluation.", ["task", "part", "algorithm", "IQM"], rows)


def limits(comparison: Comparison) -> Table:
    """What 0 and 1 stand for on each task."""
    rows = [[task, *map(number, comparison.limits(task))] for task in comparison.tasks]
    return Table("Normalisation.", ["task", "0 stands for", "1 stands for"], rows)
