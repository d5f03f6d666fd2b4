"""Sessions: what a policy remembers of one client's episodes, kept between requests for a while."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from agents.deploy.server.batching import Acted, Job
from agents.deploy.server.settings import Refused
from agents.deploy.server.versions import Version


@dataclass
class Session:
    """One client's episodes: `rows` environments that are played at once, by the version that was current at first.

    memory: {group: float32 [rows, A, M]} before the next step; a group that is not in it has not acted yet.
    busy: a request is being answered; a second one would not know which memory is its own.
    pending: rows and memory that the request under way began with, which count once it has succeeded; None: none is.
    """

    id: str
    version: Version
    used: float
    rows: int | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    busy: bool = False
    pending: tuple[int | None, dict[str, Tensor]] | None = None

    def begin(self, job: Job, reset: bool) -> None:
        """Give the job the session's memory. Raises Refused: it is busy, or the job has another number of rows."""
        if self.busy:
            raise Refused(409, "session: its request before this one is not answered yet", reason="busy")
        rows, memory = (None, {}) if reset else (self.rows, self.memory)
        if rows not in (None, job.rows):
            raise Refused(400, f"session: began with {rows} rows, not {job.rows}; reset=true begins again")
        job.memory = {**self.version.shapes.zeros(job.rows), **memory}
        self.busy, self.pending = True, (job.rows, memory)

    def end(self, acted: Acted | None) -> None:
        """Remember what came after the step; None: it failed, and everything is as it was before."""
        self.busy = False
        if acted is not None and self.pending is not None:
            self.rows, before = self.pending
            # Clones: a part of a batch would keep the whole batch.
            self.memory = {**before, **{name: value.clone() for name, value in acted.memory.items()}}
        self.pending = None


class Sessions:
    """All sessions of a server, the longest unused first.

    Args:
        most: how many there may be.
        seconds: without a request, after which one is forgotten.
        clock: seconds, for tests.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self.clock = most, seconds, clock
        self.by_id: dict[str, Session] = {}

    def open(self, version: Version) -> Session:
        """A new session. Raises Refused where there are too many."""
        self.sweep()
        if len(self.by_id) >= self.most:
            raise Refused(
                503, f"sessions: all {self.most} are in use (max_sessions)", {"retry-after": "1"}, reason="sessions"
            )
        session = Session(secrets.token_urlsafe(18), version, self.clock())
        self.by_id[session.id] = session
        return session

    def find(self, id: str) -> Session:
        """The session of this id, used now. Raises Refused where there is none (any more)."""
        self.sweep()
        session = self.by_id.pop(id, None)
        if session is None:
            raise Refused(404, f"session {id[:40]!r}: there is none (they end {self.seconds:g} s after their last use)")
        session.used = self.clock()
        self.by_id[id] = session  # the last to be forgotten now
        return session

    def close(self, id: str) -> None:
        """Forget one. Raises Refused where there is none."""
        self.by_id.pop(self.find(id).id)

    def sweep(self) -> None:
        """Forget those that were not used for too long, unless a request is under way."""
        oldest = self.clock() - self.seconds
        while self.by_id:
            session = next(iter(self.by_id.values()))
            if session.used > oldest or session.busy:
                return
            del self.by_id[session.id]

    def of(self, version: Version) -> int:
        """How many sessions a version has."""
        return sum(session.version is version for session in self.by_id.values())
