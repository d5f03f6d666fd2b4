"""A replay buffer in checkpoints: a file per rollout, written once, to which they refer."""

from collections.abc import Mapping
from typing import Any

from agents.collection.replay.buffer import ReplayBuffer
from marl.checkpoints.attachments import Attachments


class ReplaySegments:
    """Saves a replay buffer rollout by rollout.

    A save writes the rollouts that no earlier one has written, so that it costs what is new. The same file serves all
    checkpoints while the rollout is held.

    Args:
        buffer: what is saved and put back.
        attachments: where the files lie.
    """

    def __init__(self, buffer: ReplayBuffer, attachments: Attachments) -> None:
        self.buffer, self.attachments = buffer, attachments
        self.written: dict[int, tuple[str, str]] = {}  # number of a rollout: its file, and the file's SHA-256

    def state_dict(self) -> dict[str, Any]:
        """The buffer's counters, what follows its newest step, and "files", {path: SHA-256}, from the oldest on.

        Raises UserError where the disk refuses.
        """
        held = self.buffer.held
        self.written = {number: self.written[number] for number in held if number in self.written}
        for number in held:
            if number not in self.written or not self.attachments.has(self.written[number][0]):
                self.written[number] = self.attachments.write(number, self.buffer.rollout(number))
        files = dict(self.written[number] for number in held)
        return {"replay": {"first": held.start, "following": self.buffer.following()}, "files": files}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, bitwise identically. Raises UserError naming a missing or damaged file."""
        first, files = state["replay"]["first"], state["files"]
        rollouts = (self.attachments.read(name, digest) for name, digest in files.items())
        self.buffer.restore(first, rollouts, state["replay"]["following"])
        self.written = dict(enumerate(files.items(), first))
