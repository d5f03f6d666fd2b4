"""Resuming: what may change, what may not, a longer run, damaged checkpoints, logs without gaps or doubles."""

import csv
import dataclasses
import errno
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.algorithms.ppo import PPO
from agents.models.architecture import Architecture
from marl.callbacks.base import Callback
from marl.callbacks.early_stopping import EarlyStopping
from marl.checkpoints import checkpoint_file, resume
from marl.core.errors import UserError
from marl.launch import build
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from tests.marl.runs import StopAfter, rows, run

OLD = {
    "seed": 0,
    "frames": 100,
    "env": {"_target_": "envs.vmas.env.VmasEnv", "num_envs": 4, "scenario_kwargs": {"n": 3}},
    "algo": {"_target_": "agents.algorithms.ppo.PPO", "gamma": 0.9, "critic": "local"},
    "task": {"_target_": "agents.tasks.on_policy.OnPolicy", "eval_episodes": 5, "batch_size": 64},
    "network": {"hidden": [8]},
    "trainer": {"max_iterations": None},
    "paths": {"run_dir": "here"},
}


class Killed(Callback):
    """Dies after the first iteration, without a checkpoint."""

    def on_iteration(self, trainer, record):
        raise KeyboardInterrupt


def change(**keys) -> dict:
    """OLD with dotted keys changed (two underscores for a dot)."""
    new = {key: dict(value) if isinstance(value, dict) else value for key, value in OLD.items()}
    for key, value in keys.items():
        group, _, rest = key.partition("__")
        if rest:
            new[group][rest] = value
        else:
            new[group] = value
    return new


def test_differences_are_reported_key_by_key():
    new = change(frames=200, paths__run_dir="there", algo__gamma=0.95, algo__epochs=3, trainer__max_iterations=7)
    assert resume.compare(OLD, OLD) == []
    lines = resume.compare(new, OLD)
    assert lines == [
        "frames: 100 -> 200",
        "algo.gamma: 0.9 -> 0.95",
        "algo.epochs: null -> 3",
        "trainer.max_iterations: null -> 7",
    ]
    gone = {key: value for key, value in OLD.items() if key != "frames"}
    assert resume.compare(gone, OLD) == ["frames: 100 -> null"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"env__num_envs": 8}, "env.num_envs: 4 -> 8"),
        ({"env__scenario_kwargs": {"n": 4}}, "env.scenario_kwargs.n: 3 -> 4"),
        ({"network__hidden": [8, 8]}, r"network.hidden: \[8\] -> \[8, 8\]"),
        ({"algo__critic": "concat"}, "algo.critic: local -> concat"),
        ({"algo__prune_state": True}, "algo.prune_state: null -> true"),
        ({"task__batch_size": 32}, "task.batch_size: 64 -> 32"),
        ({"optimizer": {"lr": 1}}, 'optimizer: null -> {"lr": 1}'),
    ],
)
def test_what_would_contradict_the_checkpoint_is_refused(keys, line):
    with pytest.raises(UserError, match=f"resume=…: {line}: refused.*init_from") as error:
        resume.compare(change(**keys, frames=7), OLD)
    assert "allowed, had it been alone: frames: 100 -> 7" in str(error.value)


def test_evaluation_may_change():
    assert resume.compare(change(task__eval_episodes=9), OLD) == ["task.eval_episodes: 5 -> 9"]


def test_workers_may_change_since_they_change_no_number():
    supervised = {**OLD, "task": {**OLD["task"], "_target_": "marl.supervised.task.Supervised"}}
    for group in ("task", "env"):
        changed = {**supervised, group: {**supervised[group], "workers": 2}}
        assert resume.compare(changed, supervised) == [f"{group}.workers: null -> 2"]


def test_every_setting_that_shapes_networks_is_kept():
    for each in dataclasses.fields(Architecture):
        assert PPO.keeps_on_resume(each.name) == (each.name not in ("value_norm_beta", "observation_limit")), each.name
    assert PPO.keeps_on_resume("rollout_steps") and not PPO.keeps_on_resume("gamma")


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=4)
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-200])
    content = resume.resumed({"resume": str(tmp_path)}, tmp_path)
    assert content["iteration"] == 3 and "last.pt cannot be read" in capsys.readouterr().err
    _, resumed = run(tmp_path, resume=content)
    _, whole = run(tmp_path / "whole")
    assert rows(tmp_path) == rows(tmp_path / "whole")
    assert resume.resumed({"resume": None}, tmp_path) is None
    assert resume.resumed({"resume": str(tmp_path)}, tmp_path / "empty") is None
    assert "begins from scratch" in capsys.readouterr().out


def test_a_checkpoint_of_a_newer_format_is_refused_by_name_and_stays(tmp_path, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=4)
    folder = tmp_path / "checkpoints"
    content = checkpoint_file.load(folder / "last.pt")
    monkeypatch.setattr(checkpoint_file, "FORMAT_VERSION", checkpoint_file.FORMAT_VERSION + 1)
    checkpoint_file.save(folder / "last.pt", {key: value for key, value in content.items() if key != "format_version"})
    monkeypatch.undo()
    for named in (tmp_path, folder / "last.pt", folder / "last-1.pt"):
        with pytest.raises(UserError, match=r"last.pt has format 3, of a newer version; this one reads 2"):
            resume.resumed({"resume": str(named)}, tmp_path)
    assert not list(folder.glob("*.damaged")) and not list(folder.glob("abandoned")) and not capsys.readouterr().err


def test_a_checkpoint_out_of_reach_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=4)
    refused = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(refused))
    with pytest.raises(UserError, match="last.pt cannot be read: Too many open files"):
        resume.resumed({"resume": str(tmp_path)}, tmp_path)
    assert (tmp_path / "checkpoints" / "last.pt").is_file()


def test_a_run_whose_checkpoints_are_gone_is_not_written_over(tmp_path):
    run(tmp_path)
    for path in (tmp_path / "checkpoints").glob("last*"):
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint to go on from.*summary.json is, and would be overwritten"):
        resume.resumed({"resume": str(tmp_path)}, tmp_path)


def test_going_back_to_an_earlier_file_leaves_the_later_ones_behind(tmp_path, capsys):
    run(tmp_path, keep_every=2)
    folder = tmp_path / "checkpoints"
    assert checkpoint_file.load(folder / "last.pt")["iteration"] == 6
    content = resume.resumed({"resume": str(folder / "iteration_2.pt")}, tmp_path)
    assert content["iteration"] == 2 and "iteration_4.pt, of a later iteration: moved to" in capsys.readouterr().out
    gone = {path.name for path in (folder / "abandoned").glob("*.pt")}
    assert {"last.pt", "iteration_4.pt", "iteration_6.pt"} <= gone
    assert (content["best"] is None) == ("best.pt" in gone) == (not (folder / "best.pt").exists())
    with pytest.raises(KeyboardInterrupt):  # killed before the next checkpoint: it goes on from there again
        run(tmp_path, resume=content, checkpoint_every=0, evaluate_every=0, callbacks=[Killed()])
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert checkpoint_file.newest(tmp_path)[1]["iteration"] == 2
    run(tmp_path, resume=checkpoint_file.newest(tmp_path)[1])
    run(tmp_path / "whole")
    assert rows(tmp_path) == rows(tmp_path / "whole")


def test_callbacks_may_change(tmp_path):
    run(tmp_path, callbacks=[EarlyStopping(patience=50)], epochs=4)
    last = tmp_path / "checkpoints" / "last.pt"
    stopper, other = EarlyStopping(patience=60), EarlyStopping(patience=70)
    run(tmp_path, callbacks=[StopAfter(99), stopper, other], epochs=8, resume=last)
    assert stopper.state_dict() != EarlyStopping(patience=60).state_dict()
    content = checkpoint_file.load(last)
    assert sum("EarlyStopping" in name for name in content["callbacks"]) == 2


def test_a_checkpoint_from_before_callbacks_had_names_goes_on(tmp_path):
    run(tmp_path, callbacks=[EarlyStopping(patience=50)], epochs=4)
    content = checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")
    content["callbacks"] = list(content["callbacks"].values())
    del content["lowered"]
    stopper = EarlyStopping(patience=50)
    run(tmp_path, callbacks=[stopper], epochs=4, resume=content)
    assert stopper.best is not None


def test_what_a_schedule_by_steps_is_laid_over_may_not_change():
    old = {**OLD, "scheduler": {"interval": "step"}}
    new = {**change(algo__epochs=3), "scheduler": {"interval": "step"}}
    with pytest.raises(UserError, match="algo.epochs: null -> 3: refused"):
        resume.compare(new, old)


def test_restarted_by_torchrun_or_slurm(tmp_path, monkeypatch):
    run(tmp_path, max_iterations=2)
    for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "0")
        assert resume.resumed({"resume": None}, tmp_path) is None
        monkeypatch.setenv(name, "1")
        assert resume.resumed({"resume": None}, tmp_path)["iteration"] == 2
        monkeypatch.delenv(name)


def test_a_file_can_be_named(tmp_path):
    run(tmp_path, keep_every=2)
    content = resume.resumed({"resume": str(tmp_path / "checkpoints" / "iteration_2.pt")}, tmp_path)
    assert content["iteration"] == 2


def test_logs_of_a_killed_run_are_cut_back(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=5)
    last = checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")
    path = tmp_path / "checkpoints" / "iteration_3.pt"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", stop_after=3)
    path.write_bytes((tmp_path / "other" / "checkpoints" / "last.pt").read_bytes())
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("1")  # a row that the kill cut short: it must not be taken for iteration 1
    run(tmp_path, resume=path)
    run(tmp_path / "whole")
    assert last["iteration"] == 5 and rows(tmp_path) == rows(tmp_path / "whole")
    for folder in (tmp_path, tmp_path / "whole"):
        events = EventAccumulator(str(folder))
        events.Reload()
        assert [point.step for point in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_before_its_first_checkpoint_logs_nothing_twice(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=2)
    run(tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6] and len(rows(tmp_path)) == 6


def test_a_finished_run_is_extended(tmp_path):
    run(tmp_path, epochs=6)
    summary, _ = run(tmp_path, epochs=12, resume=tmp_path / "checkpoints" / "last.pt")
    assert summary["epochs"] == 12 and [int(row["iteration"]) for row in rows(tmp_path)] == list(range(1, 13))
    rates = [float(row["lr"]) for row in rows(tmp_path)]
    # The schedule is laid over the longer run: it goes on from where a run of 12 would be, not from zero.
    assert rates[:6] == pytest.approx([0.01 * left / 6 for left in (5, 4, 3, 2, 1, 0)])
    assert rates[6:] == pytest.approx([0.01 * left / 12 for left in (5, 4, 3, 2, 1, 0)])


def test_a_finished_run_stays_finished(tmp_path):
    first, _ = run(tmp_path)
    again, _ = run(tmp_path, resume=tmp_path / "checkpoints" / "last.pt")
    assert again["final"] == first["final"] and again["epochs"] == first["epochs"] and len(rows(tmp_path)) == 6


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    def stopping():
        return EarlyStopping(patience=2, min_delta=1e9)

    run(tmp_path, epochs=100, callbacks=[stopping()], evaluate_every=1)
    last = tmp_path / "checkpoints" / "last.pt"
    again, _ = run(tmp_path, epochs=100, callbacks=[stopping()], evaluate_every=1, resume=last)
    assert again["epochs"] == 3 and "not improved" in again["stopped"]
    longer, _ = run(tmp_path, epochs=101, callbacks=[stopping()], evaluate_every=1, resume=last)
    assert longer["epochs"] == 4  # asked to go on: it does, until the next evaluation


@pytest.mark.parametrize("stages", [
    [{"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": "total"}],
    [{"name": "CosineAnnealingLR", "T_max": "total"}],
    [{"name": "OneCycleLR", "max_lr": 0.1, "total_steps": "total"}],
    [{"name": "ConstantLR", "factor": 1, "length": 3}, {"name": "LinearLR", "end_factor": 0, "total_iters": "total"}],
])  # fmt: skip
def test_a_replayed_schedule_goes_on_like_one_of_that_length(stages):
    def build(total):
        layer = torch.nn.Linear(2, 2)
        optimizer = OptimizerConfig(lr=0.1).build({"model": layer})
        layer(torch.ones(2)).sum().backward()
        return optimizer, ScheduleConfig(stages).build(optimizer, total, total)

    def walk(optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.step()
            schedule.step("iteration")
        return optimizer.param_groups[0]["lr"]

    short, long, laid = build(10), build(20), build(20)
    walk(*short, 6)
    groups = laid[1].replay(short[1].state_dict())
    laid[0].load_state_dict(short[0].state_dict())
    laid[0].param_groups[0].update(groups[0])
    walk(*long, 6)
    for _ in range(10):
        assert walk(*laid, 1) == pytest.approx(walk(*long, 1))


def test_a_torn_table_has_whole_rows_only(tmp_path):
    from marl.loggers.loggers import CSVLogger

    (tmp_path / "metrics.csv").write_text("iteration,loss\n1,0.5\n2,0.4\n3,0")
    logger = CSVLogger()
    logger.open(tmp_path, {}, 3, 3)
    logger.close()
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"iteration": "1", "loss": "0.5"}, {"iteration": "2", "loss": "0.4"}]


@pytest.mark.parametrize("every", [0, 1, 3])
def test_evaluation_does_not_change_training(tmp_path, every):
    _, trainer = run(tmp_path, evaluate_every=every)
    _, other = run(tmp_path / "other", evaluate_every=2)
    weights = [torch.cat([p.flatten() for p in t.task.loss.parameters()]) for t in (trainer, other)]
    assert torch.equal(*weights)


def test_deterministic_algorithms_give_the_same_bits(tmp_path):
    try:
        build.configure_process(deterministic=True)
        losses = [run(tmp_path / str(i))[0]["final"]["loss"] for i in range(2)]
        assert torch.are_deterministic_algorithms_enabled() and losses[0] == losses[1]
    finally:
        build.configure_process()
    assert not torch.are_deterministic_algorithms_enabled()


def test_stop_after_leaves_what_a_kill_leaves(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[StopAfter(2)])
    assert not (tmp_path / "summary.json").exists()
