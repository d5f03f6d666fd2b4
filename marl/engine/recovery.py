"""What a run does when a number is not finite: end with a clear sentence, or go back to the last good checkpoint."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from marl.checkpoints import checkpoint_file
from marl.core import distributed
from marl.core.errors import Diverged, NonFinite
from marl.engine import non_finite
from marl.engine.checkpointer import Checkpointer
from marl.engine.run_state import RunState
from marl.engine.updater import Updater
from marl.loggers.loggers import Logger
from marl.task import Task


class Recovery:
    """Looks at an iteration's data and figures, and handles what is not finite.

    Args:
        task, updater, run_state, checkpointer, loggers: those of the run.
        policy: "stop", "skip" or "restore" (`marl.engine.trainer.Trainer`).
        restore_factor: what a restore multiplies the learning rates by.
        max_restores: a restore too many ends the run.
    """

    def __init__(
        self,
        task: Task,
        updater: Updater,
        run_state: RunState,
        checkpointer: Checkpointer,
        loggers: Sequence[Logger],
        policy: Literal["stop", "skip", "restore"],
        restore_factor: float,
        max_restores: int,
    ) -> None:
        self.task, self.updater, self.run_state, self.metrics = task, updater, run_state, updater.metrics
        self.checkpointer, self.loggers = checkpointer, loggers
        self.policy, self.restore_factor, self.max_restores = policy, restore_factor, max_restores

    def collect(self) -> bool:
        """Have the task collect; False: a number was not finite, and a checkpoint was restored. Raises Diverged."""
        iteration = self.run_state.iteration
        try:
            self.task.collect(iteration)
        except NonFinite as error:
            names, latest = self.metrics.names, self.metrics.latest
            message = non_finite.sentence(iteration + 1, str(error), None, latest, names)
            if distributed.world() > 1:  # the others do not know of it, and can't go back along with this process
                raise Diverged(f"{message}; the earlier checkpoints are untouched") from error
            self._handle_non_finite(message, skip="")
            return False
        return True

    def check_finite(self, record: dict[str, float]) -> bool:
        """Whether loss and gradient of the iteration were finite; False: the last checkpoint was restored.

        Raises Diverged, naming what is not finite and where it comes from, unless the policy goes on.
        """
        names = self.metrics.names
        bad = non_finite.first_bad(record, names)
        if bad is None:
            self.metrics.note_finite(record)
            return True
        where = self.task.diagnose() or non_finite.bad_tensor(self.task.loss)
        latest = self.metrics.latest
        self._handle_non_finite(non_finite.sentence(self.run_state.iteration, bad, where, latest, names))
        return False

    def _handle_non_finite(self, message: str, skip: str = "skip or ") -> None:
        """Restore the last good checkpoint where that is asked for. Raises Diverged where not, or once too often."""
        if self.policy != "restore":
            tried = "every minibatch was skipped" if self.policy == "skip" and skip else ""
            ways = f"trainer.non_finite={'' if tried else skip}restore goes on"
            raise Diverged(f"{message}; the earlier checkpoints are untouched ({f'{tried}; ' if tried else ''}{ways})")
        if self.run_state.restores >= self.max_restores:
            raise Diverged(f"{message}; restored trainer.max_restores={self.max_restores} times")
        self._restore_last_good(message)

    def _restore_last_good(self, message: str) -> None:
        """Go back to the newest good checkpoint, with lower learning rates; the logs lose what came after it."""
        newest = checkpoint_file.newest(self.checkpointer.run_dir, self.updater.device)
        if newest is None:
            raise Diverged(f"{message}; there is no checkpoint yet to restore")
        content, restores = newest[1], self.run_state.restores + 1
        self.updater.optimizer.zero_grad(set_to_none=True)
        self.checkpointer.load_state_dict(content)
        # The checkpoint may be older than an earlier restore, whose factor it then lacks.
        factor = self.restore_factor ** (restores - content["restores"])
        self.run_state.note_restore(restores, factor)
        self.updater.lower_rates(factor)
        run_dir, config = self.checkpointer.run_dir, self.checkpointer.config
        for logger in self.loggers:
            logger.close()
            logger.open(run_dir, config, self.run_state.iteration, self.run_state.units)
        if distributed.main():
            went = f"back to iteration {self.run_state.iteration}, learning rates times {factor:.3g}"
            print(f"{message}; {went}", flush=True)


def warn_of_evaluation(run_state: RunState) -> None:
    """Say which figures of the latest evaluation are not finite, where the monitored one is among them."""
    evaluation = run_state.evaluation
    if not math.isfinite(evaluation[run_state.monitor]) and distributed.main():
        bad = ", ".join(f"{name} is {x}" for name, x in evaluation.items() if not math.isfinite(x))
        where = f"iteration {run_state.iteration}"
        message = f"warning: {where}: the evaluation is not finite ({bad}); best.pt stays as it was"
        print(message, file=sys.stderr, flush=True)


def check_evaluated(run_state: RunState, run_dir: Path) -> None:
    """Raise Diverged at the end of a run of which no evaluation was finite, so that there is no best checkpoint."""
    value = run_state.evaluation.get(run_state.monitor, 0.0)
    if run_state.best is None and not math.isfinite(value):
        raise Diverged(
            f"no evaluation was finite: at the end {run_state.monitor} is {value}; there is no best.pt, "
            f"the last weights are {run_dir / 'checkpoints' / 'last.pt'}"
        )
