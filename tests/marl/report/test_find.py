"""Finding and reading runs: folders, sweeps, globs, marl-eval files; variants told apart; what is left out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from marl.config.compose import compose
from marl.config.conf_tree import group_options
from marl.core.errors import UserError
from marl.report import marl_eval
from marl.report.find import find
from marl.report.runs import algorithm_of
from tests.marl.report.helpers import absolute, change, write_run


def benchmarl(first: list[float], last: list[float]) -> dict:
    """A file as BenchMARL's JsonWriter makes it, with the largest return of an episode as its "absolute" metric."""
    run = {
        "absolute_metrics": {"return": [max(first + last)], "agents_return": [max(first + last)]},
        "step_0": {"step_count": 6000, "return": first, "agents_return": first},
        "step_10": {"step_count": 66000, "return": last, "agents_return": last},
        "step_2": {"step_count": 18000, "return": first, "agents_return": first},
    }
    return {"vmas": {"balance": {"masac": {"seed_7": run}}}}


def test_a_run_directory_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "r", [1, 2.5], seed=3, critic="local", agents={"agent_0": [0, 1]})
    absolute(tmp_path / "r", 2.25)
    (run,), left_out = find([tmp_path / "r"])
    assert (run.algorithm, run.environment, run.task, run.seed, run.unit) == ("ippo", "vmas", "balance", 3, "frames")
    assert run.units.tolist() == [100, 200] and run.seconds.tolist() == [2, 4] and left_out == []
    assert run.curves["episode_return"].tolist() == [1, 2.5]
    assert run.curves["agents/agent_0/episode_return"].tolist() == [0, 1]
    scores = [run.score("episode_return", which) for which in ("final", "best", "absolute")]
    assert scores == [2.5, 2.5, 2.25]


@pytest.mark.parametrize(
    ("env", "environment", "task"),
    [
        ({"_target_": "envs.adapters.gymnasium_env.GymnasiumEnv", "id": "CartPole-v1"}, "gymnasium", "CartPole-v1"),
        ({"_target_": "envs.adapters.gymnasium_env.PettingZooEnv", "env": "a.b.make"}, "pettingzoo", "a.b.make"),
        (
            {"_target_": "envs.adapters.torchrl_env.FromTorchRL", "env": "torchrl.envs.GymEnv"},
            "torchrl",
            "torchrl.envs.GymEnv",
        ),
        ({"_target_": "envs.toy.cue_memory.MemoryEnv", "n_agents": 2}, "memory", "MemoryEnv"),
        ({"_target_": "envs.vmas.env.VmasEnv", "scenario": "mpe/simple_tag"}, "vmas", "mpe/simple_tag"),
    ],
)
def test_every_kind_of_environment_has_a_name(env: dict, environment: str, task: str, tmp_path: Path) -> None:
    change(write_run(tmp_path / "r", [1]), env={"scenario": None, **env})
    (run,), _ = find([tmp_path])
    assert (run.environment, run.task) == (environment, task)


@pytest.mark.parametrize("name", [option for option in group_options("algo") if option != "ppo"])
def test_an_algorithm_goes_by_the_name_that_chooses_it(name: str) -> None:
    assert algorithm_of(compose([f"algo={name}"]).algo) == name
    assert algorithm_of({"_target_": "my_project.algorithm.SPO"}) == "spo"


def test_sweeps_globs_and_files_are_searched_once(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "sweep" / str(seed), [seed], seed=seed)
    write_run(tmp_path / "sweep" / "3", [9], seed=3, finished=False)
    write_run(tmp_path / "sweep" / "4", [], seed=4)
    (tmp_path / "sweep" / "other.json").write_text('{"a": 1}')
    (tmp_path / "b.json").write_text(json.dumps(benchmarl([0.0, 2.0], [4.0, 6.0])))
    runs, left_out = find([tmp_path / "sweep", str(tmp_path / "sweep" / "*"), tmp_path / "b.json"])
    assert [(run.algorithm, run.seed) for run in runs] == [("mappo", 0), ("mappo", 1), ("mappo", 2), ("masac", 7)]
    assert sorted(text.rpartition(": ")[2] for text in left_out) == ["never evaluated", "unfinished"]


def test_an_earlier_reports_runs_do_not_count_again(tmp_path: Path) -> None:
    runs, _ = find([write_run(tmp_path / "0", [1, 2])])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").touch()
    marl_eval.write(tmp_path / "report" / "metrics.json", runs)
    assert len(find([tmp_path])[0]) == 1
    assert len(find([tmp_path, tmp_path / "report" / "metrics.json"])[0]) == 2


def test_benchmarls_files_are_read_in_order_and_without_their_absolute_metric(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(benchmarl([0.0, 2.0], [4.0, 6.0])))
    (run,), _ = find([tmp_path])
    assert run.units.tolist() == [6000, 18000, 66000] and run.curves["episode_return"].tolist() == [1, 1, 5]
    assert run.curves["agents/episode_return"].tolist() == [1, 1, 5]
    assert run.absolute == {} and np.isnan(run.seconds).all()


def test_what_is_written_for_marl_eval_is_read_again(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1, 2], seed=1, agents={"agent_0": [3, 4]})
    write_run(tmp_path / "b", [3, 5], seed=2, critic="local", agents={"agent_0": [3, 4]})
    runs, _ = find([tmp_path / "a", tmp_path / "b"])
    runs[0].curves["agents/agent_1/episode_return"] = np.zeros(2)  # which the other has not: marl-eval would refuse it
    written = marl_eval.write(tmp_path / "metrics.json", runs)
    entry = written["vmas"]["balance"]["mappo"]["seed_1"]
    assert entry["step_1"] == {"step_count": 200, "elapsed_time": 4.0, "return": [2.0], "agents/agent_0_return": [4.0]}
    assert entry["absolute_metrics"]["return"] == [2.0]
    again, _ = find([tmp_path / "metrics.json"])
    for run, copy in zip(runs, again, strict=True):
        assert (copy.algorithm, copy.task, copy.seed) == (run.algorithm, run.task, run.seed)
        assert all(values.tolist() == run.curves[name].tolist() for name, values in copy.curves.items())
        assert list(copy.curves) == ["agents/agent_0/episode_return", "episode_return"]
        assert copy.units.tolist() == run.units.tolist() and copy.seconds.tolist() == run.seconds.tolist()


def test_variants_are_distinguished_by_what_differs(tmp_path: Path) -> None:
    for i, (clip, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0)]):
        write_run(tmp_path / str(i), [i], seed=seed, clip=clip)
    write_run(tmp_path / "n", [1], scenario="navigation", clip=0.3)  # another task: nothing to tell apart there
    write_run(tmp_path / "twin", [1], scenario="navigation", clip=0.3)
    runs, _ = find([tmp_path])
    names = [(run.algorithm, run.task, run.seed) for run in runs]
    assert names[:3] == [("mappo clip=0.1", "balance", 0), ("mappo clip=0.1", "balance", 1),
                         ("mappo clip=0.2", "balance", 0)]  # fmt: skip
    assert names[3:] == [("mappo", "navigation", 0), ("mappo", "navigation", 1000)]


def test_jobs_that_failed_and_runs_without_a_table_are_left_out_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [1])
    (write_run(tmp_path / "1", [1]) / "metrics.csv").unlink()
    for name, job in {"2": {"status": "failed", "reason": "env.x=0: must be 1."}, "3": {"status": "running"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps(job))
    (write_run(tmp_path / "4", [1]) / "job.json").write_text('{"status": "done", "reason": null}')
    runs, left_out = find([tmp_path])
    assert len(runs) == 2
    assert left_out == [
        f"{tmp_path}/1: has no metrics.csv (logger.csv off)",
        f"{tmp_path}/2: failed: env.x=0: must be 1",
        f"{tmp_path}/3: unfinished",
    ]
    with pytest.raises(UserError, match=r"no finished run with evaluations \(.*failed: env.x=0"):
        find([tmp_path / "2"])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.yaml", "", "config.yaml can't be read"),
        ("config.yaml", "a: [", "config.yaml can't be read"),
        ("config.yaml", "env: {}\nalgo:\n  critic: local\n", "config.yaml can't be read"),
        (
            "config.yaml",
            "seed: 0\nenv: {_target_: a.B}\nalgo: {_target_: a.PPO, critic: local}\n",
            "config.yaml .*KeyError: 'paths'",
        ),
        ("metrics.csv", "iteration,frames,eval/episode_return\n1,100,much\n", "metrics.csv can't be read"),
        ("metrics.csv", "iteration,eval/episode_return\n1,0.5\n", "metrics.csv .*KeyError: 'frames'"),
        ("job.json", "{", "job.json can't be read"),
        ("checkpoints/evaluation_absolute.json", "{}", "evaluation_absolute.json can't be read"),
        ("step.json", '{"e": {"t": {"a": {"r": {"step_x": {"step_count": 1}}}}}}', "step.json: step_x: steps are"),
        ("step.json", '{"e": {"t": {"a": {"r": {"step_0": {"step_count": null}}}}}}', "step.json: "),
    ],
)
def test_one_damaged_file_leaves_out_one_run(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    write_run(tmp_path / "good", [1])
    (write_run(tmp_path / "bad", [1]) / name).write_text(text)
    runs, left_out = find([tmp_path])
    assert str(tmp_path / "good") in [run.source for run in runs]
    assert len(left_out) == 1 and re.search(sentence, left_out[0])


def test_how_a_run_was_watched_and_computed_makes_no_other_algorithm_or_task(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [1])
    trainer = {"progress": "off", "threads": 2, "keep_every": 1, "evaluate_every": 5, "compile": True, "capture": False}
    trainer["helpers"] = 0
    replay = {"replay": {"_target_": "agents.evaluation.episode_replays.Replay", "every": 2}}
    env = {"fast": "off", "workers": 2}
    change(
        write_run(tmp_path / "1", [1], seed=1), trainer=trainer, env=env, callbacks=replay, task={"eval_episodes": 5}
    )
    assert [(run.algorithm, run.task, run.seed) for run in find([tmp_path])[0]] == [
        ("mappo", "balance", 0),
        ("mappo", "balance", 1),
    ]
    kl = {"_target_": "agents.algorithms.kl_adaptive.KLAdaptive", "target": 0.1}
    change(write_run(tmp_path / "2", [1]), callbacks={"kl": kl})
    change(write_run(tmp_path / "3", [1]), trainer={"grad_clip": 9.0})
    assert len({run.algorithm for run in find([tmp_path])[0]}) == 3


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", "empty: no finished run with evaluations"),
        ("other.json", "not a file in marl-eval's format"),
    ],
)
def test_what_is_no_run_is_named(place: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=sentence):
        find([tmp_path / place])


def test_many_differences_make_numbered_variants(tmp_path: Path) -> None:
    for i in range(2):
        settings = {f"a_rather_long_key_{j}": i for j in range(9)}
        write_run(tmp_path / str(i), [i], **settings)
    runs, _ = find([tmp_path])
    assert [run.algorithm for run in runs] == ["mappo variant 1", "mappo variant 2"]
    assert "a_rather_long_key_8=1" in runs[1].variant


def test_imported_runs_stand_beside_ours_under_names_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "ours", [1], critic="local")
    theirs = benchmarl([0.0], [4.0])
    theirs["vmas"]["balance"]["ippo"] = theirs["vmas"]["balance"]["masac"]
    (tmp_path / "b.json").write_text(json.dumps(theirs))
    names = [[run.algorithm for run in find([tmp_path], name)[0]] for name in (None, "BenchMARL")]
    assert names == [["ippo", "masac", "ippo (imported)"], ["ippo", "masac (BenchMARL)", "ippo (BenchMARL)"]]


def test_folds_of_a_cross_validation_are_runs_of_one_kind(tmp_path: Path) -> None:
    for fold in range(3):
        data = {"_target_": "marl.data.Digits", "folds": 3, "fold": fold}
        change(write_run(tmp_path / str(fold), [fold]), data=data)
    runs, _ = find([tmp_path])
    assert [run.algorithm for run in runs] == ["mappo"] * 3 and len({run.seed for run in runs}) == 3
