"""The table of all scenarios: by hand from a few scores, a run judged for real, and what docs/defaults.md shows."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from marl.config import compose
from marl.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/scripts/protocol"
SCORES = [FOLDER / f"scores_{algorithm}.csv" for algorithm in ("ippo", "mappo")]


@pytest.fixture(scope="module")
def scenarios():
    spec = importlib.util.spec_from_file_location("scenarios_table", ROOT / "docs/scripts/tables/scenarios.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(scenario: str, settings: str, seed: int, mode: float, algorithm: str = "mappo") -> dict:
    base = {"scenario": scenario, "algorithm": algorithm, "settings": settings, "seed": seed, "mode": mode}
    return base | {"samples": mode - 1, "seconds": 1.0, "frames": 10}


def test_two_scenarios_by_hand(scenarios) -> None:
    """a: random 0, best 10; the new settings win all four pairs. b: no run is above the random policy."""
    rows = [row("a", "", 0, 0.0, "random"), row("b", "", 0, 5.0, "random")]
    for seed, (old, new) in enumerate(((2.0, 10.0), (4.0, 6.0))):
        rows += [row("a", "defaults_0_1", seed, old), row("a", "normalized", seed, new)]
        rows += [row("b", "defaults_0_1", seed, 1.0), row("b", "normalized", seed, 1.0)]
    rows.append(row("a", "defaults_0_1", 0, 99.0, "ippo"))  # is in no table of another algorithm
    lines = scenarios.tables({scenarios.key(each): each for each in rows}, "mappo")
    assert lines[2] == "| a | 0 | – | **3** [2, 4] | 2 | **8** [6, 10] | 7 | 1.00 | 2 |"
    assert lines[3] == "| b | 5 | – | **1** [1, 1] | 0 | **1** [1, 1] | 0 | 0.50 | 2 |"
    assert "Over 1 scenarios" in lines[5]
    assert lines[9].startswith("| `defaults_0_1` | 0.300 [0.200, 0.400] | 0.300") and "0.700 [0.600, 0.800]" in lines[9]
    assert lines[10].startswith("| `normalized` | 0.800 [0.600, 1.000]")
    assert lines[12:] == [
        "P(`normalized` better) 1.00 [1.00, 1.00].",
        "Left out, since no run is above the random policy: b.",
    ]


def test_settings_without_runs_have_no_columns(scenarios) -> None:
    rows = [row("a", "", 0, 0.0, "random"), *(row("a", "defaults_0_1", seed, seed, "ippo") for seed in (1.0, 2.0))]
    assert scenarios.tables({scenarios.key(each): each for each in rows}, "ippo") == [
        "| scenario | random | scripted | `defaults_0_1` | its samples | seeds |",
        "|---|---|---|---|---|---|",
        "| a | 0 | – | **1.5** [1, 2] | 0.5 | 2 |",
        "",
    ]


def test_algorithms_side_by_side_by_hand(scenarios) -> None:
    """a: random 0, best 10. b: no run is above random, so it says nothing over all. c: not of every algorithm."""
    rows = [row(name, "", 0, value, "random") for name, value in {"a": 0.0, "b": 5.0, "c": 0.0}.items()]
    for seed, (theirs, ours) in enumerate(((2.0, 10.0), (4.0, 6.0))):
        rows += [row("a", "normalized", seed, theirs), row("a", "defaults", seed, ours, "shac")]
        rows += [row("b", "normalized", seed, 1.0), row("b", "defaults", seed, 1.0, "shac")]
    rows.append(row("c", "normalized", 0, 1.0))
    assert scenarios.beside({scenarios.key(each): each for each in rows}) == [
        "| scenario | random | MAPPO `normalized` | SHAC `defaults` |",
        "|---|---|---|---|",
        "| a | 0 | **3** [2, 4] | **8** [6, 10] |",
        "| b | 5 | **1** [1, 1] | **1** [1, 1] |",
        "| IQM over all | 0 | **0.300** [0.200, 0.400] | **0.800** [0.600, 1.000] |",
    ]


@pytest.mark.parametrize("path", SCORES, ids=[path.stem for path in SCORES])
def test_the_page_shows_what_is_kept(scenarios, path: Path) -> None:
    page = (ROOT / "docs/defaults.md").read_text()
    table = scenarios.tables(scenarios.read(path), path.stem.removeprefix("scores_"))
    lines = [line for line in table if line.startswith("|") or "P(" in line]
    assert len(lines) > 20 and [line for line in lines if line not in page] == []


def test_the_page_of_results_shows_all_algorithms_side_by_side(scenarios) -> None:
    page = (ROOT / "docs/results.md").read_text()
    kept = [scenarios.read(FOLDER / f"scores_{algorithm}.csv") for algorithm in ("ippo", "mappo", "shac")]
    lines = scenarios.beside({key: row for rows in kept for key, row in rows.items()})
    assert len(lines) > 25 and [line for line in lines if line not in page] == []


def test_a_run_is_judged_and_kept_once(scenarios, tmp_path: Path, capsys) -> None:
    sizes = ["env.num_envs=4", "env.fast=off", "env.max_steps=5", "algo.rollout_steps=10", "algo.minibatch_size=20"]
    how = ["algo=mappo", *sizes, "frames=40", "task.eval_episodes=2", "trainer.progress=off", "logger=csv"]
    command = [sys.executable, str(ROOT / "scripts/train.py"), *how, f"hydra.run.dir={tmp_path}/runs/0"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    scores = tmp_path / "scores.csv"
    scenarios.main([str(scores), f"{tmp_path}/runs"])
    kept = scores.read_text()
    assert [line.split(",")[:4] for line in kept.splitlines()[1:]] == [
        ["balance", "mappo", "defaults_0_1", "0"],
        ["balance", "random", "", "0"],
        ["balance", "scripted", "", "0"],
    ]
    assert all(line.split(",")[5] for line in kept.splitlines())
    scenarios.main([str(scores), f"{tmp_path}/runs"])
    shown = capsys.readouterr().out
    assert scores.read_text() == kept and "mappo:" in shown and "| balance |" in shown


def test_other_settings_and_frames_are_refused(scenarios, tmp_path: Path) -> None:
    config = {"algo": {"normalize_observation": True, "value_norm": "none"}, "network": {"init": "default"}}
    with pytest.raises(UserError, match="neither defaults_0_1 nor normalized"):
        scenarios.settings(config, "mappo")
    own = compose.compose(["algo=shac", "env=vmas/wheel"])
    assert scenarios.settings(own, "shac") == "defaults"
    with pytest.raises(UserError, match=r"algo\.gamma, network\.hidden: differ from algo=shac"):
        scenarios.settings(compose.compose(["algo=shac", "algo.gamma=0.9", "network.hidden=[8]"]), "shac")
    kept = {"scenario": "balance", "algorithm": "mappo", "settings": "defaults_0_1", "seed": 0, "frames": "600000"}
    settings = {"normalize_observation": False, "value_norm": "none", "critic": "concat"}
    algo = settings | {"_target_": "agents.algorithms.ppo.PPO"}
    network = {"init": "default", "last_gain": None}
    whole = {"algo": algo, "network": network, "env": {"scenario": "balance"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    (tmp_path / "summary.json").write_text(json.dumps({"seed": 0, "frames": 40}))
    with pytest.raises(UserError, match="trained for 40 frames; the run that is kept for 600000"):
        scenarios.Judge().rows(tmp_path, {scenarios.key(kept): kept})


@pytest.mark.parametrize(
    ("refusal", "ends"),
    [
        ("heuristic: sampling has no policy of its own for agents", False),
        ("heuristic: navigation's own policy needs cvxpy: install it", False),
        ("heuristic: cannot be built", True),
    ],
)
def test_a_scenario_without_a_scripted_policy_ends_nothing(
    scenarios, monkeypatch, tmp_path: Path, refusal: str, ends: bool
) -> None:
    def rebuilt(run: Path, overrides: object = ()) -> None:
        raise UserError(refusal)

    monkeypatch.setattr(scenarios, "rebuilt", rebuilt)
    if ends:
        with pytest.raises(UserError, match="cannot be built"):
            scenarios.scripted(tmp_path)
    else:
        assert scenarios.scripted(tmp_path) is None


@pytest.mark.parametrize("arguments", [[], ["runs"]])
def test_the_file_must_be_named(scenarios, arguments: list[str]) -> None:
    with pytest.raises(UserError, match="the file of scores is missing"):
        scenarios.main(arguments)


def test_a_folder_without_runs_is_refused(scenarios, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run that has ended"):
        scenarios.main([str(tmp_path / "scores.csv"), str(tmp_path)])
