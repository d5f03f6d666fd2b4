"""Bad configurations: one sentence, exit code 2, nothing started and nothing left behind."""

import os
import sys

import pytest

from marl.config import compose
from marl.core import lock
from marl.launch import cli, run

# (overrides, what the sentence must contain)
MISTAKES = [
    (["env.num_envs=4", "algo.rollout_steps=9", "algo.minibatch_size=37"], ["algo.minibatch_size=37", "at most 36"]),
    (["algo.policy=categorical"], ["algo.policy=categorical", "continuous", "tanh_normal"]),
    (["env.continuous_actions=false", "algo.policy=tanh_normal"], ["algo.policy=tanh_normal", "categorical"]),
    (["env.scenario=balanc"], ["env.scenario", "balanc", "balance"]),
    (["env.scenario=my_project.Scenario"], ["my_project"]),
    (["env.scenario_kwargs.n_agnts=3"], ["n_agnts", "n_agents"]),
    (["algo.critic=state"], ["algo.critic=state", "global state"]),
    (["network=cnn"], ["network=cnn", "images"]),
    (["optimizer.lr=-0.1"], ["optimizer.lr=-0.1", "greater than 0"]),
    (["optimizer.name=Adamm"], ["optimizer.name", "Adamm", "AdamW"]),
    (["optimizer.freeze=[acter]"], ["optimizer.freeze", "acter", "actor, critic"]),
    (["trainer.precision=fp16", "device=cpu"], ["trainer.precision", "fp16", "fp32 and bf16"]),
    (["trainer.precision=tf32", "device=cpu"], ["trainer.precision", "tf32", "fp32 and bf16"]),
    (["scheduler.stages=[{name: CosineLR}]"], ["scheduler.stages.0.name", "CosineLR", "CosineAnnealingLR"]),
    (["trainer.precision=fp8"], ["trainer.precision=fp8", "'fp16'"]),
    (["device=cuda:7"], ["device=cuda:7", "cpu"]),
    (["device=gpu"], ["device=gpu", "auto, cpu, cuda"]),
    (["algo.gamma=high"], ["algo.gamma=high", "a number"]),
    (["algo.gama=0.9"], ["algo.gama", "did you mean 'gamma'"]),
    (["algo=mapo"], ["algo=mapo", "did you mean 'mappo'"]),
    (["env.num_envs=4", "algo.rollout_steps=9", "algo.minibatch_size=9", "frames=35"], ["frames=35", "at least 36"]),
    (["frames=null"], ["frames=null", "OnPolicy needs a value"]),
    (["task=supervised"], ["data=null", "digits"]),
    (["experiment=digits", "task.batch_size=100000"], ["task.batch_size=100000", "at most"]),
    (["experiment=sine", "objective=cross_entropy"], ["objective=CrossEntropy", "regression"]),
    (["resume=no/such/run"], ["no/such/run", "config.yaml"]),
    (["init_from=no/such/run"], ["no/such/run", "checkpoint"]),
    (["ckpt=no/such/run"], ["ckpt", "scripts/evaluate.py"]),
    (["algo=mappo,ippo"], ["algo=mappo,ippo", "-m runs one job per value"]),
    (["hydra.launcher.n_jobs=2"], ["hydra.launcher.n_jobs", "hydra/launcher=joblib has n_jobs"]),
    (["hydra/launcher=basik"], ["hydra/launcher=basik: no such option; did you mean 'basic'? (there are basic"]),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_train_refuses_in_one_sentence(overrides, words, script, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as stop, cli.guard():
        script("train").train(compose.compose(overrides), tmp_path)
    printed, error = capsys.readouterr()
    assert stop.value.code == 2 and printed == ""  # told before the configuration is shown
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error
    assert {path.name for path in tmp_path.iterdir()} <= {lock.RUN}


def test_a_command_leaves_the_environment_as_it_was(script, monkeypatch, capsys) -> None:
    """What a later command of this process inherits; HYDRA_FULL_ERROR=1 would give it tracebacks."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "algo=mapo"])
    before = dict(os.environ)
    with pytest.raises(SystemExit):
        run.run(script("train").train)
    assert dict(os.environ) == before and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ckpt=no/such/run"], ["no/such/run"]),
        (["episodes=3"], ["ckpt=RUN_DIR is needed"]),
        (["ckp=out/a"], ["ckpt=RUN_DIR is needed; did you mean 'ckpt=out/a'?"]),
        (["."], ["ckpt=RUN_DIR is needed; did you mean 'ckpt=.'?"]),
        (["ckpt=x", "which=newest"], ["which=newest", "'last' or 'best'"]),
        (["ckpt=x", "episodes=0"], ["episodes=0", "at least 1"]),
    ],
)
def test_evaluate_refuses_in_one_sentence(arguments, words, script, capsys) -> None:
    module = script("evaluate")
    with pytest.raises(SystemExit) as stop, cli.guard():
        module.evaluate(*module.parse(arguments))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["env.scenario=balanc"],
        ["algo.gama=0.9"],
        ["-m", "seed=-1,-2"],
    ],
    ids=" ".join,
)
def test_the_command_line_exits_2_without_a_traceback_or_litter(arguments, shell, tmp_path) -> None:
    done = shell(tmp_path, "train", *arguments, "hydra.run.dir=run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_debugging_shows_the_traceback_too(shell, tmp_path) -> None:
    done = shell(tmp_path, "train", "debug=fast_dev_run", "seed=-1")
    assert done.returncode == 2 and "Traceback" in done.stderr and "error: seed=-1" in done.stderr
