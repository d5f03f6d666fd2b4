"""The engine: one loop that trains every task, supervised or reinforcement learning."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, overload

from pydantic import Field
from tensordict import TensorDict
from torch import Tensor

from marl.callbacks.base import Callback, monitored
from marl.callbacks.progress import ProgressBar
from marl.config.described import remembers_arguments
from marl.core import distributed, seeding
from marl.core.errors import UserError
from marl.core.signals import Signals
from marl.data.epoch import Epoch
from marl.engine import recovery
from marl.engine.checkpointer import Checkpointer
from marl.engine.presence import Presence, lost
from marl.engine.recovery import Recovery
from marl.engine.run_metrics import RunMetrics
from marl.engine.run_state import RunState
from marl.engine.run_view import RunView
from marl.engine.spans import span
from marl.engine.update_config import UpdateConfig
from marl.engine.updater import Updater
from marl.loggers import summary
from marl.loggers.loggers import Logger
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.optim.weight_averaging import BEGIN, DECAY, Kind
from marl.task import Task


class Trainer(RunView):
    """Trains a task: device, precision, accumulation, clipping, schedule, checkpoints, logs, early stop.

    Args:
        max_iterations: stop after this many iterations; null: the task's own budget.
        precision: "fp32", "bf16" or "fp16" autocast, or "tf32" matrix products; fp16 and tf32 need a GPU.
        grad_clip: largest L2 norm of the gradient of each part (actor, critic, model); null: no clipping.
        clip_value: largest absolute value of each number of the gradient, before `grad_clip`; null: any.
        accumulate: minibatches whose gradients are averaged into one optimiser step.
        compile: run the loss module through `torch.compile`.
        capture: record losses and gradients, on a GPU steps and rollouts, once and replay them (`marl.capture`).
        recompute: keep no activations inside of stacks of layers, compute them again in the backward pass.
        average: evaluate and save an average of the weights (`marl.optim.weight_averaging`): "none", "ema" or "swa".
        average_decay, average_from: an ema's weight of the past, per step; share of the run after which averages begin.
        evaluate_every: iterations between evaluations (the last one always counts); 0: only at the end.
        checkpoint_every: iterations between writes of `checkpoints/last.pt`; 0: only at the end.
        keep_last: how many of the latest are kept: last.pt, last-1.pt, … A damaged one is passed over on resume.
        keep_every: also keep `checkpoints/iteration_N.pt` every so many iterations; null: never.
        monitor, mode: metric of evaluations that decides `checkpoints/best.pt`, and "max" or "min"; null: the task's.
        non_finite: what a loss or gradient that is not finite does: "stop" ends the run (Diverged), "skip" leaves
            its minibatch out and counts it, "restore" goes back to the last checkpoint with lower learning rates.
        restore_factor, max_restores: what "restore" multiplies the learning rates by, and how often at most.
        strategy: "ddp" splits the work over the processes of torchrun; "single" refuses several processes.
        deterministic: use deterministic algorithms only: the same seed gives identical results on a GPU too, slowly.
        threads: CPU threads for torch; null: its default. `marl.launch.build` sets this, the two beside it and tf32.
        helpers: threads that may take a share of an MLP's rows (`marl.native.threads`); null: as many as are useful.
        progress: "rich" bar, "plain" lines, "off", or "auto": the bar on a terminal and in a notebook, else lines.
        show: names of logged figures, of evaluations or not, that stand in its line beside the usual ones.

    Attributes:
        run_state: counters, clocks, evaluations, the reason to stop.
        metrics: sums of the iteration's figures.
        updater: optimiser and all that belongs to a step.
        checkpointer: what a checkpoint holds, and how a run goes on from one.
    """

    metrics: RunMetrics
    checkpointer: Checkpointer

    @remembers_arguments
    def __init__(
        self,
        max_iterations: Annotated[int, Field(ge=1)] | None = None,
        precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
        grad_clip: Annotated[float, Field(gt=0)] | None = None,
        clip_value: Annotated[float, Field(gt=0)] | None = None,
        accumulate: Annotated[int, Field(ge=1)] = 1,
        compile: bool = False,
        capture: bool = True,
        recompute: bool = False,
        average: Kind = "none",
        average_decay: Annotated[float, Field(gt=0, lt=1)] = DECAY,
        average_from: Annotated[float, Field(ge=0, lt=1)] = BEGIN,
        evaluate_every: Annotated[int, Field(ge=0)] = 10,
        checkpoint_every: Annotated[int, Field(ge=0)] = 10,
        keep_last: Annotated[int, Field(ge=1)] = 2,
        keep_every: Annotated[int, Field(ge=1)] | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        non_finite: Literal["stop", "skip", "restore"] = "stop",
        restore_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        max_restores: Annotated[int, Field(ge=1)] = 3,
        strategy: Literal["single", "ddp"] = "single",
        deterministic: bool = False,
        threads: Annotated[int, Field(ge=1, le=1024)] | None = None,
        helpers: Annotated[int, Field(ge=0, le=1024)] | None = None,
        progress: Literal["auto", "rich", "plain", "off"] = "auto",
        show: Sequence[str] = (),
    ):
        self.update_config = UpdateConfig(
            precision, grad_clip, clip_value, accumulate, compile, capture, recompute, average, average_decay,
            average_from, non_finite, strategy,
        )  # fmt: skip
        self.max_iterations, self.evaluate_every = max_iterations, evaluate_every
        self.checkpoint_every, self.keep_last, self.keep_every = checkpoint_every, keep_last, keep_every
        self.restore_factor, self.max_restores = restore_factor, max_restores
        self.chosen_monitor, self.chosen_mode, self.bar = monitor, mode, (progress, tuple(show))
        self.deterministic, self.threads, self.helpers = deterministic, threads, helpers

    def build_updater(self, task: Task, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> Updater:
        """The updates of a run, for `fit`. Raises UserError where settings contradict one another or the task."""
        return Updater(task, optimizer, schedule, self.update_config, self.max_iterations, self.chosen_mode)

    def fit(self, task: Task, run_dir: str | Path, **setup) -> dict:
        """Train `task` and return its summary (also written to `run_dir/summary.json`). See `start` for `setup`.

        Raises Diverged, LostProcess and Stopped (see `marl.core.errors`), and UserError where a file cannot be written.
        """
        with self._running(task, Path(run_dir), setup) as signals:
            state, updater, clock = self.run_state, self.updater, self.run_state.clock
            while not state.ended:
                updater.begin_iteration(state.iteration)
                with clock("collect", updater.device), span("collect"):
                    collected = self.recovery.collect()
                if not collected:
                    continue
                with clock("update", updater.device):
                    epochs = self.task.whole_epochs(state.iteration) if updater.takes_epochs else None
                    if epochs is None:
                        for batch in self.task.batches(state.iteration):
                            self.task.observe(self.update(batch))
                    for epoch in epochs or ():
                        for outputs in self.update(epoch):
                            self.task.observe(outputs)
                    updater.flush()
                    record = self._record()
                if not self.recovery.check_finite(record):
                    continue
                if state.due(self.evaluate_every):
                    with clock("evaluate", updater.device), span("evaluate"):
                        self._evaluate(record)
                self._publish(record)
                signal = distributed.largest(signals.received)
                if signal or self.checkpointer.last_due():
                    self.save("last")
                if signal:
                    signals.leave(signal, state.iteration)
            return self._finish()

    @contextmanager
    def _running(self, task: Task, run_dir: Path, setup: dict) -> Iterator[Signals]:
        """Start; catch signals and lost processes meanwhile; in the end close callbacks and loggers, come what may."""
        with Signals() as signals, distributed.watched():
            self.start(task, run_dir, **setup)
            try:
                yield signals
            except (OSError, UserError):
                self._check_run_dir(together=False)  # it may be why
                raise
            finally:
                for part in (*self.callbacks, *self.loggers):
                    part.on_end(self) if isinstance(part, Callback) else part.close()
                if self.presence:
                    self.presence.close()

    def start(
        self,
        task: Task,
        run_dir: Path,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        updater: Updater | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        seed: int = 0,
        config: dict | None = None,
        resume: str | Path | Mapping | None = None,
        command: str = "",
    ) -> None:
        """Build what the loop needs; continue from the checkpoint `resume` (a file, or its content) if given.

        Args:
            optimizer, schedule: of the updates, unless there is an `updater` (`build_updater`) already.
        """
        if not distributed.main():  # one process decides and writes
            callbacks, loggers = (), ()
        for callback in callbacks:
            task = callback.wrap_task(task)
        self.task, self.run_dir, self.seed, self.config, self.command = task, run_dir, seed, config or {}, command
        configs = optimizer or OptimizerConfig(), schedule or ScheduleConfig()
        self.updater = updater or self.build_updater(task, *configs)
        self.metrics = self.updater.metrics
        if not distributed.main():
            seeding.seed_global(seeding.derive(seed, distributed.stream("global")))
        self.callbacks = [*callbacks, *task.callbacks, ProgressBar(*self.bar)] if distributed.main() else []
        self.loggers = list(loggers)
        self.run_state = RunState.of(task, self.updater.iterations, self.chosen_monitor, self.chosen_mode)
        shared = task, self.updater, self.run_state
        self.checkpointer = Checkpointer(*shared, self.callbacks, self.config, run_dir, self.checkpoint_every,
                                         self.keep_last, self.keep_every)  # fmt: skip
        policy = self.update_config.non_finite, self.restore_factor, self.max_restores
        self.recovery = Recovery(*shared, self.checkpointer, self.loggers, *policy)
        if resume is not None:
            self.checkpointer.resume(resume, self.max_iterations)
        self.run_state.start_clock()
        run_dir.mkdir(parents=True, exist_ok=True)
        self.presence = Presence(run_dir, self.config, self.loggers, self.keep_last) if distributed.main() else None
        self.checkpointer.sweep()
        for logger in self.loggers:
            logger.open(run_dir, self.config, self.iteration, self.units)
        for callback in self.callbacks:
            callback.on_start(self)

    # ---- an iteration ------------------------------------------------------------------------------------------

    @overload
    def update(self, batch: TensorDict) -> dict[str, Tensor]: ...

    @overload
    def update(self, batch: Epoch) -> list[dict[str, Tensor]]: ...

    def update(self, batch: TensorDict | Epoch) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `Updater.update`."""
        try:
            with span("update"):
                return self.updater.update(batch)
        except RuntimeError as error:
            for callback in self.callbacks:
                callback.on_error(self, error)
            raise

    def _record(self) -> dict[str, float]:
        """The iteration's figures; with them the iteration is done."""
        figures = self.metrics.take(self.task.metrics())
        self.run_state.advance()
        self.updater.end_iteration(self.iteration, figures)
        return {"iteration": self.iteration, self.task.unit: self.units, **figures}

    def _evaluate(self, record: dict[str, float]) -> None:
        """Evaluate, remember the best, tell schedule and callbacks."""
        with self.averaged():
            self.run_state.note_evaluation(distributed.agree(self.task.evaluate()))
        record |= {f"eval/{key}": value for key, value in self.evaluation.items()}
        monitored(self.evaluation, self.monitor, "trainer.monitor")
        recovery.warn_of_evaluation(self.run_state)
        self.schedule.observe(self.evaluation, self.monitor, record)
        for callback in self.callbacks:
            callback.on_evaluation(self, self.evaluation)
        if self.run_state.improve():
            self.save("best")

    def _publish(self, record: dict[str, float]) -> None:
        """Add rates and learning rates to the record, log it, tell the callbacks."""
        record |= summary.rates(self.run_state, self.optimizer)
        record["seconds"] = self.run_state.read_clock()
        self._check_run_dir(record)
        for logger in self.loggers:
            logger.log(record, self.units)
        for callback in self.callbacks:
            callback.on_iteration(self, record)
        self.run_state.stop(distributed.agree(self.run_state.stop_reason))
        if name := self.checkpointer.numbered_due():
            self.save(name)

    def _finish(self) -> dict:
        """Write and return `summary.json` (in one process; {} in the others). Raises as `recovery.check_evaluated`."""
        self._check_run_dir()
        content = {}
        if distributed.main():
            content = summary.finish(self.run_dir, self.task, self.run_state, self.seed, self.command)
        recovery.check_evaluated(self.run_state, self.run_dir)
        return content

    # ---- files -------------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write `checkpoints/<name>.pt`: everything that decides the next step. Logs are on the disk before it."""
        with span("save"):
            self.checkpointer.check_weights()
            if name == "best" and lost(self.presence):
                return  # `_publish` follows, and ends the run
            self._check_run_dir()
            for logger in self.loggers:
                logger.flush()
            self.checkpointer.write(name)

    def _check_run_dir(self, record: dict[str, float] | None = None, together: bool = True) -> None:
        """End the run where its directory is lost, with what can be kept of it.

        Args:
            record: the iteration's figures where they are not logged yet.
            together: all processes call this, and can take part in a checkpoint.

        Raises:
            UserError: the directory was removed or moved; it says what was kept and where.
        """
        what = lost(self.presence, together)
        if what is None:
            return
        place = self.presence.place(what) if self.presence else None
        content = self.checkpointer.rescue(distributed.agree(place)) if together or distributed.world() == 1 else None
        message = f"{self.run_dir}: was {what} while the run trained (iteration {self.iteration})"
        if self.presence and place:
            message += f"; {self.presence.rescue(what, place, content, record, self.units)}"
        self.loggers, self.presence = [], None  # both are closed, and it has been told
        raise UserError(message)
