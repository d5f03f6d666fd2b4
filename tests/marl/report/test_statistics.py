"""Statistics against independent computations: SciPy's, and rliable 1.2.0, the code of Agarwal et al. (2021)."""

import itertools

import numpy as np
import pytest
from scipy import stats

from marl.report import statistics

# Five runs of x and four of y on three tasks, and what rliable 1.2.0 (metrics.py) makes of them.
X = [[0.12, 1.40, 0.55], [0.30, 1.10, 0.60], [0.25, 0.90, 0.58], [0.12, 2.10, 0.71], [0.41, 1.70, 0.33]]
Y = [[0.10, 1.20, 0.55], [0.28, 1.30, 0.52], [0.12, 0.80, 0.49], [0.22, 1.55, 0.61]]
RLIABLE = {
    "mean": (0.7446666666666667, 0.6449999999999999),
    "median": (0.554, 0.5425),
    "optimality_gap": (0.4086666666666666, 0.4425),
    "iqm": (0.6088888888888889, 0.5416666666666666),
}
RLIABLE_IMPROVEMENT = 0.6583333333333333


def strata(matrix: list[list[float]]) -> list[np.ndarray]:
    """A task's runs each, from rliable's [runs, tasks]."""
    return list(np.array(matrix).T)


def test_aggregates_equal_those_of_rliable() -> None:
    for name, values in RLIABLE.items():
        for matrix, expected in zip((X, Y), values, strict=True):
            assert getattr(statistics, name)(strata(matrix)) == pytest.approx(expected, abs=1e-12)
    assert statistics.probability_of_improvement(strata(X), strata(Y)) == pytest.approx(RLIABLE_IMPROVEMENT, abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 4, 10, 37])
def test_iqm_is_the_mean_of_the_middle_half(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    cut = n // 4
    expected = sum(sorted(values)[cut : n - cut]) / (n - 2 * cut)
    assert abs(statistics.iqm([values]) - expected) < 1e-9
    assert abs(statistics.iqm(np.array_split(values, 3) if n > 2 else [values]) - expected) < 1e-9


def test_probability_of_improvement_is_that_of_pairs_and_of_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 6, size=(3, n)).astype(float) for n in (7, 5))  # whole numbers: many ties
    pairs = [np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(p, q)]) for p, q in zip(x, y, strict=True)]
    ranks = [stats.mannwhitneyu(p, q).statistic / 35 for p, q in zip(x, y, strict=True)]
    probability = statistics.probability_of_improvement(list(x), list(y))
    assert abs(probability - np.mean(pairs)) < 1e-9 and abs(probability - np.mean(ranks)) < 1e-9
    assert statistics.probability_of_improvement(list(y), list(x)) == pytest.approx(1 - probability)


def test_the_iqm_of_nothing_or_with_a_missing_score_is_missing() -> None:
    scores = np.array([[4.0, 1.0, 3.0, 2.0], [1.0, np.nan, 3.0, 4.0]])
    np.testing.assert_array_equal(statistics.iqm([scores]), [2.5, np.nan])
    assert np.isnan(statistics.iqm([np.empty(0)]))


@pytest.mark.parametrize("name", ["iqm", "mean", "median", "optimality_gap"])
def test_intervals_agree_with_scipys_bootstrap_of_independent_samples(name: str) -> None:
    rng = np.random.default_rng(1)
    tasks = [rng.normal(place, 1, size=runs) for place, runs in ((0.5, 8), (1.5, 10), (0.0, 6))]
    statistic = getattr(statistics, name)
    theirs = stats.bootstrap(
        tasks, lambda *samples, axis: statistic(samples), n_resamples=20_000, vectorized=True, paired=False,
        method="percentile", rng=2, batch=5000,
    )  # fmt: skip
    low, high = statistics.interval(statistic, tasks, reps=20_000)
    error = 0.03 * (theirs.confidence_interval.high - theirs.confidence_interval.low)  # of 20,000 resamples
    assert low == pytest.approx(theirs.confidence_interval.low, abs=error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=error)


def test_the_improvement_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.5, 1, 9), rng.normal(0, 1, 7)
    theirs = stats.bootstrap(
        (x, y), lambda a, b, axis: stats.mannwhitneyu(a, b, axis=axis).statistic / 63, n_resamples=5000,
        vectorized=True, paired=False, method="percentile", rng=4,
    ).confidence_interval  # fmt: skip
    low, high = statistics.improvement_interval([x], [y], reps=20_000)
    assert low == pytest.approx(theirs.low, abs=0.02) and high == pytest.approx(theirs.high, abs=0.02)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(5), 0
    for trial in range(200):
        low, high = statistics.interval(statistics.mean, [rng.normal(0, 1, 20)], reps=500, seed=trial)
        inside += low < 0 < high
    assert 0.88 < inside / 200 < 0.98


def test_resamples_stay_within_their_task_and_curves_keep_their_points() -> None:
    tasks = [np.arange(12.0).reshape(4, 3), 100 + np.arange(8.0).reshape(4, 2)]
    first, second = statistics.resample(tasks, 50, np.random.default_rng(0))
    assert first.shape == (4, 50, 3) and second.shape == (4, 50, 2)
    assert all(set(first[n].ravel()) <= set(tasks[0][n]) for n in range(4)) and second.min() >= 100
    low, high = statistics.interval(statistics.iqm, tasks, reps=100)
    assert low.shape == high.shape == (4,) and (low <= high).all()


def test_a_single_run_has_no_interval() -> None:
    low, high = statistics.interval(statistics.iqm, [np.ones((3, 1)), np.ones((3, 1))])
    assert np.isnan(low).all() and low.shape == (3,) and np.isnan(high).all()
    assert np.isnan(statistics.improvement_interval([np.ones(1)], [np.zeros(1)])).all()


def test_profiles_count_runs_above_a_threshold() -> None:
    thresholds = np.array([0.0, 0.5, 1.0])
    assert statistics.profile([np.array([0.2, 0.7]), np.array([0.6, 1.4])], thresholds).tolist() == [1, 0.75, 0.25]
    low, high = statistics.profile_interval([np.array([0.2, 0.7]), np.array([0.6, 1.4])], thresholds)
    assert low.shape == (3,) and low[0] == high[0] == 1 and low[1] == 0.5 and high[1] == 1


def test_normalising() -> None:
    assert statistics.normalise([2, 3, 4], 2, 4).tolist() == [0, 0.5, 1]
    assert statistics.normalise([2, 2], 2, 2).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shapes", [[(5, 10)] * 3, [(5, 3)], [(4, 1), (4, 5)], [(300, 7), (300, 8)]])
def test_intervals_of_curves_are_those_of_every_point_by_itself(shapes) -> None:
    rng = np.random.default_rng(1)
    tasks = [rng.normal(size=shape) for shape in shapes]
    tasks[0][2] = tasks[0][2].round()  # ties
    for statistic in (statistics.iqm, statistics.mean):
        low, high = statistics.interval(statistic, tasks, reps=600, seed=3)
        for point in (0, 2, len(low) - 1):
            alone = statistics.interval(lambda s, of=statistic: of(s), [runs[point] for runs in tasks], 600, 3)
            np.testing.assert_allclose((low[point], high[point]), alone, rtol=1e-10, atol=1e-12)


def test_memory_of_resampling_is_bounded(monkeypatch) -> None:
    tasks = [np.random.default_rng(0).normal(size=(40, 30)) for _ in range(2)]
    whole = [statistics.interval(s, tasks, 200) for s in (statistics.iqm, statistics.median)]
    pair = statistics.improvement_interval([t[0] for t in tasks], [t[1] for t in tasks], 200)
    sizes, take = [], statistics.take
    monkeypatch.setattr(statistics, "ROOM", 30_000)
    monkeypatch.setattr(statistics, "take", lambda *a: sizes.append(sum(x.size for x in take(*a))) or take(*a))
    for before, statistic in zip(whole, (statistics.iqm, statistics.median), strict=True):
        np.testing.assert_array_equal(before, statistics.interval(statistic, tasks, 200))
    assert statistics.improvement_interval([t[0] for t in tasks], [t[1] for t in tasks], 200) == pair
    assert max(sizes) <= 30_000 and len(sizes) > 10
