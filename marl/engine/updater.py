"""What turns minibatches into steps: the loss, its gradients, and the optimiser with all that belongs to it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from marl.callbacks.base import expect
from marl.capture.captured_loss import CapturedLoss, can_be_captured, can_be_graphed
from marl.core import distributed
from marl.core.errors import UserError
from marl.data.epoch import Epoch
from marl.engine import activation_checkpointing, non_finite
from marl.engine.device_update import DeviceUpdate, device_rates
from marl.engine.run_metrics import RunMetrics
from marl.engine.spans import span
from marl.engine.update_config import UpdateConfig, check
from marl.optim.fused_adam import build_fused_step
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig, clip_gradients, unfreeze_due
from marl.optim.weight_averaging import Averaging
from marl.task import Task

MOST = 32  # minibatches of a graph: of more, capturing takes long, and the launches of few cost nothing
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Updater:
    """Optimiser, schedule, scaler, autocast, clipping, average of the weights and captured loss of one run.

    Args:
        task: whose loss is trained.
        optimizer, schedule: how.
        config: settings of the updates.
        max_iterations: length of the run; None: the task's own.
        mode: what is better of the figure that a plateau schedule watches; None: as the task's monitor has it.

    Attributes:
        metrics: sums of what the loss gave in this iteration.
        pending: minibatches whose gradients wait for a step.
        averaging: the average of the weights; None where none is kept.
        captured: what replays the loss; None where it runs as it is.

    Raises:
        UserError: settings contradict one another, the task or the device.
    """

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        config: UpdateConfig,
        max_iterations: int | None = None,
        mode: str | None = None,
    ) -> None:
        self.config, self.module = config, task.loss
        self.iterations = max_iterations or task.iterations
        self.device = next(task.loss.parameters()).device
        check(task, optimizer, config, self.iterations, self.device)
        parts = task.parts()
        self.optimizer = optimizer.build(parts)
        searches = isinstance(self.optimizer, torch.optim.LBFGS)
        if searches and (config.precision == "fp16" or config.non_finite == "skip"):
            raise UserError("optimizer.name='LBFGS': cannot go with trainer.precision=fp16 or trainer.non_finite=skip")
        if searches and not task.repeatable:
            raise UserError("optimizer.name='LBFGS': computes a minibatch's loss again, which this algorithm cannot")
        steps = self.iterations * -(-task.steps_per_iteration // config.accumulate)
        self.schedule = schedule.build(self.optimizer, self.iterations, steps, mode or task.monitor[1])
        figure, names = self.schedule.monitor or "", None
        if figure.startswith("eval/") and (names := task.figure_names()) is not None:
            expect({f"eval/{name}" for name in names}, figure, "scheduler.monitor")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        # Entering autocast costs as much as a small layer, so fp32 does without.
        autocast = partial(torch.autocast, self.device.type, AUTOCAST.get(config.precision))
        self.autocast = autocast if config.precision in AUTOCAST else nullcontext
        self.line_search_batches: list[TensorDict] | None = [] if searches else None
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        clipped = [[p for p in module.parameters() if id(p) in trained] for module in parts.values()]
        self.clipped = [parameters for parameters in clipped if parameters]
        self.fused_step = None
        if config.clip_value is None and config.non_finite != "skip":
            self.fused_step = build_fused_step(self.optimizer, self.clipped, config.grad_clip)
        self.rates = device_rates(self.optimizer, self.device)
        self.averaging: Averaging | None = None
        if config.average != "none":
            self.averaging = Averaging(self.module, config.average, config.average_decay, config.average_from)
            if self.averaging.norms and not task.rereadable:
                reason = "BatchNorm's statistics need a second pass over data, and these come once"
                raise UserError(f"trainer.average=swa: {reason}; use network.batch_norm=false or trainer.average=ema")
        if config.recompute:
            activation_checkpointing.recompute(self.module)
        self.metrics = RunMetrics(mask_non_finite=config.non_finite == "skip")
        self.pending, self.progress = 0, 0.0
        task.use_graphs(config.capture)
        self._wrap()

    def _wrap(self) -> None:
        """The loss as it is called: compiled, captured, its gradients averaged over the processes, as is asked for."""
        # The raw module stays in `module`, so that state dicts carry no prefix of the compiler's.
        self.loss = None
        self.loss = distributed.wrap(torch.compile(self.module) if self.config.compile else self.module)
        config = self.config
        capture = config.capture and config.accumulate == 1 and not config.compile and not config.recompute
        capture = capture and self.line_search_batches is None
        alone = distributed.world() == 1
        together = distributed.capturable(self.device) and not getattr(self.module, "trains_in_turns", False)
        here = capture and alone and config.precision == "fp32" and can_be_captured(self.module)
        self.captured = CapturedLoss(self.module) if here else None
        there = (
            capture
            and (alone or together)
            and self.rates
            and not self.scaler.is_enabled()
            and config.non_finite != "skip"
        )
        self.device_update = None
        if there and can_be_graphed(self.module):
            self.device_update = DeviceUpdate(self.module, self.rates, self._clip, self.autocast, together)

    # ---- an iteration ------------------------------------------------------------------------------------------

    def begin_iteration(self, iteration: int) -> None:
        """Let those parts train whose iteration has come (`optimizer.unfreeze`); averages begin by its share."""
        self.progress = iteration / self.iterations
        if unfreeze_due(self.optimizer, iteration):
            self._wrap()  # DistributedDataParallel only knows the parameters that trained when it was built

    @property
    def takes_epochs(self) -> bool:
        """Whether `update` takes whole epochs: they can be graphs, and the host has nothing to do between steps."""
        alone = self.averaging is None or self.averaging.kind != "ema"
        return self.device_update is not None and alone and not self.schedule.moves_betas

    def update(self, batch: TensorDict | Epoch) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Forward and backward on one batch, and an optimiser step when enough gradients are gathered.

        What the loss gave; of an epoch, where `takes_epochs`, its numbers of each minibatch.
        """
        if self.device_update is not None:
            if isinstance(batch, Epoch):
                return self._update_epoch(batch)
            outputs, norm = self.device_update(batch)
            self.metrics.add_batch(outputs)
            self._stepped(norm)
            return outputs
        if self.captured is not None:
            outputs = self.captured(batch)
        else:
            with self.autocast():
                outputs = self.loss(batch)
            accumulate = self.config.accumulate
            loss = outputs["loss"] if accumulate == 1 else outputs["loss"] / accumulate
            self.scaler.scale(loss).backward()
        self.pending += 1
        if self.line_search_batches is not None:
            self.line_search_batches.append(batch)
        self.metrics.add_batch(outputs)
        if self.pending >= self.config.accumulate:
            self.step()
        return outputs

    def _update_epoch(self, epoch: Epoch) -> list[dict[str, Tensor]]:
        given = []
        for piece in epoch.pieces(MOST):
            for names, figures in self.device_update.epoch(piece, self._rates_ahead(piece.count)):
                *outputs, norm = figures.unbind()
                given.append(dict(zip(names, outputs, strict=True)))
                self.metrics.add_batch(given[-1])
                self.metrics.add_step(norm)
        return given

    def _rates_ahead(self, steps: int) -> list[list[float]]:
        """Learning rates of so many steps, by group; the schedule is where it will be after them."""
        rates = []
        with warnings.catch_warnings():  # torch wants to see the optimiser step first
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for _ in range(steps):
                rates.append([group["lr"] for group in self.optimizer.param_groups])
                self.schedule.step("step")
        return rates

    def flush(self) -> None:
        """Step with what gradients there are, at the end of an iteration."""
        if self.pending:
            self.step()

    def end_iteration(self, iteration: int, figures: dict[str, float]) -> None:
        """The schedule follows the iteration's `figures`; an swa takes the weights in, `iteration` being done."""
        with warnings.catch_warnings():  # a run that fills its replay buffer first has made no step as yet
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.schedule.step("iteration")
        self.schedule.follow(figures)
        if self.device_update is not None:
            self.device_update.settle()  # the figures have been waited for
        if self.averaging is not None:
            self.averaging.update("swa", self.module, iteration / self.iterations)

    # ---- a step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Clip the gradients and step with them; then the schedule and the average of the weights."""
        with span("optimizer"):
            norm = None
            if self.fused_step is not None and not self.scaler.is_enabled():
                norm = self.fused_step()
            if norm is None:
                norm = self._torch_step()
                self.optimizer.zero_grad(set_to_none=True)
            else:  # these are all its parameters: a loop takes a tenth of torch's time
                self.fused_step.drop_gradients()
            self._stepped(norm)

    def _stepped(self, norm: Tensor) -> None:
        """What follows a step with gradients of this norm."""
        self.metrics.add_step(norm)
        self.schedule.step("step")
        if self.averaging is not None:
            self.averaging.update("ema", self.module, self.progress)
        self.pending = 0

    def _torch_step(self) -> Tensor:
        """Clip and step by torch; the norm of the gradients, 0 where a step was left out."""
        skip = self.config.non_finite == "skip"
        self.scaler.unscale_(self.optimizer)
        norm, finite = self._clip(), None
        if skip or self.scaler.is_enabled():
            finite = torch.isfinite(norm)
            self.metrics.add_skipped(finite)
            norm = torch.where(finite, norm, 0)
        if self.line_search_batches is not None:
            self.optimizer.step(self._closure())
            self.line_search_batches.clear()
        elif skip and not self.scaler.is_enabled():
            non_finite.step_if_finite(self.optimizer, finite)
        elif self.rates is not None:
            self.rates.write()
            with self.rates.in_place():
                self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    def _clip(self) -> Tensor:
        """Clip each part's gradient; the norm of the whole before that, on the device."""
        config = self.config
        norms = [clip_gradients(parameters, config.grad_clip, config.clip_value) for parameters in self.clipped]
        return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]

    def _closure(self) -> Callable[[], Tensor]:
        """Loss and gradients of this step's batches again, for an optimiser that searches along a line."""

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=self.device)
            for batch in self.line_search_batches:
                with self.autocast():
                    loss = self.loss(batch)["loss"] / len(self.line_search_batches)
                loss.backward()
                total += loss.detach()
            self._clip()
            return total

        return closure

    # ---- rates, averages, checkpoints --------------------------------------------------------------------------

    def lower_rates(self, factor: float) -> None:
        """Multiply every learning rate, now and in the rest of the schedule, by `factor`."""
        non_finite.lower_rates(self.optimizer, self.schedule.scheduler, factor)

    def fix_rates(self) -> None:
        """From now on learning rates stay as they are, and weights do not decay."""
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.0
        self.schedule = ScheduleConfig().build(self.optimizer, 1, 1)

    def averaged(self, batches: Callable[[], Iterator[TensorDict]]) -> AbstractContextManager:
        """The average of the weights in their place inside, where one is kept.

        batches: training data, from which BatchNorm's statistics of an swa are computed.
        """
        return nullcontext() if self.averaging is None else self.averaging.swapped(self.module, batches)

    def state_dict(self) -> dict[str, Any]:
        """State of optimiser, schedule and scaler, and of the average where one is kept. The weights are the task's."""
        average = {} if self.averaging is None else {"average": self.averaging.state_dict()}
        return {
            **average,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], iterations: int, rate_factor: float) -> None:
        """Continue from `state_dict`.

        Args:
            iterations: length of the run that was saved; over another length the schedule is walked to its place.
            rate_factor: what that run had multiplied the learning rates by.
        """
        groups = self.schedule.replay(state["schedule"]) if iterations != self.iterations else None
        if self.averaging is not None and "average" in state:
            self.averaging.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if groups is None:
            self.schedule.load_state_dict(state["schedule"])
        else:
            for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(settings)
            self.lower_rates(rate_factor)
        self.scaler.load_state_dict(state["scaler"])
