"""A run's directory that is removed or moved while the run trains: what can be kept is kept, and the run ends."""

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from marl import checkpoint, distributed, files, state
from marl.errors import UserError

REMOVED, MOVED = "removed", "moved"
DELETED = " (deleted)"  # what Linux adds to the name of an open file that has none any more


class Presence:
    """Whether a run's directory is still the one that the run began in.

    Args:
        folder: the directory, which exists.
    """

    def __init__(self, folder: Path):
        self.folder, self.number = folder, os.open(folder, os.O_RDONLY)
        self.mark = folder / "config.yaml"
        self.marked = self.mark.is_file()

    def lost(self) -> str | None:
        """REMOVED, MOVED, or None where all is well."""
        mine = os.fstat(self.number)
        try:
            if os.path.samestat(mine, os.stat(self.folder)):
                return REMOVED if self.marked and not self.mark.is_file() else None
        except (FileNotFoundError, NotADirectoryError):
            pass
        return REMOVED if mine.st_nlink == 0 or self.name().endswith(DELETED) else MOVED

    def name(self) -> str:
        """Where the directory is now; nothing where the system does not tell."""
        with suppress(OSError):
            return os.readlink(f"/proc/self/fd/{self.number}")
        return ""

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.number)


def lost(trainer: Any) -> str | None:
    """What happened to the run's directory, in all processes alike; None: it is in its place."""
    return distributed.agree(trainer.presence.lost() if trainer.presence else None)


def check(trainer: Any, record: dict[str, float] | None = None, together: bool = True) -> None:
    """End the run where its directory is lost, with what can be kept of it.

    Args:
        record: the iteration's figures where they are not logged yet.
        together: all processes call this, and can take part in a checkpoint.

    Raises:
        UserError: the directory was removed or moved; it says what was kept and where.
    """
    if together:
        what = lost(trainer)
    else:
        what = trainer.presence.lost() if trainer.presence else None
    if what is None:
        return
    content = state.capture(trainer) if together or distributed.world() == 1 else None
    told = f"{trainer.run_dir}: was {what} while the run trained (iteration {trainer.iteration})"
    if distributed.main():
        told += f"; {_keep(trainer, what, content, record)}"
    raise UserError(told)


def _keep(trainer: Any, what: str, content: dict | None, record: dict[str, float] | None) -> str:
    """Write what is in memory where the directory is now, or where it was; says where that is."""
    place = _made_again(trainer) if what == REMOVED else Path(trainer.presence.name() or "NEW_PLACE")
    if content is not None and place.is_dir():
        for logger in trainer.loggers:
            logger.rescue(place, record, trainer.units)
        checkpoint.save(place / "checkpoints" / "last.pt", content, trainer.keep_last)
    for logger in trainer.loggers:
        with suppress(OSError):  # the files of some are gone
            logger.close()
    trainer.presence.close()
    trainer.loggers, trainer.presence = [], None  # it has been told
    if content is not None and place.is_dir():
        return f"a checkpoint of this moment is in {place}: resume={place} continues"
    if what == REMOVED:
        return f"its configuration is in {place}, its checkpoints are lost"
    return f"resume={place} continues from its last checkpoint"


def _made_again(trainer: Any) -> Path:
    """The directory, made again; another one where somebody uses the name by now."""
    taken = ("metrics.csv", "summary.json", "config.yaml")
    for number in count(1):
        place = trainer.run_dir.with_name(f"{trainer.run_dir.name}{f'_{number}' if number > 1 else ''}")
        if not any((place / name).exists() for name in taken):
            break
    place.mkdir(parents=True, exist_ok=True)
    if trainer.config:
        text = yaml.safe_dump(trainer.config, sort_keys=False, allow_unicode=True)
        files.write(place / "config.yaml", text.encode())
    return place
