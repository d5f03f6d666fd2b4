"""The engine: one loop that trains every task, supervised or reinforcement learning."""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor

from marl import checkpoint, seeding, summary
from marl.callbacks import Callback, better, monitored
from marl.errors import UserError
from marl.loggers import Logger
from marl.optim import OptimizerConfig, ScheduleConfig, clip_gradients
from marl.progress import ProgressBar
from marl.task import Task

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains a task: device, precision, accumulation, clipping, schedule, checkpoints, logs, early stop.

    Args:
        max_iterations: stop after this many iterations; null: the task's own budget.
        precision: "fp32", "bf16" or "fp16" autocast (fp16 scales the loss and needs a GPU).
        grad_clip: largest L2 norm of the gradient of each part (actor, critic, model); null: no clipping.
        accumulate: minibatches whose gradients are averaged into one optimiser step.
        compile: run the loss module through `torch.compile`.
        evaluate_every: iterations between evaluations (the last one always counts); 0: only at the end.
        checkpoint_every: iterations between writes of `checkpoints/last.pt`; 0: only at the end.
        keep_every: also keep `checkpoints/iteration_N.pt` every so many iterations; null: never.
        monitor: metric of the evaluation that decides `checkpoints/best.pt`; null: the task's own.
        mode: whether `monitor` is to be maximised or minimised; null: the task's own.
        threads: CPU threads for torch; null: torch's default.
        progress: "rich" bar, "plain" lines, "off", or "auto" (by whether the output is a terminal).
    """

    def __init__(
        self,
        max_iterations: Annotated[int, Field(ge=1)] | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        grad_clip: Annotated[float, Field(gt=0)] | None = None,
        accumulate: Annotated[int, Field(ge=1)] = 1,
        compile: bool = False,
        evaluate_every: Annotated[int, Field(ge=0)] = 10,
        checkpoint_every: Annotated[int, Field(ge=0)] = 10,
        keep_every: Annotated[int, Field(ge=1)] | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        threads: Annotated[int, Field(ge=1)] | None = None,
        progress: Literal["auto", "rich", "plain", "off"] = "auto",
    ):
        self.max_iterations, self.precision, self.grad_clip = max_iterations, precision, grad_clip
        self.accumulate, self.compile = accumulate, compile
        self.evaluate_every, self.checkpoint_every, self.keep_every = evaluate_every, checkpoint_every, keep_every
        self.monitor, self.mode, self.progress = monitor, mode, progress
        if threads is not None:
            torch.set_num_threads(threads)

    def fit(self, task: Task, run_dir: str | Path, **setup) -> dict:
        """Train `task` and return its summary (also written to `run_dir/summary.json`). See `start` for `setup`."""
        self.start(task, Path(run_dir), **setup)
        try:
            while self.iteration < self.iterations and self.stop_reason is None:
                with self.clock("collect"):
                    task.collect(self.iteration)
                with self.clock("update"):
                    for batch in task.batches(self.iteration):
                        task.observe(self.update(batch))
                    self.optimizer_step(flush=True)
                    record = self.record()
                if self.due(self.evaluate_every):
                    with self.clock("evaluate"):
                        self.evaluate(record)
                self.publish(record)
                if self.due(self.checkpoint_every):
                    self.save("last")
        finally:
            for part in (*self.callbacks, *self.loggers):
                part.on_end(self) if isinstance(part, Callback) else part.close()
        return self.finish()

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
        resume: str | Path | None = None,
        command: str = "",
    ) -> None:
        """Build what the loop needs; continue from the checkpoint `resume` where one is given."""
        self.task, self.run_dir, self.seed, self.config, self.command = task, run_dir, seed, config or {}, command
        self.monitor, self.mode = self.monitor or task.monitor[0], self.mode or task.monitor[1]
        self.device = next(task.loss.parameters()).device
        if self.precision == "fp16" and self.device.type == "cpu":
            raise UserError("trainer.precision='fp16': needs a GPU; on a CPU fp32 and bf16 are allowed")
        self.iterations = self.max_iterations or task.iterations
        steps = self.iterations * -(-task.steps_per_iteration // self.accumulate)
        parts = task.parts()
        self.optimizer = (optimizer or OptimizerConfig()).build(parts)
        self.schedule = (schedule or ScheduleConfig()).build(self.optimizer, self.iterations, steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        # Entering autocast costs as much as a small layer, so fp32 does without.
        autocast = partial(torch.autocast, self.device.type, AUTOCAST.get(self.precision))
        self.autocast = nullcontext if self.precision == "fp32" else autocast
        # The raw module stays in task.loss, so that state dicts carry no prefix of the compiler's.
        self.loss = torch.compile(task.loss) if self.compile else task.loss
        self.clipped = [[p for p in module.parameters() if p.requires_grad] for module in parts.values()]
        self.clipped = [parameters for parameters in self.clipped if parameters]
        self.callbacks = [*callbacks, ProgressBar(self.progress)]
        self.loggers = list(loggers)
        self.iteration, self.pending, self.stop_reason = 0, 0, None
        self.best: dict | None = None
        self.evaluation: dict[str, float] = {}
        self.seconds = defaultdict(float, compile=getattr(task, "compile_seconds", 0.0))
        self.logged: dict[str, float] = {}
        self.totals: dict[str, Tensor] = {}
        self.batches = self.norms = 0
        if resume is not None:
            self.load(resume)
        self.begun = time.perf_counter() - self.seconds["total"]
        run_dir.mkdir(parents=True, exist_ok=True)
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
        with self.autocast():
            outputs = self.loss(batch)
        loss = outputs["loss"] if self.accumulate == 1 else outputs["loss"] / self.accumulate
        self.scaler.scale(loss).backward()
        self.pending += 1
        self.add({key: value.detach() for key, value in outputs.items()})
        self.batches += 1
        self.optimizer_step()
        return outputs

    def optimizer_step(self, flush: bool = False) -> None:
        """Clip and step once `accumulate` batches are in, or with what there is at the end of an iteration."""
        if self.pending < (1 if flush else self.accumulate):
            return
        self.scaler.unscale_(self.optimizer)
        norms = [clip_gradients(parameters, self.grad_clip) for parameters in self.clipped]
        self.norms += torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step("step")
        self.pending = 0
        self.steps += 1

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Sum scalars over the iteration's batches, on the device."""
        if self.batches == 0:
            self.totals = {key: value.float().clone() for key, value in outputs.items()}
            self.steps, self.norms = 0, 0
        else:
            torch._foreach_add_(list(self.totals.values()), list(outputs.values()))

    def record(self) -> dict[str, float]:
        """The iteration's figures, brought to the host in one transfer."""
        figures = {key: total / self.batches for key, total in self.totals.items()}
        figures |= {"grad_norm": self.norms / max(self.steps, 1), **self.task.metrics()}
        self.batches = 0
        tensors = {key: value for key, value in figures.items() if isinstance(value, Tensor)}
        values = torch.stack([value.detach().float() for value in tensors.values()]).tolist()
        figures |= dict(zip(tensors, values, strict=True))
        self.schedule.step("iteration")
        self.iteration += 1
        return {"iteration": self.iteration, self.task.unit: self.units, **figures}

    def due(self, every: int) -> bool:
        """Whether something that happens every so many iterations happens now; at the end it always does."""
        ended = self.iteration >= self.iterations or self.stop_reason is not None
        return ended or (every > 0 and self.iteration % every == 0)

    def evaluate(self, record: dict[str, float]) -> None:
        """Evaluate, remember the best, tell schedule and callbacks."""
        self.evaluation = self.task.evaluate()
        record |= {f"eval/{key}": value for key, value in self.evaluation.items()}
        value = monitored(self.evaluation, self.monitor, "trainer.monitor")
        self.schedule.observe(self.evaluation, self.monitor)
        for callback in self.callbacks:
            callback.on_evaluation(self, self.evaluation)
        if better(value, self.best and self.best["value"], self.mode):
            self.best = {"value": value, "iteration": self.iteration, "evaluation": self.evaluation}
            self.save("best")

    def publish(self, record: dict[str, float]) -> None:
        """Add rates and learning rates to the record, log it, tell the callbacks."""
        seconds = {stage: self.seconds[stage] - self.logged.get(stage, 0.0) for stage in ("collect", "update")}
        self.logged = dict(self.seconds)
        unit = self.task.unit
        record |= {f"{stage}_seconds": value for stage, value in seconds.items()}
        record[f"{unit}_per_second"] = self.task.units_per_iteration / max(sum(seconds.values()), 1e-9)
        rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        record["lr"] = next(iter(rates.values()))
        if len(set(rates.values())) > 1:
            record |= {f"lr/{name}": rate for name, rate in rates.items()}
        self.seconds["total"] = record["seconds"] = time.perf_counter() - self.begun
        for logger in self.loggers:
            logger.log(record, self.units)
        for callback in self.callbacks:
            callback.on_iteration(self, record)
        if self.keep_every and self.iteration % self.keep_every == 0:
            self.save(f"iteration_{self.iteration}")

    def stop(self, reason: str) -> None:
        """End the run after this iteration; `reason` is printed and kept in the summary."""
        self.stop_reason = reason

    def save(self, name: str) -> None:
        """Write `checkpoints/<name>.pt`: everything that decides the next step."""
        checkpoint.save(self.run_dir / "checkpoints" / f"{name}.pt", self.state_dict())

    def state_dict(self) -> dict:
        """Modules, optimiser, schedule, scaler, task (environment, streams), counters, config, versions."""
        return {
            "loss": self.task.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "task": self.task.state_dict(),
            "random": seeding.global_state(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "iteration": self.iteration,
            "best": self.best,
            "evaluation": self.evaluation,
            "seconds": dict(self.seconds),
            "config": self.config,
            "versions": summary.versions(),
        }

    def load(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same configuration."""
        state = checkpoint.load(path, self.device)
        self.task.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.task.load_state_dict(state["task"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=False):
            callback.load_state_dict(saved)
        self.iteration, self.best, self.evaluation = state["iteration"], state["best"], state["evaluation"]
        self.seconds.update(state["seconds"])
        self.logged = dict(self.seconds)
        seeding.restore_global_state(state["random"])

    def finish(self) -> dict:
        """Write and return `summary.json`."""
        if self.stop_reason:
            print(f"stopped: {self.stop_reason}", flush=True)
        best = self.best and {**self.task.summary(self.best["evaluation"]), "iteration": self.best["iteration"]}
        return summary.write(
            self.run_dir / "summary.json",
            task=self.task.name,
            seed=self.seed,
            **{self.task.unit: self.units},
            final=self.task.summary(self.evaluation),
            best=best,
            stopped=self.stop_reason,
            seconds={k: self.seconds[k] for k in ("collect", "update", "evaluate", "compile", "total")},
            command=self.command,
        )
