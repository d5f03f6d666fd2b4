"""Callbacks that look for what is wrong: the layer a NaN comes from, one minibatch learnt by heart, histograms."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from marl.callbacks.base import Callback
from marl.core.errors import Diverged, UserError
from marl.engine.run_view import RunView
from marl.inspection.features import features, leaves, named, output_of
from marl.loggers.loggers import TensorBoardLogger
from marl.task import Task


@dataclass
class Anomaly(Callback):
    """Names the first layer whose output or gradient is not finite, and ends the run there (Diverged).

    Every layer's output is looked at as it comes, and the gradient that comes back to it; for what lies between layers
    there is torch's anomaly detection (`torch.autograd.set_detect_anomaly`), which shows the line of the forward pass.
    Slow.
    """

    handles: list = field(default_factory=list, init=False)
    last: str = field(default="the loss", init=False)  # the layer that a gradient has reached

    def on_start(self, trainer: RunView) -> None:
        torch.autograd.set_detect_anomaly(True)
        loss = trainer.task.loss
        self.handles = [each.register_forward_hook(self._watch(name)) for name, each in leaves(loss).items()]
        self.handles.append(loss.register_forward_hook(self._total))

    def on_error(self, trainer: RunView, error: RuntimeError) -> None:
        if "returned nan values" in str(error):
            message = f"debug=anomaly: {error} It lies in the backward pass of {self.last} or of what feeds it"
            raise Diverged(f"{message}; the traceback above shows the line of the forward pass") from error

    def on_end(self, trainer: RunView) -> None:
        torch.autograd.set_detect_anomaly(False)
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _watch(self, name: str):
        def gradient(grad: Tensor) -> None:
            if not torch.isfinite(grad).all():
                raise Diverged(
                    f"debug=anomaly: the gradient that comes back to layer '{name}' {count(grad)}; "
                    f"that of {self.last}, after it, was finite"
                )
            self.last = f"layer '{name}'"

        def hook(layer: nn.Module, inputs: tuple, output: Any) -> None:
            self.last = "the loss"
            tensor = output_of(output)
            if tensor is None or not tensor.is_floating_point():
                return
            if not torch.isfinite(tensor).all():
                raise Diverged(
                    f"debug=anomaly: the output of layer '{name}' ({type(layer).__name__}) {count(tensor)}; "
                    f"{cause(layer, inputs)}"
                )
            if tensor.requires_grad:
                tensor.register_hook(gradient)

        return hook

    @staticmethod
    def _total(module: nn.Module, inputs: tuple, output: dict) -> None:
        for name, value in output.items():
            if not torch.isfinite(value).all():
                raise Diverged(f"debug=anomaly: {name} is {value.item()}, from outputs of layers that are all finite")


def count(tensor: Tensor) -> str:
    """How many numbers of a tensor are NaN or infinite, in words."""
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    return f"holds {nan} NaN and {infinite} infinite of {tensor.numel()} numbers"


def cause(layer: nn.Module, inputs: tuple) -> str:
    """Where a layer's bad output comes from: its inputs, its weights, or itself."""
    for value in inputs:
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            return f"its input {count(value)}"
    for name, weight in layer.named_parameters():
        if not torch.isfinite(weight).all():
            return f"its {name} {count(weight)}"
    return "its inputs and weights are finite"


class OneMinibatch:
    """A task around another one: its first minibatch is all there is, to train on and to be judged by.

    Everything else is that of the task inside.
    """

    def __init__(self, task: Task, repeats: int) -> None:
        self.task, self.repeats = task, repeats
        self.batch: TensorDict | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def take(self, iteration: int) -> None:
        """Collect once, and keep the first minibatch. Raises UserError where there is none."""
        self.task.collect(iteration)
        batch = next(iter(self.task.batches(iteration)), None)
        if batch is None:
            raise UserError("debug=overfit: the first iteration has no minibatch; a replay buffer needs algo.prefill=0")
        self.batch = batch.clone()

    def collect(self, iteration: int) -> None:
        """Nothing: the minibatch is there."""

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """The minibatch, again and again."""
        for _ in range(self.repeats):
            yield self.batch

    def whole_epochs(self, iteration: int) -> None:
        """None: there is the minibatch only."""
        return

    def evaluate(self) -> dict[str, float]:
        """The loss module's figures of the minibatch."""
        with torch.no_grad(), torch.random.fork_rng():
            return {name: value.item() for name, value in self.task.loss(self.batch).items()}

    def summary(self, metrics: dict[str, float]) -> dict:
        """The figures as they are."""
        return dict(metrics)


@dataclass
class Overfit(Callback):
    """Trains on one and the same minibatch, which any sound model and loss learn by heart: `figure` goes to nearly 0.

    The first minibatch of the data (RL: of one rollout, collected once) is all there is; evaluations are of it.
    Dropout, label smoothing, weight decay and the schedule, which would stand in the way, are switched off. The run
    ends when the figure is below `target` times its first value; it fails (UserError) where it never gets there.

    Args:
        figure: what is to vanish; null: value_loss for agents, else loss.
        target: share of its first value at which it counts as learnt.
        steps: optimiser steps per iteration.
    """

    figure: str | None = None
    target: Annotated[float, Field(gt=0, lt=1)] = 0.01
    steps: Annotated[int, Field(ge=1)] = 20
    first: float | None = field(default=None, init=False)

    def wrap_task(self, task: Task) -> OneMinibatch:
        if not task.repeatable:
            kind = type(task).__name__
            raise UserError(f"debug=overfit: trains on one minibatch, whose loss {kind} can compute once only")
        self.minibatch = OneMinibatch(task, self.steps)
        return self.minibatch

    def on_start(self, trainer: RunView) -> None:
        self.minibatch.take(trainer.iteration)
        disable_regularization(trainer.task.loss)
        trainer.updater.fix_rates()
        figures = self.minibatch.evaluate()
        self.figure = self.figure or ("value_loss" if "value_loss" in figures else "loss")
        if self.figure not in figures:
            raise UserError(f"callbacks.overfit.figure={self.figure}: the loss has {', '.join(figures)}")
        self.first = figures[self.figure]
        trainer.judge_by(self.figure, "min")

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        assert self.first is not None  # `on_start` came before
        now, steps = record[self.figure], trainer.iteration * self.steps
        message = f"{self.figure} of one minibatch: {self.first:.4g} -> {now:.4g} after {steps} steps"
        if abs(now) <= self.target * abs(self.first):
            trainer.run_state.note_evaluation(self.minibatch.evaluate())  # for the summary: the loop ends here
            trainer.stop(f"learnt by heart, {message}")
        elif trainer.iteration >= trainer.iterations:
            raise UserError(
                f"debug=overfit: {message}, not {self.target:.2g} of it; a model and loss that are sound get there "
                "with another optimizer.lr or a larger trainer.max_iterations"
            )


def disable_regularization(loss: nn.Module) -> None:
    """Switch off in place what keeps a model from learning by heart: dropout and label smoothing."""
    for module in loss.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
        if getattr(module, "label_smoothing", 0):
            setattr(module, "label_smoothing", 0.0)  # noqa: B010 - torch declares attributes of modules as tensors


@dataclass
class Histograms(Callback):
    """Histograms of activations, weights and gradients of every layer in TensorBoard, of the latest minibatch.

    A pass of their own in evaluation mode, after the iteration: neither weights nor random streams of training see it.

    Args:
        every: iterations between histograms.
        layers: names or patterns of layers (`*` as in file names); null: all.
    """

    every: Annotated[int, Field(ge=1)] = 10
    layers: list[str] | None = None
    batch: TensorDict | None = field(default=None, init=False)

    def on_start(self, trainer: RunView) -> None:
        self.writers = [logger.writer for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not self.writers:
            raise UserError("callbacks.histograms: they are shown by TensorBoard; use logger=default or tensorboard")
        if self.layers is not None:
            named(trainer.task.loss, self.layers, "callbacks.histograms.layers")
        self.handle = trainer.task.loss.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple) -> None:
        if module.training and torch.is_grad_enabled():
            self.batch = inputs[0]

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        if trainer.iteration % self.every == 0 and self.batch is not None:
            for name, values in histograms(trainer.task.loss, self.batch, self.layers).items():
                for writer in self.writers:
                    writer.add_histogram(name, values, trainer.units)

    def on_end(self, trainer: RunView) -> None:
        self.handle.remove()
        self.batch = None


def histograms(loss: nn.Module, batch: TensorDict, layers: list[str] | None = None) -> dict[str, Tensor]:
    """{"activations/LAYER", "weights/NAME", "gradients/NAME": finite numbers} of one minibatch; leaves no gradients."""
    training = loss.training
    loss.eval()
    try:
        with torch.random.fork_rng(), features(loss, leaves(loss) if layers is None else layers) as activations:
            loss(batch)["loss"].backward()
        values = {f"activations/{name}": value.detach() for name, value in activations.items()}
        for name, parameter in loss.named_parameters():
            if layers is None or any(name.startswith(f"{layer}.") for layer in activations):
                values[f"weights/{name}"] = parameter.detach()
                if parameter.grad is not None:
                    values[f"gradients/{name}"] = parameter.grad
        return {name: value[torch.isfinite(value)].float().cpu() for name, value in values.items() if value.numel()}
    finally:
        loss.train(training)
        for parameter in loss.parameters():
            parameter.grad = None
