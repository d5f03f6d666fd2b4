"""A run's directory that is removed or moved while the run trains: what can be kept is kept, and the run ends."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from marl.checkpoints import checkpoint_file
from marl.core import distributed, files
from marl.loggers.loggers import Logger

REMOVED, MOVED = "removed", "moved"
DELETED = " (deleted)"  # what Linux adds to the name of an open file that has none any more


def lost(presence: "Presence | None", together: bool = True) -> str | None:
    """`Presence.lost` of the one process that has a presence (None in the others). together: all call this."""
    what = presence.lost() if presence else None
    return distributed.agree(what) if together else what


class Presence:
    """Whether a run's directory is still the one that the run began in, and what is kept where it isn't.

    Args:
        folder: the directory, which exists.
        config: the run's configuration.
        loggers: those that write there.
        keep_last: how many of the latest checkpoints are kept.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], loggers: Sequence[Logger], keep_last: int) -> None:
        self.folder, self.number = folder, os.open(folder, os.O_RDONLY)
        self.config, self.loggers, self.keep_last = config, loggers, keep_last
        self.mark = folder / "config.yaml"
        self.marked = self.mark.is_file()

    def lost(self) -> str | None:
        """REMOVED, MOVED, or None where all is well."""
        opened = os.fstat(self.number)
        try:
            if os.path.samestat(opened, os.stat(self.folder)):
                return REMOVED if self.marked and not self.mark.is_file() else None
        except (FileNotFoundError, NotADirectoryError):
            pass
        return REMOVED if opened.st_nlink == 0 or self.name().endswith(DELETED) else MOVED

    def name(self) -> str:
        """Where the directory is now; nothing where the system does not tell."""
        with suppress(OSError):
            return os.readlink(f"/proc/self/fd/{self.number}")
        return ""

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.number)

    def place(self, what: str) -> Path:
        """Where to write what is in memory: where the directory is now, or where it was, made again.

        what: happened, as `lost` says it. There need be no such directory, where the system does not tell.
        """
        return self._make_again() if what == REMOVED else Path(self.name() or "NEW_PLACE")

    def rescue(self, what: str, place: Path, content: dict | None, record: dict[str, float] | None, units: int) -> str:
        """Write what is in memory to `place`; says where. Closes the loggers and this.

        Args:
            what: happened, as `lost` says it.
            place: as `place` says it.
            content: of a checkpoint; None where there can be none.
            record: the iteration's figures where they are not logged yet.
            units: frames or epochs done.
        """
        if content is not None:
            for logger in self.loggers:
                logger.rescue(place, record, units)
            checkpoint_file.save(place / "checkpoints" / "last.pt", content, self.keep_last)
        for logger in self.loggers:
            with suppress(OSError):  # the files of some are gone
                logger.close()
        self.close()
        if content is not None:
            return f"a checkpoint of this moment is in {place}: resume={place} continues"
        if what == REMOVED:
            return f"its configuration is in {place}, its checkpoints are lost"
        return f"resume={place} continues from its last checkpoint"

    def _make_again(self) -> Path:
        """The directory, made again; another one where another run uses the name by now."""
        taken = ("metrics.csv", "summary.json", "config.yaml")
        for number in count(1):
            place = self.folder.with_name(f"{self.folder.name}{f'_{number}' if number > 1 else ''}")
            if not any((place / name).exists() for name in taken):
                break
        place.mkdir(parents=True, exist_ok=True)
        if self.config:
            text = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True)
            files.write(place / "config.yaml", text.encode())
        return place
