"""What was measured, as Markdown: targets met and missed, then the figures of each case."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
NOTED = 5  # rounds; fewer are noted


@dataclass(frozen=True)
class Target:
    """What a row of the results has to reach: a ratio, or with `of` a figure; `most`: less is better."""

    against: str
    key: str
    least: float
    aim: float
    unit: str = "×"
    most: bool = False
    of: Callable[[dict], float] = lambda row: row.get("ratio", row.get("value"))

    def verdict(self, row: dict) -> str:
        value = self.of(row)

        def reached(bar: float) -> bool:
            return value <= bar if self.most else value >= bar

        verdict = "aim met" if reached(self.aim) else "met" if reached(self.least) else "**missed**"
        if row.get("bound") and verdict == "**missed**":
            return "open: the peer's run was cut short"
        return verdict


OTHERS = ("navigation", "simple_spread", "transport", "sampling", "football")
REPLAYED = ("maddpg", "masac", "qmix")
TARGETS = [
    *(Target("raw VMAS, simulation alone", f"simulation/balance/{n}", least, aim)
      for n, least, aim in ((60, 50, 200), (600, 30, 80), (6000, 15, 30))),
    *(Target("raw VMAS, simulation alone", f"simulation/{name}/600", 10, 50) for name in OTHERS),
    Target("JaxMARL's jitted step, called", "jax_step/calls", 5, 20),
    Target("JaxMARL's jitted step, scanned", "jax_step/scan", 5, 20),
    Target("BenchMARL, collection", "collection/balance/60", 10, 20),
    Target("BenchMARL, collection", "collection/balance/600", 6, 12),
    *(Target("BenchMARL, collection", f"collection/{name}/600", 3, 8) for name in OTHERS),
    Target("BenchMARL, end to end", "end_to_end/45", 1.6, 2.2),
    Target("BenchMARL, end to end", "end_to_end/5", 3, 5),
    *(Target("BenchMARL, gradient steps from a replay buffer", f"off_policy/{name}/all_cores/step", 3, 5)
      for name in REPLAYED),
    *(Target("BenchMARL, whole iterations with a replay buffer", f"off_policy/{name}/all_cores/iteration", 3, 5)
      for name in REPLAYED),
    *(Target("BenchMARL, gradient steps on one thread", f"off_policy/{name}/one_thread/step", 2, 3)
      for name in REPLAYED),
    Target("BenchMARL fine-tuned, wall-clock", "learn/benchmarl", 20, 50),
    Target("JaxMARL's IPPO, end to end", "jax_ippo", 1.2, 2),
    Target("policy's products + activations at peak", "floor/rollout/600", 2.0, 1.3, most=True),
    Target("GEMM peak", "floor/update/4096", 60, 80, " %"),
    Target("scenarios of VMAS", "coverage", 34, 41, ""),
    Target("eager start", "first_start/empty", 15, 5, " s", most=True),
    Target("eager start", "first_start/kept", 3, 1, " s", most=True),
]  # fmt: skip
GPU_TARGETS = [
    Target("BenchMARL, end to end, same card", "end_to_end/45", 10, 30),
    Target("BenchMARL, end to end, same card", "end_to_end/5", 10, 30),
    Target("VMAS's headline, 100 steps", "simulation/balance/30000", 0.1, 0.02, " s", most=True,
           of=lambda row: row["ours"] * 0.1),
]  # fmt: skip


def number(value: float | None) -> str:
    """Three significant digits, plain."""
    if value is None:
        return "—"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:,.{digits}f}"


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def spread(row: dict) -> str:
    """The range of the alternations' ratios, and their number where there are few."""
    few = f", {row['rounds']} rounds" if row["rounds"] < NOTED else ""
    return f"{number(row['low'])}–{number(row['high'])}{few}"


def targets(rows: dict[str, dict], device: str) -> str:
    """Each target of the issue with what was measured."""
    lines = []
    for target in GPU_TARGETS if device.startswith("cuda") else TARGETS:
        sign, row = "≤ " if target.most else "", rows.get(target.key)
        bars = [f"{sign}{bar:g}{target.unit}" for bar in (target.least, target.aim)]
        if row is None:
            lines.append([target.against, target.key, *bars, "not measured", "", ""])
            continue
        at_least = "> " if row.get("bound") else ""
        measured = f"{at_least}{number(target.of(row))}{target.unit}"
        span = spread(row) if "low" in row else f"{row['rounds']} rounds" if row.get("rounds", NOTED) < NOTED else ""
        lines.append([target.against, row["name"], *bars, measured, span, target.verdict(row)])
    return table(["against", "case", "at least", "aim for", "measured", "alternations", ""], lines)


def comparisons(rows: list[dict]) -> str:
    """Rows with two sides."""
    known = {"key", "name", "peer", "unit", "rounds", "ours", "theirs", "ratio", "low", "high", "path", "bound"}
    lines = []
    for row in rows:
        more = ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in row.items()
                         if key not in known and isinstance(value, int | float))  # fmt: skip
        path = [f"path: {row['path']}"] if row.get("path") else []
        lines.append([row["name"], row["peer"], row["unit"], number(row["theirs"]), number(row["ours"]),
                      f"{'> ' if row.get('bound') else ''}{number(row['ratio'])}×", spread(row),
                      "; ".join([*path, *filter(None, [more])])])  # fmt: skip
    return table(["case", "peer", "unit", "peer's", "ours", "ratio", "alternations", "more"], lines)


def figures(rows: list[dict]) -> str:
    """Rows with one figure; a curve's points follow it."""
    known = {"key", "name", "value", "unit", "rounds", "axis"}
    lines = []
    for row in rows:
        more = [f"{key.replace('_', ' ')} {number(value)}" for key, value in row.items()
                if key not in known and isinstance(value, int | float)]  # fmt: skip
        points = zip(row.get("sizes", []), row.get("us_per_frame", []), row.get("paths", []), strict=True)
        more += [f"{size:,}: {number(us)} µs{'' if path == 'kernel' else f' ({path})'}" for size, us, path in points]
        more += [f"{name}: {why}" for name, why in row.get("others", {}).items()]
        lines.append([row["name"], f"{number(row['value'])} {row['unit']}", ", ".join(more)])
    return table(["figure", "measured", "more"], lines)


def when(about: dict) -> str:
    """Date and commit."""
    return f"{about['date'].replace('T', ' ')} at commit {about['commit']}"


def machine_line(about: dict) -> str:
    """One paragraph on machine, versions and load."""
    card = f", {about['gpu']}" if about.get("gpu") else ""
    return (f"Measured {when(about)} on {about['cpu']}, {about['cores']} cores{card}; torch {about['torch']} with "
            f"{about['threads']} threads, Python {about['python']}, OMP_WAIT_POLICY={about['wait_policy']} for all; "
            f"load before: {about['load']}.")  # fmt: skip


def markdown(results: dict, about_cases: dict[str, str]) -> str:
    """The whole report. results: {"machine", "command", "cases": {name: {"rows", "seconds", "machine", "error"}}}."""
    cases = results["cases"]
    rows = {row["key"]: row for case in cases.values() for row in case["rows"]}
    parts = [f"`{results['command']}`", machine_line(results["machine"]), "### Targets",
             targets(rows, results["machine"]["device"])]  # fmt: skip
    for name, case in cases.items():
        parts += [f"### {name}", about_cases.get(name, "")]
        date = f", {when(case['machine'])}" if case["machine"] != results["machine"] else ""
        two, one = ([r for r in case["rows"] if ("ratio" in r) == both] for both in (True, False))
        parts += [f"![{name}]({case['picture']})"] if case.get("picture") else []
        parts += [comparisons(two)] if two else []
        parts += [figures(one)] if one else []
        parts += [f"Not complete: {case['error']}."] if case.get("error") else []
        parts.append(f"Took {case['seconds']:.0f} s, load before {case['load']}{date}.")
    return "\n\n".join(part for part in parts if part)


def written(path: Path) -> str:
    """The report between the markers of a Markdown file; empty where there are none."""
    page = path.read_text()
    return page.split(BEGIN)[1].split(END)[0].strip() if BEGIN in page and END in page else ""


def merged(old: str, new: str, order: list[str]) -> str:
    """`new`, with what `old` says of the cases that `new` does not hold, each with the date of its figures.

    order: of the cases' names. Of targets that were not measured now the old line stays.
    """
    head, *parts = new.split("\n\n### ")
    old_head, *old_parts = old.split("\n\n### ")
    sections, kept = ({part.split("\n")[0]: part for part in some} for some in (parts, old_parts))
    measured = re.search(r"Measured (.+?) on ", old_head)
    for name in kept.keys() - sections.keys() - {"Targets"}:
        dated = " at commit " in kept[name] or not measured
        sections[name] = kept[name] if dated else f"{kept[name].rstrip('.')}, {measured[1]}."
    if {"Targets"} <= sections.keys() & kept.keys():
        sections["Targets"] = _merged_targets(kept["Targets"], sections["Targets"])
    names = [name for name in ("Targets", *order) if name in sections]
    return "\n\n### ".join([head, *[sections[name] for name in names]])


def _merged_targets(old: str, new: str) -> str:
    """The lines of `new`, but `old`'s where a target was not measured now: the n-th against the same."""
    before, counts, lines = defaultdict(list), defaultdict(int), []
    for line in old.splitlines():
        before[line.split("|")[1] if line.startswith("|") else line].append(line)
    for line in new.splitlines():
        against = line.split("|")[1] if line.startswith("|") else line
        at, counts[against] = counts[against], counts[against] + 1
        lines.append(before[against][at] if "| not measured |" in line and at < len(before[against]) else line)
    return "\n".join(lines)


def write(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put `text` between two markers of a Markdown file. Raises ValueError where they are not."""
    page = path.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path} needs one line {begin} and one line {end}")
    before, after = page.split(begin)[0], page.split(end)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
