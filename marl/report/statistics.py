"""Statistics of few runs on several tasks: IQM, stratified bootstrap, probability of improvement, profiles.

After Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice", NeurIPS) and
Gorsane et al. 2022 ("Towards a standardised performance evaluation protocol for cooperative MARL", NeurIPS).

Scores of one algorithm are *strata*: one float array [..., R] per task, its last axis the R runs (seeds) of the task.
Leading axes (points of a curve, resamples of the bootstrap) are the same for all tasks; R may differ between tasks.
Legend: M tasks, R runs of a task, N points of a curve, B resamples, K thresholds.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

Strata = Sequence[np.ndarray]
Statistic = Callable[[Strata], np.ndarray]
ROOM = 300_000  # numbers that are resampled at a time, 8 bytes each: the rest follows, so that memory doesn't grow


def iqm(strata: Strata) -> np.ndarray:
    """Interquartile mean [...] of all runs of all tasks: the mean of the middle half (25 % cut off at either end)."""
    runs = np.concatenate(strata, -1)  # scipy.stats does the same, and takes half a second to import
    if not runs.size:
        return np.full(runs.shape[:-1], np.nan)
    cut, rest = runs.shape[-1] // 4, runs.shape[-1] - runs.shape[-1] // 4
    middle = np.partition(runs, (cut, rest - 1), -1)[..., cut:rest].mean(-1)
    return np.where(np.isnan(runs).any(-1), np.nan, middle)[()]


def mean(strata: Strata) -> np.ndarray:
    """Mean [...] over tasks of the mean over a task's runs."""
    return np.mean([np.mean(runs, -1) for runs in strata], 0)


def median(strata: Strata) -> np.ndarray:
    """Median [...] over tasks of the mean over a task's runs; of one task it is the median over its runs."""
    if len(strata) == 1:
        return np.median(strata[0], -1)
    return np.median([np.mean(runs, -1) for runs in strata], 0)


def optimality_gap(strata: Strata, target: float = 1.0) -> np.ndarray:
    """How far [...] runs fall short of the normalised score `target`, on average over tasks; less is better."""
    return target - np.mean([np.mean(np.minimum(runs, target), -1) for runs in strata], 0)


def draw(strata: Strata, reps: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Which runs of every task `reps` resamples take, with replacement and task by task: int [B, R] per task."""
    sizes = [np.shape(runs)[-1] for runs in strata]
    return [generator.integers(n, size=(reps, n)) for n in sizes]


def take(strata: Strata, drawn: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The runs that were drawn: [..., R] -> [..., B, R]."""
    return [np.asarray(runs, float)[..., index] for runs, index in zip(strata, drawn, strict=True)]


def resample(strata: Strata, reps: int, generator: np.random.Generator) -> list[np.ndarray]:
    """`reps` resamples of every task's runs: [..., R] -> [..., B, R]."""
    return take(strata, draw(strata, reps, generator))


def _parts(count: int, each: int) -> Iterator[slice]:
    """Slices of `count` rows of `each` numbers, together all of them, ROOM numbers at a time or a row."""
    step = max(1, ROOM // max(each, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def bounds(resampled: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval (low, high) [...] of a statistic's resamples [..., B]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=-1)
    return low, high


def interval(
    statistic: Statistic, strata: Strata, reps: int = 5000, seed: int = 0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (low, high) of `statistic` from the stratified bootstrap over runs.

    A single run per task has nothing to resample: the interval is then NaN, not zero wide.
    """
    if all(np.shape(runs)[-1] == 1 for runs in strata):
        nothing = np.full_like(np.asarray(statistic(strata), float), np.nan)
        return nothing, nothing
    drawn = draw(strata, reps, np.random.default_rng(seed))
    if all(np.ndim(runs) == 1 for runs in strata):
        return bounds(statistic(take(strata, drawn)), confidence)
    points = [np.asarray(runs, float) for runs in strata]  # [N, R]: every point of a curve gets the same resamples
    if statistic is iqm and all(runs.ndim == 2 for runs in points):
        return _iqm_bounds(np.concatenate(points, -1), drawn, confidence)
    parts = _parts(len(points[0]), sum(index.size for index in drawn))
    intervals = [bounds(statistic(take([runs[part] for runs in points], drawn)), confidence) for part in parts]
    low, high = zip(*intervals, strict=True)
    return np.concatenate(low), np.concatenate(high)


def _iqm_bounds(points: np.ndarray, drawn: Sequence[np.ndarray], confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of `iqm` for every point of a curve [N, R], from how often each run is drawn: no resample is sorted.

    Of a resample in order, the places from a quarter on to three quarters count; a run that was drawn c times takes c
    places behind those of the runs below it.
    """
    R, reps = points.shape[-1], len(drawn[0])
    counts = [np.apply_along_axis(np.bincount, 1, index, minlength=index.shape[1]) for index in drawn]
    times = np.concatenate(counts, -1).astype(np.int32)  # [B, R]
    cut = int(0.25 * R)
    limits = np.empty((2, len(points)))
    for n, values in enumerate(points):
        order = values.argsort()
        places = times[:, order].cumsum(-1, dtype=np.int32).clip(cut, R - cut)
        taken = np.diff(places, axis=-1, prepend=np.full((reps, 1), cut, np.int32))
        limits[:, n] = bounds(taken @ values[order] / (R - 2 * cut), confidence)
    return limits[0], limits[1]


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(a run of x beats a run of y) [...] on one task, ties counted half: Mann-Whitney's U over R_x R_y.

    Args:
        x, y: [..., R_x] and [..., R_y] scores.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim == 1 or x.shape[:-1] != y.shape[:-1]:
        return _wins(x, y)
    parts = _parts(len(x), x[0].size * y.shape[-1])  # every pair of runs is compared
    return np.concatenate([_wins(x[part], y[part]) for part in parts])


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x[..., :, None] - y[..., None, :]
    return np.mean((difference > 0) + 0.5 * (difference == 0), axis=(-2, -1))


def probability_of_improvement(x: Strata, y: Strata) -> np.ndarray:
    """P(X > Y) [...], the mean over tasks of `improvement`; x and y hold the same tasks in the same order."""
    return np.mean([improvement(a, b) for a, b in zip(x, y, strict=True)], 0)


def improvement_interval(
    x: Strata, y: Strata, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `probability_of_improvement`, the runs of x and of y resampled independently."""
    if all(np.shape(runs)[-1] == 1 for runs in (*x, *y)):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    drawn = (resample(side, reps, generator) for side in (x, y))
    low, high = bounds(probability_of_improvement(*drawn), confidence)
    return float(low), float(high)


def profile(strata: Strata, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs [..., K] whose score exceeds each threshold, averaged over tasks (run-score distribution)."""
    above = [np.stack([np.mean(np.asarray(runs) > t, -1) for t in thresholds], -1) for runs in strata]
    return np.mean(above, 0)


def profile_interval(
    strata: Strata, thresholds: np.ndarray, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise percentile interval (low, high) [K] of `profile`."""
    return interval(lambda drawn: np.moveaxis(profile(drawn, thresholds), -1, 0), strata, reps, seed, confidence)


def normalise(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` to 0 and `high` to 1. Where both are equal every score is as good as any: all become 0.5."""
    scores = np.asarray(scores, float)
    return np.full_like(scores, 0.5) if high == low else (scores - low) / (high - low)
