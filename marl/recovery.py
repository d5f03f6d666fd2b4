"""What a run does when a number is not finite: end with a clear sentence, or go back to the last good checkpoint."""

from typing import Any

from marl import checkpoint, distributed, divergence
from marl.errors import Diverged


def healthy(trainer: Any, record: dict[str, float]) -> bool:
    """Whether loss and gradient of the iteration were finite; False: the last checkpoint was restored.

    Raises Diverged, naming what is not finite and where it comes from, unless `trainer.non_finite` goes on.
    """
    bad = divergence.first_bad(record, trainer.watched)
    if bad is None:
        trainer.last = record
        return True
    where = getattr(trainer.task, "diagnose", lambda: None)() or divergence.bad_tensor(trainer.task.loss)
    told = divergence.sentence(trainer.iteration, bad, where, trainer.last, trainer.watched)
    if trainer.non_finite != "restore":
        raise Diverged(f"{told}; the earlier checkpoints are untouched (trainer.non_finite=skip or restore goes on)")
    if trainer.restores >= trainer.max_restores:
        raise Diverged(f"{told}; restored trainer.max_restores={trainer.max_restores} times")
    _go_back(trainer, told)
    return False


def refuse_bad_weights(trainer: Any) -> None:
    """Raise Diverged where a weight is not finite, so that no such checkpoint comes to be."""
    bad = divergence.bad_tensor(trainer.task.loss)
    if bad is not None:
        raise Diverged(f"iteration {trainer.iteration}: {bad}; no checkpoint is written, the earlier ones stay")


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
    divergence.lower_rates(trainer.optimizer, trainer.schedule.scheduler, factor)
    for logger in trainer.loggers:
        logger.close()
        logger.open(trainer.run_dir, trainer.config, trainer.iteration, trainer.units)
    if distributed.main():
        print(f"{told}; back to iteration {trainer.iteration}, learning rates times {factor:.3g}", flush=True)
