"""Comparison of algorithms over tasks and seeds: the numbers behind every figure and table of a report.

Legend: N points of a curve, R runs (seeds), K thresholds. Normalised scores map a task's `bounds` to 0 and 1.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

import numpy as np

from marl.core.errors import UserError, closest
from marl.report import statistics
from marl.report.runs import Run

POINTS = 100  # of a curve over a common grid
THRESHOLDS = np.linspace(0, 1, 101)
AGGREGATES = {
    "median": statistics.median,
    "IQM": statistics.iqm,
    "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}
MILESTONES = (0.5, 0.75, 0.9)  # of the way from a task's worst score to its best


@dataclass
class Estimate:
    """A figure (a number or an array) and its 95 % interval; NaN bounds where there is one run only."""

    value: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float


@dataclass
class Curve(Estimate):
    """An estimate [N] over x [N], and how many runs it is of."""

    x: np.ndarray = field(default_factory=lambda: np.empty(0))
    runs: int = 0


@dataclass
class Comparison:
    """Runs side by side.

    Args:
        runs: all of them.
        metric: name of the evaluation's figure that is compared; more of it is better.
        which: a run's score: its "final" or "best" evaluation, the "absolute" metric, or "auto": absolute where
            every run has it, else final.
        bounds: {task: (low, high)} that become 0 and 1; tasks left out get the least and the largest value that any
            run reached in any evaluation (as Gorsane et al. 2022).
        reps: resamples of the bootstrap. seed: of its random numbers.
    """

    runs: Sequence[Run]
    metric: str = "episode_return"
    which: str = "auto"
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reps: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        lacking = [run for run in self.runs if self.metric not in run.curves]
        if lacking:
            raise UserError(self._lack(lacking))
        if self.which == "absolute" and (without := [run for run in self.runs if self.metric not in run.absolute]):
            raise UserError(
                f"score=absolute: {without[0].source} has no absolute metric; evaluate.py ckpt=RUN_DIR absolute=true"
            )
        if self.which == "auto":
            complete = all(self.metric in run.absolute for run in self.runs)
            self.which = "absolute" if complete else "final"
        wrong = [task for task in self.bounds if task not in self.tasks]
        if wrong:
            raise UserError(f"bounds: no task {wrong[0]!r}{closest(wrong[0], self.tasks)}")
        for task, (low, high) in self.bounds.items():
            if not low < high:  # NaN too
                raise UserError(f"bounds={{{task}: [{low:g}, {high:g}]}}: the first must be less than the second")

    def _lack(self, lacking: Sequence[Run]) -> str:
        """The sentence on runs that have no figure of the metric's name."""
        names = sorted({name for run in lacking for name in run.curves})
        more = f" (likewise {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        message = f"metric={self.metric}: {_named(lacking[0])} has no such figure{more}"
        having = [run for run in self.runs if self.metric in run.curves]
        if not having:
            return f"{message}{closest(self.metric, names)} (there are {', '.join(names[:20])})"
        kinds = {(run.environment, run.task) for run in having} & {(run.environment, run.task) for run in lacking}
        return f"{message} but {', '.join(names[:20])}, and {_named(having[0])} has it: " + (
            "leave out the runs without it" if kinds else "runs of different kinds, which need a report each"
        )

    @cached_property
    def algorithms(self) -> list[str]:
        """Their names, in the order of the runs."""
        return list(dict.fromkeys(run.algorithm for run in self.runs))

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks' names, in the order of the runs."""
        return list(dict.fromkeys(run.task for run in self.runs))

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Run]]:
        """The runs of an algorithm on a task."""
        by_pair = defaultdict(list)
        for run in self.runs:
            by_pair[run.algorithm, run.task].append(run)
        return dict(by_pair)

    @cached_property
    def complete(self) -> list[str]:
        """The algorithms that ran on every task: only these can be compared over all of them."""
        return [a for a in self.algorithms if all((a, task) in self.groups for task in self.tasks)]

    @property
    def unit(self) -> str:
        """What the budget counts, "frames" or "epochs"."""
        return self.runs[0].unit

    def score(self, algorithm: str, task: str, metric: str | None = None) -> np.ndarray:
        """Scores [R] as they are."""
        runs = self.groups.get((algorithm, task), [])
        which = self.which if metric is None else "final"
        return np.array([run.score(metric or self.metric, which) for run in runs])

    def limits(self, task: str) -> tuple[float, float]:
        """What becomes 0 and 1 on a task."""
        if task in self.bounds:
            return self.bounds[task]
        runs = [run for run in self.runs if run.task == task]
        values = [run.curves[self.metric] for run in runs] + [np.array([run.score(self.metric, self.which)])
                                                              for run in runs]  # fmt: skip
        return float(np.nanmin(np.concatenate(values))), float(np.nanmax(np.concatenate(values)))

    def normalised(self, algorithm: str) -> list[np.ndarray]:
        """Normalised scores of an algorithm, [R] per task."""
        return [statistics.normalise(self.score(algorithm, task), *self.limits(task)) for task in self.tasks]

    # ---- what is shown ---------------------------------------------------------------------------------------

    def scores(self) -> dict[tuple[str, str], dict[str, Estimate]]:
        """Per (task, algorithm): IQM and mean of the scores as they are, with intervals."""
        result = {}
        for task in self.tasks:
            for algorithm in self.algorithms:
                values = self.score(algorithm, task)
                if len(values):
                    result[task, algorithm] = {
                        name: self._estimate(function, [values])
                        for name, function in (("IQM", statistics.iqm), ("mean", statistics.mean))
                    }
        return result

    def aggregates(self) -> dict[str, dict[str, Estimate]]:
        """{algorithm: {aggregate: over all tasks}} of normalised scores, for algorithms that ran on every task."""
        return {
            a: {name: self._estimate(function, self.normalised(a)) for name, function in AGGREGATES.items()}
            for a in self.complete
        }

    def profiles(self) -> dict[str, Curve]:
        """{algorithm: share of runs above each normalised score} over THRESHOLDS."""
        result = {}
        for a in self.complete:
            strata = self.normalised(a)
            low, high = statistics.profile_interval(strata, THRESHOLDS, self.reps, self.seed)
            result[a] = Curve(statistics.profile(strata, THRESHOLDS), low, high, THRESHOLDS, sum(map(len, strata)))
        return result

    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """{(x, y): P(x's run beats y's)} over all tasks."""
        result = {}
        for x, y in permutations(self.complete, 2):
            sides = [[self.score(a, task) for task in self.tasks] for a in (x, y)]
            interval = statistics.improvement_interval(*sides, self.reps, self.seed)
            result[x, y] = Estimate(float(statistics.probability_of_improvement(*sides)), *interval)
        return result

    def curves(self, task: str, over: str, metric: str | None = None) -> dict[str, Curve]:
        """{algorithm: IQM of `metric` over "units" or "seconds"} on one task."""
        result = {}
        for algorithm in self.algorithms:
            runs = [r for r in self.groups.get((algorithm, task), []) if (metric or self.metric) in r.curves]
            gridded = on_grid(runs, over, metric or self.metric)
            if gridded is not None:
                x, values = gridded
                result[algorithm] = self._curve(x, [values])
        return result

    def overall(self, over: str) -> dict[str, Curve]:
        """{algorithm: IQM of normalised scores over all tasks} over "units" or "seconds": sample efficiency."""
        result = {}
        for algorithm in self.complete:
            gridded = [on_grid(self.groups[algorithm, task], over, self.metric) for task in self.tasks]
            if any(one is None for one in gridded):
                continue
            start, end = max(x[0] for x, _ in gridded), min(x[-1] for x, _ in gridded)
            if start > end:
                continue
            grid = np.linspace(start, end, POINTS)
            strata = [
                statistics.normalise(np.array([np.interp(grid, x, run) for run in values.T]).T, *self.limits(task))
                for task, (x, values) in zip(self.tasks, gridded, strict=True)
            ]
            result[algorithm] = self._curve(grid, strata)
        return result

    def milestones(self) -> dict[tuple[str, str], dict[float, tuple[float, float, int]]]:
        """{(task, algorithm): {share: (median frames, median seconds, runs that got there)}}.

        A run is there at its first evaluation of at least `share` of the way between the task's limits; the medians
        are over the runs that got there.
        """
        result = {}
        for (algorithm, task), runs in self.groups.items():
            low, high = self.limits(task)
            result[task, algorithm] = {}
            for share in MILESTONES:
                there = [np.flatnonzero(run.curves[self.metric] >= low + share * (high - low)) for run in runs]
                firsts = [(r.units[i[0]], r.seconds[i[0]]) for r, i in zip(runs, there, strict=True) if len(i)]
                units, seconds = np.median(firsts, axis=0) if firsts else (np.nan, np.nan)
                result[task, algorithm][share] = float(units), float(seconds), len(firsts)
        return result

    def parts(self, task: str) -> list[str]:
        """The metrics of groups and agents on a task, such as "agents/agent_0/episode_return"."""
        end = "/episode_return"
        names = dict.fromkeys(n for run in self.runs if run.task == task for n in run.curves if n.endswith(end))
        return list(names)

    def part_scores(self, task: str) -> dict[tuple[str, str], Estimate]:
        """{(part, algorithm): IQM of its last evaluation}, for every group and agent of a task."""
        result = {}
        for part in self.parts(task):
            for algorithm in self.algorithms:
                runs = self.groups.get((algorithm, task), [])
                values = np.array([run.score(part, "final") for run in runs if part in run.curves])
                if len(values):
                    name = part.removesuffix("/episode_return")
                    result[name, algorithm] = self._estimate(statistics.iqm, [values])
        return result

    def _estimate(self, statistic: statistics.Statistic, strata: list[np.ndarray]) -> Estimate:
        low, high = statistics.interval(statistic, strata, 5 * self.reps, self.seed)
        return Estimate(float(statistic(strata)), float(low), float(high))

    def _curve(self, x: np.ndarray, strata: list[np.ndarray]) -> Curve:
        low, high = statistics.interval(statistics.iqm, strata, self.reps, self.seed)
        return Curve(statistics.iqm(strata), low, high, x, sum(values.shape[-1] for values in strata))


def _named(run: Run) -> str:
    return f"{run.source or run.algorithm} ({run.environment}, {run.task})"


def on_grid(runs: Sequence[Run], over: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """x [N] and the runs' values [N, R] there; None where no x is common to them.

    Runs that were evaluated at the same points keep these; others are interpolated linearly between the latest first
    and the earliest last evaluation of any.
    """
    xs = [getattr(run, over) for run in runs]
    if not xs or not all(np.isfinite(x).all() for x in xs):
        return None
    if all(len(x) == len(xs[0]) and np.array_equal(x, xs[0]) for x in xs):
        return xs[0], np.stack([run.curves[metric] for run in runs], -1)
    start, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    if start >= end:
        return None
    grid = np.linspace(start, end, POINTS)
    return grid, np.stack([np.interp(grid, x, run.curves[metric]) for x, run in zip(xs, runs, strict=True)], -1)
