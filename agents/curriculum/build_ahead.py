"""Builds the environments of later stages in a process of its own, so that their kernels lie on the disk in time.

    python -m agents.curriculum.build_ahead PARENT < settings.json

Whatever fails here makes a change of stage slower, and nothing else.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from agents.curriculum.curriculum import Curriculum, Place
from envs.base import Env
from marl.callbacks.base import Callback
from marl.core.imports import resolve
from marl.launch.orphans import at_work

PATIENCE = 10.0  # seconds that the process gets to end


def description(factory: Callable[..., Env], seed: int) -> dict[str, Any] | None:
    """A factory as JSON can carry it, with the run's own number of environments; None where it can't be built ahead."""
    if not isinstance(factory, partial) or factory.args or not getattr(factory.func, "compiles", False):
        return None
    if factory.keywords.get("fast") == "off":
        return None
    settings = {**factory.keywords, "seed": seed}
    try:
        json.dumps(settings)
    except (TypeError, ValueError):  # objects, in a notebook
        return None
    return {"env": f"{factory.func.__module__}.{factory.func.__qualname__}", "settings": settings}


class BuildAhead(Callback):
    """Keeps one process of low priority at work on the environments that are not built yet.

    seed_of: {place: seed} as the run itself will build it.
    """

    def __init__(self, curriculum: Curriculum, seed_of: Callable[[Place], int]) -> None:
        self.curriculum, self.seed_of = curriculum, seed_of
        self.asked: set[Place] = set()
        self.process: subprocess.Popen | None = None

    def on_start(self, trainer) -> None:
        """Begin with what may come next; on a GPU there are no kernels."""
        self.asked = {self.curriculum.place}
        self._begin(trainer)

    def on_iteration(self, trainer, record: dict) -> None:
        """Go on, where a stage has changed meanwhile."""
        if self.process is None or self.process.poll() is not None:
            self._begin(trainer)

    def _begin(self, trainer) -> None:
        places = [place for place in self.curriculum.upcoming() if place not in self.asked]
        if not places or trainer.task.device.type != "cpu":
            return
        self.asked |= set(places)
        work = [description(self.curriculum.factory(place), self.seed_of(place)) for place in places]
        work = [each for each in work if each is not None]
        if not work:
            return
        search = os.pathsep.join(path or os.getcwd() for path in sys.path)
        variables = {**os.environ, "PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with contextlib.suppress(OSError):  # no process to be had: built when it is needed
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables,
                start_new_session=True,
            )  # fmt: skip
            self.process.stdin.write(json.dumps(work).encode())
            self.process.stdin.close()

    def on_end(self, trainer) -> None:
        """End the process, and the compiler that it may have begun."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process = None


def build(work: Mapping[str, Any]) -> None:
    """Build what `description` describes. Raises whatever the environment does, TypeError where it is none."""
    kind = resolve(work["env"], "env")
    if not (isinstance(kind, type) and issubclass(kind, Env)):
        raise TypeError(f"{work['env']} is no environment")
    kind(**work["settings"]).close()


def main() -> None:
    """Build everything that is asked for on standard input, one after another; what fails is left out."""
    os.nice(19)
    torch.set_num_threads(1)
    with at_work(int(sys.argv[1])):
        for work in json.load(sys.stdin):
            try:
                build(work)
            except Exception as error:  # of a scenario: the run itself will tell
                print(f"{work['env']}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
