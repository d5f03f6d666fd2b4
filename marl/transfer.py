"""Transfer: a new run that starts from saved weights."""

from pathlib import Path

from marl import checkpoint
from marl.errors import UserError
from marl.task import Task


def load_weights(task: Task, path: str | Path) -> None:
    """Put the modules of a checkpoint into `task`: all of them, and nothing else. Raises UserError otherwise."""
    try:
        task.loss.load_state_dict(checkpoint.load_weights(path, next(task.loss.parameters()).device))
    except (RuntimeError, KeyError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} does not fit this task's networks: {why[:200]}") from error
