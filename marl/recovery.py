"""What a run does when a number is not finite: end with a clear sentence, or go back to the last good checkpoint."""

import math
import sys
from typing import Any

from marl import checkpoint, distributed, divergence
from marl.errors import Diverged, NonFinite


def healthy(trainer: Any, record: dict[str, float]) -> bool:
    """Whether loss and gradient of the iteration were finite; False: the last checkpoint was restored.

    Raises Diverged, naming what is not finite and where it comes from, unless `trainer.non_finite` goes on.
    """
    bad = divergence.first_bad(record, trainer.watched)
    if bad is None:
        trainer.last = record
        return True
    where = getattr(trainer.task, "diagnose", lambda: None)() or divergence.bad_tensor(trainer.task.loss)
    _survive(trainer, divergence.sentence(trainer.iteration, bad, where, trainer.last, trainer.watched))
    return False


def collected(trainer: Any) -> bool:
    """Have the task collect; False: a number was not finite, and the last checkpoint was restored. Raises Diverged."""
    try:
        trainer.task.collect(trainer.iteration)
    except NonFinite as error:
        told = divergence.sentence(trainer.iteration + 1, str(error), None, trainer.last, trainer.watched)
        if distributed.world() > 1:  # the others do not know of it, and can't go back along with this process
            raise Diverged(f"{told}; the earlier checkpoints are untouched") from error
        _survive(trainer, told, skip="")
        return False
    return True


def _survive(trainer: Any, told: str, skip: str = "skip or ") -> None:
    """Go back to the last good checkpoint where that is asked for. Raises Diverged where not, or once too often."""
    if trainer.non_finite != "restore":
        tried = "every minibatch was skipped" if trainer.non_finite == "skip" and skip else ""
        ways = f"trainer.non_finite={'' if tried else skip}restore goes on"
        raise Diverged(f"{told}; the earlier checkpoints are untouched ({f'{tried}; ' if tried else ''}{ways})")
    if trainer.restores >= trainer.max_restores:
        raise Diverged(f"{told}; restored trainer.max_restores={trainer.max_restores} times")
    _go_back(trainer, told)


def refuse_bad_weights(trainer: Any) -> None:
    """Raise Diverged where a weight is not finite, so that no such checkpoint comes to be."""
    bad = divergence.bad_tensor(trainer.task.loss)
    if bad is not None:
        raise Diverged(f"iteration {trainer.iteration}: {bad}; no checkpoint is written, the earlier ones stay")


def tell_evaluation(trainer: Any) -> None:
    """Say which figures of the latest evaluation are not finite, where the monitored one is among them."""
    if not math.isfinite(trainer.evaluation[trainer.monitor]) and distributed.main():
        bad = ", ".join(f"{name} is {x}" for name, x in trainer.evaluation.items() if not math.isfinite(x))
        told = f"warning: iteration {trainer.iteration}: the evaluation is not finite ({bad}); best.pt stays as it was"
        print(told, file=sys.stderr, flush=True)


def judged(trainer: Any) -> None:
    """Raise Diverged at the end of a run of which no evaluation was finite, so that there is no best checkpoint."""
    value = trainer.evaluation.get(trainer.monitor, 0.0)
    if trainer.best is None and not math.isfinite(value):
        raise Diverged(
            f"no evaluation was finite: at the end {trainer.monitor} is {value}; there is no best.pt, "
            f"the last weights are {trainer.run_dir / 'checkpoints' / 'last.pt'}"
        )


def _go_back(trainer: Any, told: str) -> None:
    """Restore the newest good checkpoint, with lower learning rates; the logs lose what came after it."""
    found = checkpoint.newest(trainer.run_dir, trainer.device)
    if found is None:
        raise Diverged(f"{told}; there is no checkpoint yet to restore")
    restores = trainer.restores + 1
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.load(found[1])
    trainer.restores = restores
    # The checkpoint may be older than an earlier restore, whose factor it then lacks.
    factor = trainer.restore_factor ** (restores - found[1]["restores"])
    trainer.lowered *= factor
    divergence.lower_rates(trainer.optimizer, trainer.schedule.scheduler, factor)
    for logger in trainer.loggers:
        logger.close()
        logger.open(trainer.run_dir, trainer.config, trainer.iteration, trainer.units)
    if distributed.main():
        print(f"{told}; back to iteration {trainer.iteration}, learning rates times {factor:.3g}", flush=True)
