"""The protocol of defaults: scores and choice by hand, a small real run, what is complete and what is refused."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "base": ["algo=mappo", "env.num_envs=4", "env.fast=off", "env.max_steps=5", "algo.rollout_steps=10"],
    "choose": {"vmas/balance": [], "vmas/dispersion": ["env.max_steps=6"]},
    "judge": {"vmas/wheel": []},
    "rounds": [{"frames": 40, "seeds": [0], "keep": 1}],
    "judging": {"frames": 40, "seeds": [100, 101]},
    "episodes": 2,
    "candidates": {"default": [], "faster": ["optimizer.lr=3e-3"]},
}
SMALL["base"] += ["algo.minibatch_size=20", "task.eval_episodes=2"]


@pytest.fixture(scope="module")
def protocol():
    spec = importlib.util.spec_from_file_location("defaults_protocol", ROOT / "docs/scripts/defaults_protocol.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["defaults_protocol"] = module  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["defaults_protocol"]


def written(folder: Path, **changes) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return path


def put(folder: Path, where: str, overrides: list[str], score: float | None, seconds: float | None = 10.0) -> None:
    """A training that is complete."""
    place = folder / where
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps({"overrides": overrides, "score": score, "seconds": seconds}))


def test_scores_the_choice_and_the_judgement_by_hand(protocol, tmp_path: Path, capsys) -> None:
    """Balance: random -10, best 30. Dispersion: random 0, best 2. All trainings are there, so none is made."""
    rounds = [{"frames": 40, "seeds": [0], "keep": 2}, {"frames": 80, "seeds": [0, 1], "keep": 1}]
    candidates = SMALL["candidates"] | {"broken": ["optimizer.lr=9"]}
    plan, out = written(tmp_path, rounds=rounds, candidates=candidates), tmp_path / "out"
    (out / "random").mkdir(parents=True)
    for name, score in {"vmas_balance": -10.0, "vmas_dispersion": 0.0, "vmas_wheel": 0.0}.items():
        (out / "random" / f"{name}.json").write_text(json.dumps({"score": score}))

    def there(stage, name, scenario, seed, frames, score, seconds=10.0):
        more = SMALL["choose"].get(f"vmas/{scenario}", [])
        how = [*SMALL["base"], f"env=vmas/{scenario}", *more, *candidates[name], f"frames={frames}", f"seed={seed}"]
        put(out, f"{stage}/{name}/{scenario}_{seed}", how, score, seconds)

    for name, balance, dispersion in (("default", 0.0, 1.0), ("faster", 10.0, 1.5), ("broken", None, None)):
        there("round_1", name, "balance", 0, 40, balance, None if balance is None else 10.0)
        there("round_1", name, "dispersion", 0, 40, dispersion, None if balance is None else 10.0)
    for seed in (0, 1):
        there("round_2", "default", "balance", seed, 80, 10.0)
        there("round_2", "faster", "balance", seed, 80, 30.0)
        there("round_2", "default", "dispersion", seed, 80, 2.0)
        there("round_2", "faster", "dispersion", seed, 80, 1.8)
    for seed in (100, 101):
        there("judged", "default", "wheel", seed, 40, 4.0, 10.0)
        there("judged", "faster", "wheel", seed, 40, 8.0, 20.0)
        there("judged_in_time", "faster", "wheel", seed, 20, 3.0)  # as many frames as take it the default's seconds
    protocol.main([str(out), f"plan={plan}"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    first = [line for line in lines[: lines.index("round_2")] if line.startswith(("| default", "| faster", "| broken"))]
    # So far the best on balance are 10 and on dispersion 1.5, against -10 and 0.
    assert [line.split(" | ")[:4] for line in first] == [
        ["| faster", "1.000", "1.00", "1.00"],
        ["| default", "0.583", "0.50", "0.67"],
        ["| broken", "0.000", "0.00", "0.00"],
    ]
    second = [line for line in lines[lines.index("round_2") : lines.index("choice: faster (optimizer.lr=3e-3)")]]
    # (30 + 10) / 40 = 1 and 1.8 / 2 = 0.9; (10 + 10) / 40 = 0.5 and 1: the middle half of four runs is two of them.
    assert next(line for line in second if "| faster" in line).startswith("| faster | 0.950 [")
    assert next(line for line in second if "| default" in line).startswith("| default | 0.750 [")
    assert json.loads((out / "choice.json").read_text()) == {"choice": "faster", "overrides": ["optimizer.lr=3e-3"]}
    assert "at equal frames: faster 1.000, default 0.500; P(better) 1.00 [1.00, 1.00]: better" in lines
    assert "at equal seconds: faster 0.375, default 0.500; P(better) 0.00 [0.00, 0.00]: worse" in lines
    assert "judged: 4 trainings, 0 of them to do" in lines and "wheel" in rows["candidate"]


def test_a_small_one_trains_what_is_missing(protocol, shell, monkeypatch, tmp_path: Path, capsys) -> None:
    plan, out = written(tmp_path, judging={"frames": 400, "seeds": [100]}), tmp_path / "out"
    interrupted = out / "round_1" / "default" / "balance_0"
    interrupted.mkdir(parents=True)
    (interrupted / "metrics.csv").write_text("half a run")
    started, turn, run = [], Lock(), subprocess.run

    def warm(command: list[str], **options) -> subprocess.CompletedProcess:
        """The first as it is; the others by the shell of tests, one after the other."""
        assert command[:2] == [sys.executable, str(ROOT / "scripts" / "train.py")]
        assert options["env"]["OMP_NUM_THREADS"] == "1"
        with turn:
            started.append(command)
            return run(command, **options) if len(started) == 1 else shell(tmp_path, "train", *command[2:])

    monkeypatch.setattr(protocol, "subprocess", SimpleNamespace(run=warm))
    protocol.main([str(out), f"plan={plan}", "jobs=2"])
    said = capsys.readouterr().out
    assert "round_1: 4 trainings, 4 of them to do" in said and "choice: " in said
    results = {path: path.read_bytes() for path in out.rglob("result.json")}
    assert len(results) == len(started)
    assert len(results) in (4, 7)  # 4, where the default was chosen, and nothing is to be judged
    for path, content in results.items():
        known, summary = json.loads(content), json.loads((path.parent / "summary.json").read_text())
        assert known["score"] == summary["final"]["episode_return"]["mean"] and np.isfinite(known["score"])
    protocol.main([str(out), f"plan={plan}", "jobs=1"])
    assert "round_1: 4 trainings, 0 of them to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("result.json")} == results
    changed = written(tmp_path, candidates={"default": [], "faster": ["optimizer.lr=2e-3"]})
    with pytest.raises(UserError, match=r"other settings, optimizer.lr=2e-3, optimizer.lr=3e-3; use another FOLDER"):
        protocol.main([str(out), f"plan={changed}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": {"vmas/balance": []}}, "judge: vmas/balance is among the scenarios of choose"),
        ({"judging": {"frames": 40, "seeds": [0]}}, "judging.seeds: 0 is a seed of a round"),
        ({"candidates": {"default": []}}, "candidates: needs at least two"),
        ({"rouns": []}, "unknown key 'rouns'"),
    ],
)
def test_mistakes_in_a_plan_are_told(protocol, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol.main([str(tmp_path / "out"), f"plan={written(tmp_path, **changes)}"])
    for wrong, why in ((["jobs=2"], "the folder is missing"), ([str(tmp_path), "jobs=none"], "jobs=none")):
        with pytest.raises(UserError, match=why):
            protocol.main(wrong)


DISCRETE = ["algo=qmix", "env.continuous_actions=false"]


@pytest.mark.parametrize(
    ("name", "more"),
    [("on_policy", []), ("on_policy", ["algo=ippo"]), ("off_policy", []), ("off_policy", ["algo=maddpg"]),
     ("off_policy", DISCRETE)],
)  # fmt: skip
def test_the_plans_that_are_kept_fit(protocol, name: str, more: list[str]) -> None:
    """Every scenario and candidate composes; the scenarios are those that the choice and the judgement are about."""
    plan = vars(protocol.read_plan(ROOT / f"docs/scripts/protocol/{name}.yaml", more))
    assert len(plan["choose"]) == 8 and len(plan["judge"]) == 6 and not plan["choose"].keys() & plan["judge"].keys()
    assert not next(iter(plan["candidates"].values()))  # the first is the default
    for scenario in (*plan["choose"], *plan["judge"]):
        compose.check(compose.compose([*plan["base"], f"env={scenario}"]))
    for overrides in plan["candidates"].values():
        config = compose.check(compose.compose([*plan["base"], "env=vmas/balance", "env.fast=off", *overrides]))
        build.build_trainer(config)


def test_without_rounds_the_second_of_two_is_the_choice(protocol, tmp_path: Path) -> None:
    plan = protocol.read_plan(ROOT / "docs/scripts/protocol/mappo_more_seeds.yaml", [])
    assert protocol.Protocol(plan, tmp_path, 1).choose() == "all"
    chosen = yaml.safe_load((ROOT / "docs/scripts/protocol/on_policy.yaml").read_text())
    assert plan.candidates["all"] == chosen["candidates"]["all"] and plan.judge == chosen["judge"]
    used = {seed for each in chosen["rounds"] for seed in each["seeds"]} | {*chosen["judging"]["seeds"]}
    assert not used & {*plan.judging["seeds"]}
    judged = protocol.read_plan(ROOT / "docs/scripts/protocol/masac_judgement.yaml", [])
    chosen = yaml.safe_load((ROOT / "docs/scripts/protocol/off_policy.yaml").read_text())
    assert judged.candidates.items() <= chosen["candidates"].items()
    assert all(vars(judged)[key] == chosen[key] for key in ("base", "judge", "judging"))
    more = SMALL["candidates"] | {"third": []}
    with pytest.raises(UserError, match="rounds: is empty, so two candidates are allowed"):
        protocol.read_plan(written(tmp_path, rounds=[], candidates=more), [])
