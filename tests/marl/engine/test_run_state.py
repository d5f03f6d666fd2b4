"""The owners of a run's state by themselves: counters, figures, updates, hooks of callbacks."""

import pytest
import torch

from marl.callbacks.base import Callback
from marl.core.errors import UserError
from marl.engine import spans
from marl.engine.run_metrics import RunMetrics
from marl.engine.run_state import RunState
from marl.engine.trainer import Trainer
from marl.engine.updater import UpdateConfig, Updater
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.task import Task
from tests.marl.runs import make_task, run


def test_a_state_goes_on_from_its_dictionary():
    state = RunState(10, "epochs", 3, "loss", "min")
    state.advance()
    state.note_evaluation({"loss": 2.0})
    assert state.improve() and state.best == {"value": 2.0, "iteration": 1, "evaluation": {"loss": 2.0}}
    state.note_evaluation({"loss": float("nan")})
    assert not state.improve()
    state.note_restore(2, 0.25)
    with state.clock("collect", torch.device("cpu")):
        pass
    state.stop("enough")
    other = RunState(10, "epochs", 3, "loss", "min")
    other.load_state_dict(state.state_dict())
    assert other.state_dict() == {**state.state_dict(), "evaluation": other.evaluation}
    assert other.units == 3 and other.ended and other.rate_factor == 0.25
    longer = RunState(20, "epochs", 3, "loss", "min")
    longer.load_state_dict(state.state_dict(), keep_stop_reason=False)
    assert not longer.ended and longer.stage_seconds() == {"collect": 0.0, "update": 0.0}


def test_an_older_state_had_lowered_no_rates():
    state = RunState(10, "epochs", 1, "loss", "min")
    content = state.state_dict()
    del content["lowered"]
    state.load_state_dict(content)
    assert state.rate_factor == 1.0


def test_figures_are_means_of_an_iteration_and_begin_again():
    metrics = RunMetrics()
    for _ in range(2):
        for value in (1.0, 3.0):
            metrics.add_batch({"loss": torch.tensor(value)})
            metrics.add_step(torch.tensor(2 * value))
        assert metrics.take({"own": 5.0, "there": torch.tensor(7)}) == {
            "loss": 2.0, "grad_norm": 4.0, "own": 5.0, "there": 7.0
        }  # fmt: skip
    assert metrics.names == ("loss", "grad_norm")


def test_minibatches_that_are_not_finite_are_left_out_of_means():
    metrics = RunMetrics(mask_non_finite=True)
    for value in (1.0, float("nan")):
        metrics.add_batch({"loss": torch.tensor(value)})
    metrics.add_step(torch.tensor(1.0))
    metrics.add_skipped(torch.tensor(False))
    figures = metrics.take({})
    assert figures["loss"] == 1.0 and figures["finite"] == 0.5 and figures["skipped_minibatches"] == 1.0


def test_an_updater_trains_without_a_trainer_and_goes_on_from_its_dictionary():
    weights = []
    for cut in (False, True):
        task = make_task(epochs=4)
        updater = Updater(task, OptimizerConfig(lr=0.01), ScheduleConfig(), UpdateConfig(average="ema"))
        for epoch in range(4):
            if cut and epoch == 2:
                saved, state = task.loss.state_dict(), updater.state_dict()
                task = make_task(epochs=4)
                task.loss.load_state_dict(saved)
                updater = Updater(task, OptimizerConfig(lr=0.01), ScheduleConfig(), UpdateConfig(average="ema"))
                updater.load_state_dict(state, iterations=4, rate_factor=1.0)
            updater.begin_iteration(epoch)
            for batch in task.batches(epoch):
                updater.update(batch)
            updater.flush()
            updater.end_iteration(epoch + 1, updater.metrics.take({}))
        weights.append([p.detach() for p in updater.averaging.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Wrapping(Callback):
    """Trains another task than it is given, and makes errors of an update clearer."""

    def __init__(self, other: Task) -> None:
        self.other = other

    def wrap_task(self, task):
        return self.other

    def on_error(self, trainer, error):
        raise UserError(f"iteration {trainer.iteration}: {error}") from error


def test_callbacks_may_put_another_task_in_place_and_word_errors(tmp_path):
    first, second = make_task(epochs=2), make_task(epochs=2)
    _, trainer = run(tmp_path, task=first, callbacks=[Wrapping(second)])
    assert trainer.task is second and not torch.equal(first.loss.model.head.weight, second.loss.model.head.weight)

    def broken(batch):
        raise RuntimeError("no forward pass")

    second = make_task(epochs=2)
    second.loss.forward = broken
    with pytest.raises(UserError, match="iteration 0: no forward pass"):
        run(tmp_path / "broken", task=first, callbacks=[Wrapping(second)], capture=False)


def test_spans_cost_nothing_until_they_are_asked_for():
    assert spans.span("a") is spans.span("b")
    spans.record(True)
    try:
        assert spans.span("a") is not spans.span("a")
    finally:
        spans.record(False)


def test_a_second_fit_of_a_trainer_begins_from_its_settings(tmp_path):
    trainer, task = Trainer(progress="off"), make_task(epochs=1)
    for name in ("one", "two"):
        trainer.fit(task, tmp_path / name)
        assert trainer.iteration == 1 and trainer.monitor == "loss"
        trainer.judge_by("other", "max")
