"""Numbers that are not finite: named, skipped or restored from; never in a checkpoint."""

import pytest
import torch
from torch import nn

from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file
from marl.core.errors import Diverged, NonFinite, UserError
from marl.data import Sine
from marl.engine import non_finite
from marl.engine.trainer import Trainer
from marl.loggers.loggers import CSVLogger
from marl.networks import MLP
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised
from tests.marl.runs import make_task, rows, run


class Faulty(nn.MSELoss):
    """Squared errors that are not finite in chosen batches of training, or whose gradient is not."""

    def __init__(self, bad: set[int], value: float = float("nan"), gradient: bool = False) -> None:
        super().__init__()
        self.bad, self.value, self.gradient, self.count = bad, value, gradient, 0

    def forward(self, outputs, target):
        loss = super().forward(outputs, target)
        if not self.training:
            return loss
        self.count += 1
        if self.count - 1 not in self.bad:
            return loss
        # A finite loss with a gradient that is not: the root's slope at zero.
        return loss + (outputs.sum() * 0).sqrt() if self.gradient else loss * self.value


def faulty(bad, epochs=6, **kwargs):
    return make_task(epochs, batch_size=40, objective=Faulty(bad, **kwargs))  # four batches per epoch


def weights(task) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.loss.parameters()])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_run_stops_and_says_where(tmp_path, value):
    with pytest.raises(Diverged) as error:
        run(tmp_path, task=faulty({13}, value=value))  # in the fourth epoch
    message = str(error.value)
    assert message.startswith("iteration 4: loss is nan") and "of iteration 3: loss 0." in message
    assert "weight 'model" in message and error.value.exit_code == 3
    assert checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")["iteration"] == 3 and len(rows(tmp_path)) == 3


def test_data_is_named(tmp_path):
    task = make_task(3)
    task.loader.rows["x"][17] = float("nan")
    with pytest.raises(Diverged, match="row 17 of the training split has a value in 'x'"):
        run(tmp_path, task=task, evaluate_every=0)


@pytest.mark.parametrize(("name", "gradient"), [("Adam", False), ("Adam", True), ("RMSprop", False)])
def test_bad_minibatches_are_skipped_and_counted(tmp_path, name, gradient):
    task = faulty({1, 6, 7}, epochs=2, gradient=gradient)
    trainer_run(tmp_path / "skip", task, name, non_finite="skip")
    table = rows(tmp_path / "skip")
    assert [float(row["skipped_minibatches"]) for row in table] == [1, 2]
    assert torch.isfinite(weights(task)).all() and all(float(row["loss"]) < 10 for row in table)
    if not gradient:
        assert [float(row["finite"]) for row in table] == [0.75, 0.5]
        other = Without(faulty(set(), epochs=2), {1, 6, 7})
        trainer_run(tmp_path / "other", other.task, name)
        assert torch.equal(weights(other.task), weights(task))  # as if they had not been there


def trainer_run(path, task, name, **settings):
    trainer = Trainer(progress="off", evaluate_every=0, **settings)
    return trainer.fit(task, path, optimizer=OptimizerConfig(name, lr=0.01), loggers=[CSVLogger()])


class Without:
    """A task that leaves chosen batches out."""

    def __init__(self, task, gone: set[int]) -> None:
        self.task, batches, count = task, task.batches, iter(range(10**6))
        task.batches = lambda iteration: (batch for batch in batches(iteration) if next(count) not in gone)


def test_an_iteration_of_nothing_but_bad_minibatches_stops(tmp_path):
    with pytest.raises(Diverged, match="iteration 2: loss is nan"):
        trainer_run(tmp_path, faulty({4, 5, 6, 7}, epochs=3), "Adam", non_finite="skip")


def test_restoring_lowers_the_rates_and_leaves_no_gap(tmp_path, capsys):
    task = faulty({9})  # in the third of six epochs
    _, trainer = run(tmp_path, task=task, non_finite="restore", evaluate_every=0)
    assert "back to iteration 2, learning rates times 0.5" in capsys.readouterr().out
    assert trainer.run_state.restores == 1
    table = rows(tmp_path)
    assert [int(row["iteration"]) for row in table] == [1, 2, 3, 4, 5, 6]
    rates = [float(row["lr"]) for row in table]
    plain = [0.01 * left / 6 for left in (5, 4, 3, 2, 1, 0)]
    assert rates == pytest.approx([*plain[:2], *(rate / 2 for rate in plain[2:])])


def test_restoring_ends_when_it_does_not_help(tmp_path):
    with pytest.raises(Diverged, match="restored trainer.max_restores=2 times"):
        run(tmp_path, task=faulty(set(range(9, 99))), non_finite="restore", max_restores=2, evaluate_every=0)
    with pytest.raises(Diverged, match="there is no checkpoint yet to restore"):
        run(tmp_path / "early", task=faulty({0}), non_finite="restore", evaluate_every=0)


def unlucky(bad: set[int]):
    """A task that meets a number that is not finite while it collects, in chosen calls."""
    task, count = make_task(6, batch_size=40), iter(range(10**6))
    collect = task.collect

    def faulty(iteration):
        if next(count) in bad:
            raise NonFinite("observation of agent_0 is nan in environment 3, step 7 of the rollout")
        collect(iteration)

    task.collect = faulty
    return task


def test_a_number_that_is_not_finite_in_what_is_collected(tmp_path, capsys):
    for way in ("stop", "skip"):
        with pytest.raises(Diverged, match="iteration 3: observation of agent_0 is nan.*of iteration 2: loss") as error:
            run(tmp_path / way, task=unlucky({2}), non_finite=way)
        assert "restore goes on" in str(error.value) and error.value.exit_code == 3
        assert checkpoint_file.load(tmp_path / way / "checkpoints" / "last.pt")["iteration"] == 2
    _, trainer = run(tmp_path / "restore", task=unlucky({2}), non_finite="restore", evaluate_every=0)
    assert "back to iteration 2, learning rates times 0.5" in capsys.readouterr().out
    assert [int(row["iteration"]) for row in rows(tmp_path / "restore")] == [1, 2, 3, 4, 5, 6]


def test_lowered_rates_stay_lowered_in_a_longer_run(tmp_path):
    run(tmp_path, task=faulty({9}), non_finite="restore", evaluate_every=0)
    run(tmp_path, task=faulty(set(), epochs=12), resume=tmp_path / "checkpoints" / "last.pt", evaluate_every=0)
    rates = [float(row["lr"]) for row in rows(tmp_path)][6:]
    assert rates == pytest.approx([0.01 / 2 * left / 12 for left in (5, 4, 3, 2, 1, 0)])


class Break(Callback):
    """Makes a weight infinite behind the engine's back."""

    def on_iteration(self, trainer, record):
        if trainer.iteration == 2:
            with torch.no_grad():
                next(trainer.task.loss.parameters()).view(-1)[0] = float("inf")


def test_no_checkpoint_holds_a_weight_that_is_not_finite(tmp_path):
    with pytest.raises(Diverged, match="iteration 2: weight 'model.body.0.weight' is not finite; no checkpoint"):
        run(tmp_path, callbacks=[Break()])
    assert checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")["iteration"] == 1


@pytest.mark.parametrize("stages", [
    [{"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": 10}],
    [{"name": "CosineAnnealingLR", "T_max": 10}],
    [{"name": "ConstantLR", "factor": 1.0, "length": 3}, {"name": "ExponentialLR", "gamma": 0.9}],
    [{"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 11}],
])  # fmt: skip
def test_lowered_rates_stay_lower_for_the_rest_of_the_schedule(stages):
    rates = []
    for factor in (1.0, 0.25):
        layer = nn.Linear(2, 2)
        optimizer = OptimizerConfig(lr=0.1).build({"model": layer})
        schedule = ScheduleConfig(stages).build(optimizer, 10, 10)
        layer(torch.ones(2)).sum().backward()
        rates.append([])
        for step in range(9):
            if step == 4:
                non_finite.lower_rates(optimizer, schedule.scheduler, factor)
            optimizer.step()
            schedule.step("iteration")
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[1][:4] == rates[0][:4]
    assert rates[1][4:] == pytest.approx([rate / 4 for rate in rates[0][4:]])


class BlindAfter(nn.MSELoss):
    """Squared errors that are finite in training; evaluations count as nan or inf from number `first` on."""

    def __init__(self, first: int, value: float) -> None:
        super().__init__()
        self.left, self.value = first, value

    def forward(self, outputs, target):
        loss = super().forward(outputs, target)
        if self.training:
            return loss
        self.left -= 1
        return loss if self.left >= 0 else loss * self.value


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])  # the least of all losses is no best one
def test_a_run_without_a_finite_evaluation_says_so_and_fails(tmp_path, capsys, value):
    task = make_task(4, objective=BlindAfter(1, value))  # one: the check of what the objective takes
    with pytest.raises(Diverged, match=f"no evaluation was finite: at the end loss is {value}; there is no best.pt"):
        run(tmp_path, task=task)
    err = capsys.readouterr().err
    assert f"warning: iteration 2: the evaluation is not finite (loss is {value}" in err and "iteration 4" in err
    assert not (tmp_path / "checkpoints" / "best.pt").exists()
    assert (tmp_path / "checkpoints" / "last.pt").exists() and (tmp_path / "summary.json").exists()


def test_a_run_keeps_its_best_finite_evaluation(tmp_path, capsys):
    summary, trainer = run(tmp_path, task=make_task(4, objective=BlindAfter(3, float("-inf"))))
    assert trainer.best["iteration"] == summary["best"]["iteration"] == 2
    assert checkpoint_file.load(tmp_path / "checkpoints" / "best.pt")["iteration"] == 2
    assert "iteration 4: the evaluation is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_rows_of_any_data_set_are_finite(split):
    data = Sine(samples=50)
    getattr(data, split)["x"][7, 0] = float("inf")
    with pytest.raises(UserError, match=rf"x\[7, 0\] in {split} of data is inf; numbers must be finite"):
        Supervised(data, MLP, nn.MSELoss(), 1, 8)
    data = Sine(samples=50)
    rows = [(torch.zeros(1), torch.tensor([1.0]))] * 3 + [(torch.zeros(1), torch.tensor([float("nan")]))]
    setattr(data, split, rows)  # a map-style data set
    with pytest.raises(UserError, match=rf"y\[3, 0\] in {split} of data is nan"):
        Supervised(data, MLP, nn.MSELoss(), 1, 8)
