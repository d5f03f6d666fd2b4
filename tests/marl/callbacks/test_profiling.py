"""debug=profiler: a trace, a table of where the time goes, and a run that is left as it was."""

import json
from pathlib import Path

from marl.callbacks.profiling import OUTSIDE, Profiler, owners
from marl.config import compose
from marl.launch import build

TINY = ["env.num_envs=4", "algo.rollout_steps=5", "algo.minibatch_size=10", "network.hidden=[8]",
        "task.eval_episodes=2", "logger=csv", "trainer.progress=off", "device=cpu"]  # fmt: skip


def run(overrides: list[str], folder: Path, callback: Profiler | None = None):
    config = compose.check(compose.compose(overrides))
    trainer, task = build.build_trainer(config), build.build_task(config)
    setup = build.build_setup(config)
    if callback is not None:
        setup["callbacks"] = [callback]
    trainer.fit(task, folder, **setup)
    return trainer, task


def test_the_table_lists_stages_spans_and_operators(tmp_path: Path) -> None:
    trainer, task = run(["debug=profiler", "trainer.capture=false", *TINY], tmp_path)  # replays show no autograd nodes
    text = (tmp_path / "profile" / "table.txt").read_text()
    assert trainer.iteration == 7
    for word in ("collect", "update", "rollout", "values, advantages", "optimizer", "_MLPBackward", "One iteration"):
        assert word in text, word
    minibatches = next(line for line in text.splitlines() if line.startswith("  update") and "%" not in line)
    assert int(minibatches.split()[1]) == task.steps_per_iteration
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"marl.collect", "marl.rollout", "marl.update", "_MLPBackward"} <= names
    assert not any("collect" in vars(owner) or "update" in vars(owner) for owner in (trainer, task, task.rollout))


def test_supervised_tasks_are_profiled_too(tmp_path: Path) -> None:
    run(["debug=profiler", "experiment=sine", "logger=csv", "trainer.progress=off", "device=cpu"], tmp_path)
    text = (tmp_path / "profile" / "table.txt").read_text()
    assert "update" in text and "rollout" not in text


def test_profiling_changes_no_result(tmp_path: Path) -> None:
    plain, _ = run([*TINY, "trainer.max_iterations=7", "trainer.evaluate_every=0"], tmp_path / "plain")
    profiled, _ = run(["debug=profiler", *TINY], tmp_path / "profiled")
    assert profiled.evaluation == plain.evaluation


def test_a_run_that_ends_early_says_so(tmp_path: Path, capsys) -> None:
    run([*TINY, "trainer.max_iterations=2"], tmp_path, Profiler())
    assert "ended after 2 iterations, 6 are needed" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()
    run([*TINY, "trainer.max_iterations=3"], tmp_path, Profiler(warm_up=1, iterations=1))  # ends with the profile
    assert (tmp_path / "profile" / "table.txt").exists()


def test_a_moment_belongs_to_the_innermost_span() -> None:
    owner = owners([(0, 10, "collect"), (1, 9, "rollout"), (2, 3, "step"), (4, 5, "step"), (12, 14, "update")])
    names = [owner(moment) for moment in (-1, 0.5, 1.5, 2.5, 3.5, 4.5, 8, 9.5, 11, 13, 15)]
    assert names == [OUTSIDE, "collect", "rollout", "step", "rollout", "step", "rollout", "collect", OUTSIDE, "update",
                     OUTSIDE]  # fmt: skip
