"""Checkpoints of a run: what they hold, when they are written, and how a run goes on from one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file, resume
from marl.core import distributed, seeding
from marl.core.errors import Diverged
from marl.engine import non_finite
from marl.engine.run_state import RunState
from marl.engine.updater import Updater
from marl.loggers import summary
from marl.task import Task


class Checkpointer:
    """Everything that decides a run's next step, written to `run_dir/checkpoints` and put back from there.

    Args:
        task, updater, run_state, callbacks: what is saved and restored.
        config: the run's configuration, kept in every checkpoint.
        run_dir: directory of the run.
        last_every: iterations between writes of `last.pt`; 0: only at the end.
        keep_last: how many of these are kept.
        keep_every: also keep `iteration_N.pt` every so many iterations; None: never.
    """

    def __init__(
        self,
        task: Task,
        updater: Updater,
        run_state: RunState,
        callbacks: Sequence[Callback],
        config: Mapping[str, Any],
        run_dir: Path,
        last_every: int = 0,
        keep_last: int = 1,
        keep_every: int | None = None,
    ) -> None:
        self.task, self.updater, self.run_state, self.callbacks = task, updater, run_state, callbacks
        self.config, self.run_dir = config, run_dir
        self.last_every, self.keep_last, self.keep_every = last_every, keep_last, keep_every
        self.attachments = task.attachments
        if self.attachments is not None:
            self.attachments.open(run_dir)

    # ---- when --------------------------------------------------------------------------------------------------

    def last_due(self) -> bool:
        """Whether `last.pt` is to be written after this iteration."""
        return self.run_state.due(self.last_every)

    def numbered_due(self) -> str | None:
        """The name under which this iteration's checkpoint is kept for good; None where it isn't."""
        iteration = self.run_state.iteration
        return f"iteration_{iteration}" if self.keep_every and iteration % self.keep_every == 0 else None

    # ---- what --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Modules, optimiser, schedule, scaler, every process's task and streams, counters, configuration, versions."""
        task, run_state = self.task, self.run_state
        process = {"task": task.state_dict(), "random": seeding.global_state()}
        weights = {"loss": task.loss.state_dict()}
        if self.updater.averaging is not None:  # "loss" is what was evaluated, which all but a resumed run want
            with self.updater.averaged(lambda: task.batches(run_state.iteration)):
                averaged = {name: value.clone() for name, value in weights["loss"].items()}
            weights = {"loss": averaged, "raw": task.loss.state_dict()}
        return {
            **weights,
            **self.updater.state_dict(),
            "processes": distributed.gather(process),
            "callbacks": {name: callback.state_dict() for name, callback in _named(self.callbacks).items()},
            **run_state.state_dict(),
            "config": self.config,
            "versions": summary.versions(),
        }

    def check_weights(self) -> None:
        """Raise Diverged where a weight is not finite, so that no such checkpoint comes to be."""
        bad = non_finite.bad_tensor(self.task.loss)
        if bad is not None:
            reason = "no checkpoint is written, the earlier ones stay"
            raise Diverged(f"iteration {self.run_state.iteration}: {bad}; {reason}")

    def write(self, name: str) -> None:
        """Write `NAME.pt`, and for the best and at the end the weights alone as `NAME.safetensors`; in one process."""
        try:
            content = self.state_dict()
            if not distributed.main():
                return
            path = self.run_dir / "checkpoints" / f"{name}.pt"
            checkpoint_file.save(path, content, self.keep_last if name == "last" else 1)
            if self.attachments is not None:
                self.attachments.note(path, content)
            if name == "best" or self.run_state.ended:
                about = {"iteration": str(self.run_state.iteration), "task": self.task.name}
                checkpoint_file.save_weights(path.with_suffix(".safetensors"), content["loss"], about)
        finally:  # what an older checkpoint needed, or one that could not be written
            self._sweep_attachments()

    def sweep(self) -> None:
        """Remove what killed processes left: temporary files, and attachments that no checkpoint refers to."""
        checkpoint_file.sweep(self.run_dir / "checkpoints")
        self._sweep_attachments()

    def _sweep_attachments(self) -> None:
        if self.attachments is not None and distributed.main():
            self.attachments.sweep()

    def rescue(self, place: Path) -> dict[str, Any] | None:
        """`state_dict` for the directory `place`, with the attachments there; None where there is none such."""
        if not place.is_dir():
            return None
        if self.attachments is not None:
            self.attachments.open(place)
        return self.state_dict()

    # ---- back --------------------------------------------------------------------------------------------------

    def resume(self, source: str | Path | Mapping, max_iterations: int | None) -> None:
        """Continue from a checkpoint: a file, or what `checkpoint.load` read of it. Says so where all is done.

        max_iterations: what decides how long the run is; None: its budget does.
        """
        content = source if isinstance(source, Mapping) else checkpoint_file.load(source, self.updater.device)
        self.load_state_dict(content)
        iteration, iterations = self.run_state.iteration, self.run_state.iterations
        if iteration >= iterations and distributed.main():
            decides = f"trainer.max_iterations={max_iterations}" if max_iterations else "its budget"
            print(f"nothing left to do: iteration {iteration} of {iterations}, by {decides}", flush=True)

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Put back `state_dict`. Another number of processes starts new episodes, from new streams."""
        task, run_state = self.task, self.run_state
        task.loss.load_state_dict(content.get("raw", content["loss"]))
        self.updater.load_state_dict(content, content["iterations"], content.get("lowered", 1.0))
        if len(content["processes"]) == distributed.world():
            process = content["processes"][distributed.rank()]
            task.load_state_dict(process["task"])
            seeding.restore_global_state(process["random"])
        else:
            task.rejoin(content["iteration"], content["processes"][0]["task"])
        callbacks, states = _named(self.callbacks), content["callbacks"]
        if isinstance(states, list):  # of a checkpoint that kept them by their places
            states = dict(zip(callbacks, states, strict=False))
        for name in callbacks.keys() & states.keys():  # one may be new
            callbacks[name].load_state_dict(states[name])
        changed = resume.differences(content["config"], self.config)
        same = content["iterations"] == run_state.iterations and not any(k.startswith("callbacks") for k in changed)
        run_state.load_state_dict(content, keep_stop_reason=same)


def _named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """{name of the class, with a number from the second of its kind on: callback}."""
    named: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback)
        name, number = f"{kind.__module__}.{kind.__qualname__}", 1
        while (key := name if number == 1 else f"{name} {number}") in named:
            number += 1
        named[key] = callback
    return named
