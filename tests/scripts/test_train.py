"""scripts/train.py and scripts/evaluate.py from end to end, on runs of seconds."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from envs.kernel.verification.recheck import Recheck
from envs.vmas.simulator import find_scenario
from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.core.errors import UserError
from marl.engine.checkpointer import Checkpointer
from marl.launch import build

TINY = [
    "env.num_envs=4",
    "env.max_steps=20",
    "env.scenario_kwargs.n_agents=3",
    "algo.rollout_steps=25",
    "algo.minibatch_size=50",
    "algo.epochs=2",
    "algo.entropy_coef=0.01",
    "network.hidden=[16]",
    "scheduler=constant",
    "task.eval_episodes=6",
    "trainer.evaluate_every=2",
    "trainer.checkpoint_every=1",
    "trainer.progress=plain",
]


@pytest.fixture(scope="module")
def run(shell, tmp_path_factory) -> Path:
    """Four iterations of 100 frames, by the command line."""
    directory = tmp_path_factory.mktemp("run")
    done = shell(directory, "train", *TINY, "frames=400", "hydra.run.dir=a run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("configuration") == 1 and "Traceback" not in done.stderr
    return directory / "a run"


@pytest.fixture(scope="module")
def model(script, tmp_path_factory) -> Path:
    """A supervised run."""
    directory = tmp_path_factory.mktemp("model")
    script("train").train(compose.compose(["experiment=threshold", "epochs=3"]), directory)
    return directory


def test_the_run_directory_holds_what_later_commands_need(run: Path) -> None:
    assert {"config.yaml", "checkpoints", "metrics.csv", "summary.json"} <= {path.name for path in run.iterdir()}
    assert {"last.pt", "best.pt"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert list(run.glob("events.out.tfevents.*"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["frames"] == 400 and config["env"]["num_envs"] == 4
    assert config["paths"]["run_dir"] == str(run) and "${" not in (run / "config.yaml").read_text()
    assert not (run / ".hydra").exists() and not list(run.glob("*.log"))


def test_the_summary_keeps_its_names(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    keys = {"task", "seed", "frames", "final", "best", "seconds", "peak_memory_bytes", "versions", "git_commit"}
    assert keys <= set(summary) and summary["frames"] == 400
    block = summary["final"]["episode_return"]
    assert set(block) == {"mean", "iqm", "std", "ci95", "episodes"}
    assert block["episodes"] == 6 and block["ci95"][0] <= block["mean"] <= block["ci95"][1]
    assert {"collect", "update", "evaluate", "compile", "total"} <= set(summary["seconds"])
    assert "iteration" in summary["best"] and "scripts/train.py" in summary["command"]


def test_metrics_have_the_names_of_the_field(run: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = "episode_return episode_length approx_kl clip_fraction explained_variance entropy policy_loss"
    names += " value_loss grad_norm lr frames_per_second collect_seconds update_seconds"
    assert set(names.split()) <= set(rows[0])
    assert [int(float(row["frames"])) for row in rows] == [100, 200, 300, 400]


def test_evaluation_equals_the_runs_own(run: Path, script) -> None:
    module = script("evaluate")
    result = module.evaluate(*module.parse([f"ckpt={run}"]))
    written = json.loads((run / "checkpoints" / "evaluation.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert written["episode_return"] == summary["final"]["episode_return"] == result["episode_return"]
    agents = written["groups"]["agents"]
    assert len(agents["agents"]) == 3 and agents["episode_return"]["episodes"] == 6


def test_evaluation_takes_options_and_overrides(run: Path, shell, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "e.json"
    options = [f"ckpt={run}/checkpoints/best.pt", "episodes=3", "deterministic=false", "seed=5", f"out={out}"]
    done = shell(tmp_path, "evaluate", *options, "env.max_steps=7")
    assert done.returncode == 0, done.stderr
    assert "IQM" in done.stdout and "agent_0" in done.stdout
    written = json.loads(out.read_text())
    assert written["episode_return"]["episodes"] == 3 and written["episode_length"]["mean"] <= 7
    assert not (run / "checkpoints" / "evaluation_random.json").exists()


def test_baselines_differ_from_the_trained_policy(run: Path, script, tmp_path: Path) -> None:
    module, means = script("evaluate"), []
    for policy in ("trained", "untrained", "random"):
        options = [f"ckpt={run}", f"policy={policy}", f"out={tmp_path / policy}.json"]
        means.append(module.evaluate(*module.parse(options))["episode_return"]["mean"])
    assert len(set(means)) == 3


def test_a_resumed_run_ends_in_the_same_bits(run: Path, script, tmp_path: Path) -> None:
    train = script("train").train
    train(compose.compose([*TINY, "frames=400", "trainer.max_iterations=2"]), tmp_path)
    cfg = compose.compose([f"resume={tmp_path}", "trainer.max_iterations=null"])
    train(cfg, tmp_path)
    whole, resumed = (checkpoint_file.load(path / "checkpoints" / "last.pt") for path in (run, tmp_path))
    assert resumed["iteration"] == whole["iteration"] == 4
    assert all(torch.equal(resumed["loss"][key], value) for key, value in whole["loss"].items())
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["resume"] is None and config["trainer"]["max_iterations"] is None
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5


def test_resume_by_the_command_line_continues_in_place(run: Path, shell, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    done = shell(tmp_path, "train", "resume=copy", "frames=500")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "copy" / "summary.json").read_text())["frames"] == 500
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_resume_refuses_other_networks_and_leaves_the_run_alone(run: Path, script) -> None:
    before = (run / "config.yaml").read_text()
    message = r"network.hidden: \[16\] -> \[8\]: refused.*allowed, had it been alone: frames"
    with pytest.raises(UserError, match=message):
        script("train").train(compose.compose([f"resume={run}", "network.hidden=[8]", "frames=900"]), run)
    assert (run / "config.yaml").read_text() == before


def test_a_run_that_its_changed_scenario_stopped_continues_without_the_kernel(script, tmp_path, monkeypatch) -> None:
    """A comparison in the run fails; `resume=RUN_DIR env.fast=off`, which the message names, goes on."""
    scenario, count = find_scenario("dispersion"), Recheck.count
    reward = scenario.reward

    def change(self: Recheck, rollout: bool) -> None:
        count(self, rollout)
        if self.checks == 2:  # at the start and in the first rollout
            monkeypatch.setattr(scenario, "reward", lambda *args: reward(*args) + 1.0)
            self.due = True

    monkeypatch.setattr(Recheck, "count", change)
    monkeypatch.setattr(Recheck, "affordable", lambda self: True)
    small = [*TINY, "env=vmas/dispersion", "env.scenario_kwargs={n_agents: 3}", "frames=400"]
    with pytest.raises(UserError, match="resume=RUN_DIR env.fast=off continues the run"):
        script("train").train(compose.compose([*small, "env.fast=kernel"]), tmp_path)
    done = checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")["iteration"]
    assert 1 <= done < 4
    script("train").train(compose.compose([f"resume={tmp_path}", "env.fast=off"]), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == 400
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(row["iteration"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


def test_init_from_starts_from_the_weights(run: Path) -> None:
    config = compose.check(compose.compose([*TINY, "seed=9", f"init_from={run}"]))
    task = build.build_task(config)
    saved = checkpoint_file.load(run / "checkpoints" / "last.pt")["loss"]
    assert all(torch.equal(value, saved[key]) for key, value in task.loss.state_dict().items())
    with pytest.raises(UserError, match="does not fit this task's networks"):
        build.build_task({**config, "network": {**config["network"], "hidden": [8]}})


def test_saved_configurations_take_overrides(run: Path, model: Path) -> None:
    cfg = compose.saved(run, ["algo=ippo", "env.scenario_kwargs.n_agents=4", "seed=3"])
    assert cfg.algo.critic == "local" and cfg.env.scenario_kwargs.n_agents == 4 and cfg.env.num_envs == 4
    assert compose.saved(model, ["experiment=threshold"]).epochs == 3
    for override, sentence in {
        "experiment=digits": "this run has experiment=threshold",
        "epochs=1,2": "cannot be swept over",
        "debug=fast_dev_run": "does not apply to a saved run",
        "epoch=3": "unknown key 'epoch'; did you mean 'epochs'",
        "hydra.run.dir=/elsewhere": "which stays",
    }.items():
        with pytest.raises(UserError, match=sentence):
            compose.saved(model, [override])


def test_a_supervised_run_returns_its_metric_and_is_evaluated(model: Path, script) -> None:
    summary = json.loads((model / "summary.json").read_text())
    module = script("evaluate")
    result = module.evaluate(*module.parse([f"ckpt={model}"]))
    assert summary["epochs"] == 3
    assert {key: result[key] for key in summary["final"]} == summary["final"]
    with pytest.raises(UserError, match="episodes=…: only agents play"):
        module.evaluate(*module.parse([f"ckpt={model}", "episodes=3"]))
    resumed = script("train").train(compose.compose([f"resume={model}", "epochs=5"]), model)
    assert resumed == pytest.approx(json.loads((model / "summary.json").read_text())["best"]["accuracy"])


def test_sweeps_have_a_folder_per_job(shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "train", "-m", "experiment=threshold", "epochs=1", "seed=0,1", "logger=csv")
    assert done.returncode == 0, done.stderr
    paths = sorted(tmp_path.glob("multirun/threshold/*/*/summary.json"))
    assert [json.loads(path.read_text())["seed"] for path in paths] == [0, 1]


def test_help_shows_groups_keys_and_examples(shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "train", "--help")
    assert done.returncode == 0
    for text in ("resume=RUN_DIR", "algo: apg, iddpg, ippo, iql", "num_envs", "-m seed=0,1,2"):
        assert text in done.stdout


def test_a_run_is_not_written_over(shell, tmp_path: Path) -> None:
    small = ["experiment=threshold", "epochs=1", "hydra.run.dir=run", "logger=csv"]
    assert shell(tmp_path, "train", *small).returncode == 0
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    done = shell(tmp_path, "train", *small, "seed=1")
    assert done.returncode == 2 and "run: holds a run already; resume=" in done.stderr, done.stderr
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    assert shell(tmp_path, "train", "resume=run", "epochs=2").returncode == 0


def test_a_refused_second_start_leaves_the_first_alone(shell, tmp_path: Path) -> None:
    """Two starts in one directory, and three in one second without a name, all in processes of their own."""
    arguments = [[f"seed={seed}", "hydra.run.dir=D"] for seed in (0, 1)] + [[f"seed={seed}"] for seed in (2, 3, 4)]
    short = ["experiment=threshold", "epochs=4", "logger=csv"]
    processes = shell.at_once(tmp_path, "train", *([*short, *extra] for extra in arguments))
    errors, codes = [process.stderr for process in processes], [process.returncode for process in processes]
    assert sorted(codes[:2]) == [0, 2] and codes[2:] == [0, 0, 0], errors
    refused = errors[codes[:2].index(2)]
    assert refused.startswith("error: ") and refused.count("\n") == 1
    assert "another process is training" in refused or "holds a run already" in refused
    winner = codes[:2].index(0)
    assert json.loads((tmp_path / "D" / "summary.json").read_text())["seed"] == winner
    seeds = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("outputs/threshold/*/summary.json")]
    assert sorted(seeds) == [2, 3, 4]


def test_a_mistaken_command_leaves_the_users_folder(shell, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("x: y\n")
    for overrides in (["seed=-1"], ["experiment=threshold"]):
        done = shell(tmp_path, "train", *overrides, "hydra.run.dir=d")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "config.yaml"]
    assert (tmp_path / "d" / "config.yaml").read_text() == "x: y\n"


def test_a_run_killed_while_kernels_are_compiled_starts_again(script, tmp_path: Path, monkeypatch, capsys) -> None:
    train, pid = script("train").train, os.fork()
    if pid == 0:
        build.build_task = lambda config: os.kill(os.getpid(), signal.SIGKILL)
        try:
            train(compose.compose(["experiment=threshold", "epochs=2"]), tmp_path)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    train(compose.compose([f"resume={tmp_path}"]), tmp_path)
    assert "no checkpoint yet: the run begins from scratch" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 2


@pytest.mark.parametrize(("every", "epochs"), [(10, 1), (0, 2)])
def test_a_run_killed_between_its_best_checkpoint_and_the_first_last_one_starts_again(
    every: int, epochs: int, script, tmp_path: Path, monkeypatch, capsys
) -> None:
    """As a worker of a sweep may be, when joblib ends all because one was killed."""
    train, pid = script("train").train, os.fork()
    small = [
        "experiment=threshold",
        f"epochs={epochs}",
        "trainer.evaluate_every=1",
        f"trainer.checkpoint_every={every}",
    ]
    if pid == 0:
        write = Checkpointer.write
        monkeypatch.setattr(
            Checkpointer, "write", lambda *a: os.kill(os.getpid(), signal.SIGKILL) if a[1] == "last" else write(*a)
        )
        try:
            train(compose.compose(small), tmp_path)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    best = (tmp_path / "checkpoints" / "best.pt").read_bytes()
    assert not (tmp_path / "checkpoints" / "last.pt").exists()
    train(compose.compose([f"resume={tmp_path}"]), tmp_path)
    assert "no checkpoint yet: the run begins from scratch" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "abandoned" / "best.pt").read_bytes() == best
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == epochs
    (tmp_path / "summary.json").unlink()
    for last in (tmp_path / "checkpoints").glob("last*"):
        last.unlink()
    if every:  # its best one may lie far behind what is lost
        with open(tmp_path / "metrics.csv", "a") as file:
            file.write("\n" * every)
        with pytest.raises(UserError, match="no checkpoint to go on from .* but best.pt is, and would be overwritten"):
            train(compose.compose([f"resume={tmp_path}"]), tmp_path)


def test_a_run_whose_directory_is_removed_says_so(script, tmp_path: Path) -> None:
    class Remove(Callback):
        def on_iteration(self, trainer, record):
            if trainer.iteration == 2:
                while trainer.run_dir.exists():  # TensorBoard's thread may put its file back meanwhile
                    shutil.rmtree(trainer.run_dir, ignore_errors=True)

    train, place = script("train").train, tmp_path / "run"
    with pytest.raises(UserError, match=f"{place}: was removed while the run trained .*resume={place} continues"):
        train(compose.compose(["experiment=threshold", "epochs=4"]), place, [Remove()])
    train(compose.compose([f"resume={place}"]), place)
    assert json.loads((place / "summary.json").read_text())["epochs"] == 4
    assert len((place / "metrics.csv").read_text().splitlines()) == 5
