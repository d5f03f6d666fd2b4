"""Signals: SIGTERM, SIGINT and SIGUSR1 ask a run to end after its update; what they interrupt is never lost."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from marl.core.errors import Stopped

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Signals:
    """Remembers the first signal while it is entered; a SIGINT after any other signal stops at once.

    Slurm's launchers (submitit) install handlers that put a job back into the queue. Such a handler, of SIGUSR1,
    SIGUSR2 or SIGTERM, is called after the checkpoint (`leave`). Outside of the main thread, where Python allows
    no handlers, it does nothing.

    Attributes:
        received: the first signal's number; 0: none.
    """

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            asking = [*ASKING, *([signal.SIGUSR2] if callable(signal.getsignal(signal.SIGUSR2)) else [])]
            self.before = {signum: signal.signal(signum, self._handle) for signum in asking}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        if not self.received:
            self.received = signum
            name = signal.Signals(signum).name
            text = f"{name}: finishing this update, then a checkpoint; Ctrl-C now stops at once\n"
            os.write(2, text.encode())  # print is not safe inside of a handler

    def leave(self, signum: int, iteration: int) -> None:
        """End the run: call the handler that was there before, if it is a program's own, and raise Stopped."""
        before = self.before.get(signum)
        self.__exit__()
        if callable(before) and before is not signal.default_int_handler:
            before(signum, None)
        raise Stopped(signum, iteration)
