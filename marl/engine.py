"""The engine: one loop that trains every task, supervised or reinforcement learning."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor

from marl import checkpoint, distributed, divergence, presence, recovery, seeding, state, stepping, summary
from marl.averaging import BEGIN, DECAY, Kind
from marl.callbacks import Callback, better, monitored
from marl.errors import UserError
from marl.loggers import Logger
from marl.networks.helpers import allow as allow_helpers
from marl.optim import OptimizerConfig, ScheduleConfig
from marl.progress import ProgressBar
from marl.signals import Signals
from marl.task import Task


class Trainer:
    """Trains a task: device, precision, accumulation, clipping, schedule, checkpoints, logs, early stop.

    Args:
        max_iterations: stop after this many iterations; null: the task's own budget.
        precision: "fp32", "bf16" or "fp16" autocast (fp16 scales the loss and needs a GPU).
        grad_clip: largest L2 norm of the gradient of each part (actor, critic, model); null: no clipping.
        clip_value: largest absolute value of each number of the gradient, before `grad_clip`; null: any.
        accumulate: minibatches whose gradients are averaged into one optimiser step.
        compile: run the loss module through `torch.compile`.
        capture: on a CPU, record the loss and its gradients once and replay them (`marl.capture`); the same bits.
        recompute: keep no activations inside of stacks of layers, compute them again in the backward pass.
        average: evaluate and save an average of the weights (`marl.averaging`): "none", "ema" or "swa".
        average_decay: weight of the past in an ema, per optimiser step.
        average_from: share of the run after which averaging begins.
        evaluate_every: iterations between evaluations (the last one always counts); 0: only at the end.
        checkpoint_every: iterations between writes of `checkpoints/last.pt`; 0: only at the end.
        keep_last: how many of the latest are kept: last.pt, last-1.pt, … A damaged one is passed over on resume.
        keep_every: also keep `checkpoints/iteration_N.pt` every so many iterations; null: never.
        monitor: metric of the evaluation that decides `checkpoints/best.pt`; null: the task's own.
        mode: whether `monitor` is to be maximised or minimised; null: the task's own.
        non_finite: what a loss or gradient that is not finite does: "stop" ends the run (Diverged), "skip" leaves
            its minibatch out and counts it, "restore" goes back to the last checkpoint with lower learning rates.
        restore_factor: what "restore" multiplies the learning rates by.
        max_restores: "restore" ends the run when this is not enough.
        strategy: "ddp" splits the work over the processes of torchrun; "single" refuses several processes.
        deterministic: use deterministic algorithms only; the same bits for the same seed on a GPU too, more slowly.
        threads: CPU threads for torch; null: torch's default.
        helpers: threads that may take a share of an MLP's rows (`marl.networks.helpers`); null: as many as are useful.
        progress: "rich" bar, "plain" lines, "off", or "auto" (by whether the output is a terminal).
    """

    def __init__(
        self,
        max_iterations: Annotated[int, Field(ge=1)] | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
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
    ):
        self.max_iterations, self.precision, self.grad_clip = max_iterations, precision, grad_clip
        self.clip_value, self.accumulate, self.compile, self.recompute = clip_value, accumulate, compile, recompute
        self.capture = capture
        self.average, self.average_decay, self.average_from = average, average_decay, average_from
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.keep_last, self.keep_every, self.strategy = keep_last, keep_every, strategy
        self.non_finite, self.restore_factor, self.max_restores = non_finite, restore_factor, max_restores
        self.monitor, self.mode, self.progress = monitor, mode, progress
        if threads is not None:
            torch.set_num_threads(threads)
        allow_helpers(helpers)
        seeding.use_deterministic_algorithms(deterministic)

    def fit(self, task: Task, run_dir: str | Path, **setup) -> dict:
        """Train `task` and return its summary (also written to `run_dir/summary.json`). See `start` for `setup`.

        Raises Diverged, LostProcess and Stopped (see `marl.errors`), and UserError where a file cannot be written.
        """
        with self.running(task, Path(run_dir), setup) as signals:
            while self.iteration < self.iterations and self.stop_reason is None:
                stepping.unfreeze(self)
                with self.clock("collect"):
                    collected = recovery.collected(self)
                if not collected:
                    continue
                with self.clock("update"):
                    for batch in task.batches(self.iteration):
                        task.observe(self.update(batch))
                    self.optimizer_step(flush=True)
                    record = self.record()
                if not recovery.healthy(self, record):
                    continue
                if self.due(self.evaluate_every):
                    with self.clock("evaluate"):
                        self.evaluate(record)
                self.publish(record)
                asked = distributed.largest(signals.received)
                if asked or self.due(self.checkpoint_every):
                    self.save("last")
                if asked:
                    signals.leave(asked, self.iteration)
            return self.finish()

    @contextmanager
    def running(self, task: Task, run_dir: Path, setup: dict):
        """Start; catch signals and lost processes meanwhile; in the end close callbacks and loggers, come what may."""
        with Signals() as signals, distributed.watched():
            self.start(task, run_dir, **setup)
            try:
                yield signals
            except (OSError, UserError):
                presence.check(self, together=False)  # it may be why
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
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        seed: int = 0,
        config: dict | None = None,
        resume: str | Path | Mapping | None = None,
        command: str = "",
    ) -> None:
        """Build what the loop needs; continue from the checkpoint `resume` (a file, or its content) if given."""
        self.task, self.run_dir, self.seed, self.config, self.command = task, run_dir, seed, config or {}, command
        self.monitor, self.mode = self.monitor or task.monitor[0], self.mode or task.monitor[1]
        self.device = next(task.loss.parameters()).device
        stepping.prepare(self, optimizer or OptimizerConfig(), schedule or ScheduleConfig())
        callbacks = [*callbacks, *getattr(task, "callbacks", ()), ProgressBar(self.progress)]
        self.callbacks, self.loggers = (callbacks, list(loggers)) if distributed.main() else ([], [])
        if not distributed.main():  # one process decides and writes
            seeding.seed_global(seeding.derive(seed, distributed.stream("global")))
        self.iteration, self.pending, self.stop_reason, self.best = 0, 0, None, None
        self.evaluation: dict[str, float] = {}
        self.seconds = defaultdict(float, compile=getattr(task, "compile_seconds", 0.0))
        self.logged: dict[str, float] = {}
        self.totals: dict[str, Tensor] = {}
        self.batches = self.norms = self.skipped = self.restores = 0
        self.lowered = 1.0  # what restores have multiplied the learning rates by
        self.last: dict[str, float] = {}  # the latest record whose figures were finite
        self.watched: tuple[str, ...] = ()
        if resume is not None:
            self.load(resume)
        self.begun = time.perf_counter() - self.seconds["total"]
        run_dir.mkdir(parents=True, exist_ok=True)
        self.presence = presence.Presence(run_dir) if distributed.main() else None
        checkpoint.sweep(run_dir / "checkpoints")
        for logger in self.loggers:
            logger.open(run_dir, self.config, self.iteration, self.units)
        for callback in self.callbacks:
            callback.on_start(self)

    @property
    def units(self) -> int:
        """Frames or epochs done so far."""
        return self.iteration * self.task.units_per_iteration

    @contextmanager
    def clock(self, stage: str):
        """Add the block's wall-clock seconds to `seconds[stage]` (with the device's queue drained)."""
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - began

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """Forward and backward on one batch, and an optimiser step when enough gradients are gathered."""
        if self.captured is not None:
            outputs = self.captured(batch)
        else:
            with self.autocast():
                outputs = self.loss(batch)
            loss = outputs["loss"] if self.accumulate == 1 else outputs["loss"] / self.accumulate
            self.scaler.scale(loss).backward()
        self.pending += 1
        if self.held is not None:
            self.held.append(batch)
        figures = {key: value.detach() for key, value in outputs.items()}
        self.add(divergence.masked(figures) if self.non_finite == "skip" else figures)
        self.batches += 1
        self.optimizer_step()
        return outputs

    def optimizer_step(self, flush: bool = False) -> None:
        """Clip and step once `accumulate` batches are in, or with what there is at the end of an iteration."""
        if self.pending < (1 if flush else self.accumulate):
            return
        stepping.step(self)

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Sum scalars over the iteration's batches, on the device."""
        if self.batches == 0:
            self.totals = {key: value.float().clone() for key, value in outputs.items()}
            self.steps = self.norms = self.skipped = 0
        else:
            torch._foreach_add_(list(self.totals.values()), list(outputs.values()))

    def record(self) -> dict[str, float]:
        """The iteration's figures, brought to the host in one transfer."""
        figures = {key: total / self.batches for key, total in self.totals.items()}
        figures["grad_norm"] = self.norms / max(self.steps, 1)
        self.watched = tuple(name for name in figures if name != "finite")
        figures |= divergence.shares(figures, self.skipped, self.batches) if self.non_finite == "skip" else {}
        figures |= self.task.metrics()
        self.batches = 0
        tensors = {key: value for key, value in figures.items() if isinstance(value, Tensor)}
        values = distributed.mean(torch.stack([value.detach().float() for value in tensors.values()])).tolist()
        figures |= dict(zip(tensors, values, strict=True))
        self.schedule.step("iteration")
        self.schedule.follow(figures)
        self.iteration += 1
        if self.averaging is not None:
            self.averaging.update("swa", self.iteration / self.iterations)
        return {"iteration": self.iteration, self.task.unit: self.units, **figures}

    def due(self, every: int) -> bool:
        """Whether something that happens every so many iterations happens now; at the end it always does."""
        ended = self.iteration >= self.iterations or self.stop_reason is not None
        return ended or (every > 0 and self.iteration % every == 0)

    def evaluate(self, record: dict[str, float]) -> None:
        """Evaluate, remember the best, tell schedule and callbacks."""
        with self.averaged():
            self.evaluation = distributed.agree(self.task.evaluate())
        record |= {f"eval/{key}": value for key, value in self.evaluation.items()}
        value = monitored(self.evaluation, self.monitor, "trainer.monitor")
        recovery.tell_evaluation(self)
        self.schedule.observe(self.evaluation, self.monitor, record)
        for callback in self.callbacks:
            callback.on_evaluation(self, self.evaluation)
        if better(value, self.best and self.best["value"], self.mode):
            self.best = {"value": value, "iteration": self.iteration, "evaluation": self.evaluation}
            self.save("best")

    def averaged(self) -> AbstractContextManager:
        """The task with the average of its weights inside, where one is kept."""
        return nullcontext() if self.averaging is None else self.averaging.swapped(self.iteration)

    def publish(self, record: dict[str, float]) -> None:
        """Add rates and learning rates to the record, log it, tell the callbacks."""
        record |= summary.rates(self)
        self.seconds["total"] = record["seconds"] = time.perf_counter() - self.begun
        presence.check(self, record)
        for logger in self.loggers:
            logger.log(record, self.units)
        for callback in self.callbacks:
            callback.on_iteration(self, record)
        self.stop_reason = distributed.agree(self.stop_reason)
        if self.keep_every and self.iteration % self.keep_every == 0:
            self.save(f"iteration_{self.iteration}")

    def stop(self, reason: str) -> None:
        """End the run after this iteration; `reason` is printed and kept in the summary."""
        self.stop_reason = reason

    def save(self, name: str) -> None:
        """Write `checkpoints/<name>.pt`: everything that decides the next step. Logs are on the disk before it."""
        recovery.refuse_bad_weights(self)
        if name == "best" and presence.lost(self):
            return  # `publish` follows, and ends the run
        presence.check(self)
        content = state.capture(self)
        for logger in self.loggers:
            logger.flush()
        if distributed.main():
            path = self.run_dir / "checkpoints" / f"{name}.pt"
            checkpoint.save(path, content, self.keep_last if name == "last" else 1)
            if name == "best" or self.due(0):
                about = {"iteration": str(self.iteration), "task": self.task.name}
                checkpoint.save_weights(path.with_suffix(".safetensors"), content["loss"], about)

    def load(self, source: str | Path | Mapping) -> None:
        """Continue from a checkpoint of the same configuration: a file, or what `checkpoint.load` read of it."""
        state.restore(self, source if isinstance(source, Mapping) else checkpoint.load(source, self.device))

    def finish(self) -> dict:
        """Write and return `summary.json` (in one process; {} in the others). Raises Diverged as `judged`."""
        presence.check(self)
        told = summary.finish(self) if distributed.main() else {}
        recovery.judged(self)
        return told
