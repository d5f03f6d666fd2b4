"""Figures of the environment's own in whole runs: trained with, judged by, shown, resumed, monitored."""

import csv
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.testing import assert_close

from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build

GOAL = [
    "env=gymnasium", "env.id=tests.envs.info_cases:InfoGoal-v0", "env.num_envs=4", "env.max_steps=50", "algo=ippo",
    "network.hidden=[4]", "algo.rollout_steps=4", "algo.minibatch_size=8", "algo.epochs=1", "frames=160",
    "task.eval_episodes=4", "trainer.progress=off", "trainer.evaluate_every=5", "logger=csv",
]  # fmt: skip
SMALL = [text for text in GOAL if not text.startswith(("env", "algo="))]


def train(folder: Path, *overrides: str, resume: Path | None = None) -> dict:
    """Trains in `folder`; returns the content of its last checkpoint."""
    config = compose.check(compose.compose([*GOAL, *overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    trainer.fit(task, folder, **build.build_setup(config), resume=resume)
    return checkpoint_file.load(folder / "checkpoints" / "last.pt")


def rows(folder: Path) -> list[dict[str, float]]:
    """The figures of infos that were logged, row by row; nan where the field is empty."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v or "nan") for k, v in row.items() if "info/" in k} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("success", "expected"), [("always", 1.0), ("half", 0.5), ("never", 0.0)])
def test_success_in_the_last_step_is_read_as_it_is(tmp_path, success, expected):
    train(tmp_path, "+env.kwargs.lengths=[6]", f"+env.kwargs.success={success}")
    logged = rows(tmp_path)
    ends = [row["info/success/end"] for row in logged]
    assert [math.isnan(value) for value in ends] == [(n + 1) * 4 // 6 == n * 4 // 6 for n in range(10)]  # none ended
    assert {value for value in ends if value == value} == {expected}
    judged = [row["eval/info/success/end"] for row in logged if not math.isnan(row["eval/info/success/end"])]
    assert judged == [expected] * 2 and logged[-1]["eval/info/of.steps/end"] == 6
    assert logged[-1]["eval/info/of.steps/mean"] == 3.5 and logged[-1]["eval/info/success/mean"] == expected


@pytest.mark.parametrize("env", ["gymnasium", "gymnasium_vector"])
def test_all_kinds_are_those_of_a_loop_over_the_steps(env):
    rules = "task.info={height: [mean, end, sum, min, max], success: [end], *: []}"
    task = build.build_task(compose.check(compose.compose([*GOAL, f"env={env}", rules])))
    episodes: list[list[float]] = [[] for _ in range(4)]
    for iteration in range(12):
        task.collect(iteration)
        ended = []
        for t in range(4):
            waits = task.rollout.idle(t)
            for e in range(4):
                if not waits[e]:
                    episodes[e].append(float(task.rollout.next["agents"][t, e, 0, 1]))  # the height
                if task.rollout.done[t, e]:
                    ended.append(episodes[e])
                    episodes[e] = []
        kinds = {"mean": lambda x: sum(x) / len(x), "end": lambda x: x[-1], "sum": sum, "min": min, "max": max}
        for kind, reduce in kinds.items():
            expected = sum(map(reduce, ended)) / len(ended) if ended else math.nan
            assert float(task.figures[f"info/height/{kind}"]) == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert set(task.rollout.info.tensors["agents"]) <= {"height", "success"}
    told = {name for name in task.figures if name.startswith("info/")}
    assert told == {f"info/height/{kind}" for kind in kinds} | {"info/success/end"}


def test_a_run_resumed_within_episodes_tells_the_same(tmp_path):
    rules = "task.info={height: [mean, end, sum, min, max]}"
    whole = train(tmp_path / "whole", rules)
    train(tmp_path / "parts", rules, "trainer.max_iterations=3")
    last = tmp_path / "parts" / "checkpoints" / "last.pt"
    carried = checkpoint_file.load(last)["processes"][0]["task"]["infos"]["agents"]
    assert set(carried) == {"height", "of.steps", "pair", "success"} and carried["height"]["sum"].any()
    rest = train(tmp_path / "parts", rules, resume=last)
    assert_close(rest["processes"][0]["task"]["infos"], whole["processes"][0]["task"]["infos"], rtol=0, atol=0)
    assert rest["evaluation"] == whole["evaluation"]
    again, before = rows(tmp_path / "parts")[3:], rows(tmp_path / "whole")[3:]
    for ours, theirs in zip(again, before, strict=True):
        for name, value in theirs.items():
            assert ours[name] == value or math.isnan(ours[name]) == math.isnan(value) is True, name


def test_nothing_that_is_not_asked_for_is_stored(tmp_path):
    content = train(tmp_path, "task.info=null")
    assert "infos" not in content["processes"][0]["task"] and not any(rows(tmp_path))
    task = build.build_task(compose.check(compose.compose([*GOAL, "task.info=null"])))
    assert task.rollout.info is None
    task = build.build_task(compose.check(compose.compose([*GOAL, "task.info={*: [], of*: [end]}"])))
    task.collect(0)
    assert set(task.rollout.info.tensors["agents"]) == {"of.steps"}


def test_unknown_kinds_are_refused_before_anything_is_built():
    with pytest.raises(UserError, match=r"task.info.success\[0\]=last: must be 'mean', 'end', 'sum', 'min' or 'max'"):
        compose.check(compose.compose([*GOAL, "task.info={success: [last]}"]))


def test_a_kernel_writes_what_the_simulator_tells():
    balance = [*SMALL, "algo=ippo", "env=vmas/balance", "env.num_envs=8", "env.max_steps=6"]
    configs = [compose.check(compose.compose([*balance, f"env.fast={fast}"])) for fast in ("kernel", "off")]
    tasks = [build.build_task(config) for config in configs]
    assert [task.env.path for task in tasks] == ["kernel", "eager"]
    for _ in range(3):
        for task in tasks:
            task.collect(0)
        kernel, eager = (task.rollout.info.tensors["agents"] for task in tasks)
        assert set(kernel) == set(eager) == {"pos_rew", "ground_rew"}
        for name, value in kernel.items():
            assert value.shape == (4, 8, 4) and value.isfinite().all()
            assert_close(value, eager[name], rtol=1e-4, atol=1e-4)
        infos = [{k: v for k, v in task.figures.items() if k.startswith("info/")} for task in tasks]
        assert_close(*infos, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_best_checkpoints_and_early_stopping_follow_such_a_figure(tmp_path, capsys):
    monitor = ["trainer.monitor=info/success/end", "trainer.mode=max", "callbacks=early_stopping"]
    target = ["callbacks.early_stopping.target=0.5", "trainer.evaluate_every=1", "+env.kwargs.success=half"]
    shown = ["trainer.progress=plain", "trainer.show=[info/success/end,info/of.steps/mean]"]
    content = train(tmp_path, *monitor, *target, *shown, "+env.kwargs.lengths=[3]")
    assert content["iteration"] == 1 and content["evaluation"]["info/success/end"] == 0.5
    best = checkpoint_file.load(tmp_path / "checkpoints" / "best.pt")
    assert best["evaluation"]["info/success/end"] == 0.5
    line = capsys.readouterr().out
    assert "eval/info/success/end 0.5" in line and "info/of.steps/mean 2 " in line


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("trainer.monitor=info/sucess/end", "trainer.monitor='info/sucess/end': evaluation has .*"),
        ("trainer.show=[info/sucess/end] trainer.evaluate_every=1", "trainer.show=info/sucess/end: is not logged"),
    ],
)
def test_a_figure_that_no_evaluation_gives_is_refused_with_the_closest(tmp_path, setting, sentence):
    with pytest.raises(UserError, match=rf"{sentence}; did you mean 'info/success/end'"):
        train(tmp_path, *setting.split())


def test_a_run_that_is_done_does_not_fail_for_its_line(tmp_path, capsys):
    assert train(tmp_path, "trainer.show=[typo]", "trainer.evaluate_every=0")["iteration"] == 10
    assert "warning: trainer.show=typo: is not logged; there are" in capsys.readouterr().err


def test_a_figure_that_was_told_once_is_nan_where_it_is_not_told():
    task = build.build_task(compose.check(compose.compose([*GOAL, "task.eval_episodes=2"])))
    first = task.evaluate()
    task.told.add("info/rare/end")
    assert math.isnan(task.evaluate()["info/rare/end"]) and "info/rare/end" not in first


def test_several_groups_have_their_names_before_it():
    groups = "env.groups={left: [agent_0], right: [agent_1, agent_2, agent_3]}"
    balance = [*SMALL, "algo=ippo", "env=vmas/balance", "env.num_envs=4", "env.fast=off", groups]
    task = build.build_task(compose.check(compose.compose(balance)))
    task.collect(0)
    names = [f"info/{name}/{kind}" for name in ("pos_rew", "ground_rew") for kind in ("mean", "end")]
    figures = [f"{group}/{name}" for group in ("left", "right") for name in names]
    for told in (task.figures, task.evaluate()):
        assert {name for name in told if "info/" in name} == set(figures)
