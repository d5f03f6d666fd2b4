"""The numbers behind figures and tables, against SciPy and against what can be counted by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from marl.core.errors import UserError
from marl.report import tables
from marl.report.compare import Comparison
from marl.report.find import find
from tests.marl.report.helpers import absolute, write_run

MAPPO = {"balance": [[0, 4, 8], [0, 6, 9], [2, 5, 10]], "navigation": [[0, 1, 1], [0, 0, 1], [0, 1, 2]]}
IPPO = {"balance": [[0, 3, 6], [1, 2, 9], [0, 1, 4]], "navigation": [[0, 0, 1], [0, 1, 0], [0, 0, 0]]}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    for critic, data in (("concat", MAPPO), ("local", IPPO)):
        for task, runs in data.items():
            for seed, returns in enumerate(runs):
                write_run(tmp_path / f"{critic}_{task}_{seed}", returns, seed=seed, critic=critic, scenario=task)
    runs, _ = find([tmp_path / f"{c}_*" for c in ("concat", "local")])
    return Comparison(runs, bounds={"balance": (0, 10)}, reps=2000)


def last(data: dict, task: str) -> list[float]:
    return [run[-1] for run in data[task]]


def test_scores_are_iqm_and_mean_with_bootstrap_intervals(comparison: Comparison) -> None:
    assert comparison.algorithms == ["mappo", "ippo"] and comparison.tasks == ["balance", "navigation"]
    one = comparison.scores()["balance", "ippo"]
    values = last(IPPO, "balance")
    assert one["IQM"].value == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-9)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    assert (one["mean"].low, one["mean"].high) == pytest.approx((theirs.low, theirs.high), abs=0.35)  # 10 outcomes


def test_normalised_aggregates_and_improvement(comparison: Comparison) -> None:
    assert comparison.limits("balance") == (0, 10) and comparison.limits("navigation") == (0, 2)
    pooled = [v / 10 for v in last(MAPPO, "balance")] + [v / 2 for v in last(MAPPO, "navigation")]
    aggregates = comparison.aggregates()["mappo"]
    assert aggregates["IQM"].value == pytest.approx(stats.trim_mean(pooled, 0.25), abs=1e-9)
    assert aggregates["optimality gap"].value == pytest.approx(1 - np.mean(pooled), abs=1e-9)
    expected = np.mean(
        [stats.mannwhitneyu(last(MAPPO, task), last(IPPO, task)).statistic / 9 for task in comparison.tasks]
    )
    improvements = comparison.improvements()
    assert improvements["mappo", "ippo"].value == pytest.approx(expected, abs=1e-9)
    assert improvements["mappo", "ippo"].low <= expected <= improvements["mappo", "ippo"].high


def test_curves_are_over_frames_and_over_seconds(comparison: Comparison) -> None:
    for over, x in (("units", [100, 200, 300]), ("seconds", [2, 4, 6])):
        curve = comparison.curves("balance", over)["mappo"]
        assert curve.x.tolist() == x and curve.value.tolist() == [pytest.approx(v) for v in (2 / 3, 5, 9)]
        assert (curve.low <= curve.value).all() and (curve.value <= curve.high).all() and curve.runs == 3
    overall = comparison.overall("units")["mappo"]
    assert overall.x[[0, -1]].tolist() == [100, 300] and overall.runs == 6
    assert overall.value[-1] == pytest.approx(comparison.aggregates()["mappo"]["IQM"].value)


def test_runs_evaluated_at_other_points_are_interpolated(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0, 2, 4], seed=0)
    write_run(tmp_path / "b", [0, 2], seed=1)
    runs, _ = find([tmp_path])
    curve = Comparison(runs).curves("balance", "units")["mappo"]
    assert curve.x[[0, -1]].tolist() == [100, 200] and np.allclose(curve.value, (curve.x - 100) / 50)


def test_milestones_count_the_runs_that_got_there(comparison: Comparison) -> None:
    milestones = comparison.milestones()
    assert milestones["balance", "mappo"][0.5] == (200, 4, 3)  # at 6 (200 frames), 5 (200), and 8 (300): the median
    assert milestones["balance", "ippo"][0.75] == (300, 6, 1)
    assert milestones["navigation", "ippo"][0.75][2] == 0


def test_agents_have_scores_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1, 2], agents={"agent_0": [0, 1], "agent_1": [2, 3]})
    runs, _ = find([tmp_path])
    table = tables.parts(Comparison(runs))
    assert [row[1:] for row in table.rows] == [["agents/agent_0", "mappo", "1"], ["agents/agent_1", "mappo", "3"]]


def test_the_absolute_metric_counts_where_every_run_has_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        absolute(write_run(tmp_path / str(seed), [1, 2], seed=seed), 5 + seed)
    runs, _ = find([tmp_path])
    assert Comparison(runs).which == "absolute" and Comparison(runs).score("mappo", "balance").tolist() == [5, 6]
    assert Comparison(runs, which="final").score("mappo", "balance").tolist() == [2, 2]
    runs[1].absolute = {}
    assert Comparison(runs).which == "final"
    with pytest.raises(UserError, match="has no absolute metric; evaluate.py ckpt=RUN_DIR absolute=true"):
        Comparison(runs, which="absolute")


def test_the_same_runs_give_the_same_numbers(comparison: Comparison) -> None:
    again = Comparison(comparison.runs, bounds=comparison.bounds)
    assert tables.aggregates(again).rows == tables.aggregates(comparison).rows
    assert tables.improvements(again).rows == tables.improvements(comparison).rows


def test_an_algorithm_that_skipped_a_task_is_left_out_of_aggregates(comparison: Comparison) -> None:
    runs = [run for run in comparison.runs if (run.algorithm, run.task) != ("ippo", "navigation")]
    fewer = Comparison(runs, reps=200)
    assert fewer.complete == ["mappo"] and set(fewer.aggregates()) == {"mappo"} and fewer.improvements() == {}
    assert ("balance", "ippo") in fewer.scores()


def test_unknown_names_are_rejected(comparison: Comparison) -> None:
    with pytest.raises(UserError, match="metric=episode_retrun: .* did you mean 'episode_return'"):
        Comparison(comparison.runs, "episode_retrun")
    with pytest.raises(UserError, match="bounds: no task 'balanc'; did you mean 'balance'"):
        Comparison(comparison.runs, bounds={"balanc": (0, 1)})


@pytest.mark.parametrize(("pair", "text"), [((60, 0), "60, 0"), ((5, 5), "5, 5"), ((0, np.nan), "0, nan")])
def test_bounds_are_a_lower_and_an_upper_one(pair: tuple, text: str, comparison: Comparison) -> None:
    with pytest.raises(UserError, match=rf"bounds=\{{balance: \[{text}\]\}}: the first must be less than the second"):
        Comparison(comparison.runs, bounds={"balance": pair})


def test_runs_without_the_metric_are_named_with_their_kind(comparison: Comparison) -> None:
    for run in comparison.runs[:2]:
        run.environment, run.task, run.curves = "supervised", "Digits", {"accuracy": run.curves["episode_return"]}
    with pytest.raises(UserError) as caught:
        Comparison(comparison.runs)
    first, third = comparison.runs[0].source, comparison.runs[2].source
    assert str(caught.value) == (
        f"metric=episode_return: {first} (supervised, Digits) has no such figure (likewise 1 more) but accuracy, and "
        f"{third} (vmas, balance) has it: runs of different kinds, which need a report each"
    )
    comparison.runs[1].curves = {"episode_return": comparison.runs[1].curves["accuracy"]}
    with pytest.raises(UserError, match="leave out the runs without it"):
        Comparison(comparison.runs[:2])


def test_tables_are_fit_for_markdown_latex_and_csv(comparison: Comparison) -> None:
    table = tables.scores(comparison)
    assert table.rows[0][:2] == ["balance", "mappo"] and table.rows[0][-1] == "8, 9, 10"
    assert "| **9 [8, 10]** |" in table.markdown() and '"8, 9, 10"' in table.csv()
    assert r"\textbf{9 [8, 10]}" in table.latex() and table.latex().count(r" \\") == 5
    odd = tables.Table("50 % of $x_1$", ["a|b", "c"], [["1|2", "50 % & #_{}~^\\ <"]])
    assert r"1\|2" in odd.markdown()
    assert r"50 \% \& \#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}" in odd.latex()
    assert r"\caption{50 \% of \$x\_1\$}" in odd.latex()
