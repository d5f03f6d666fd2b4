"""The policies of a server and their versions: loaded, tried, swapped in while the one before goes on."""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from agents.deploy.server.batching import Batcher, Job, Watches
from agents.deploy.server.networks import Networks
from agents.deploy.server.settings import Refused, ServerSettings
from agents.deploy.server.wire import Shapes
from agents.policies.group_settings import sizes
from agents.policies.policy import Policy
from marl.core import run_directory
from marl.core.errors import UserError, closest, one_line
from marl.core.zoo import index as zoo

Stamp = tuple[str, int, int, int]
EXPORTED = {".onnx", ".pt2", ".ts", ".pte", ".c", ".h", ".html"}  # files of scripts/export.py and of pages


@dataclass(frozen=True, eq=False)
class Version:
    """A policy as it was loaded once. It is served as long as a request or a session holds it.

    number: 1, 2, … of this name. stamp: of the file that it was read from.
    """

    name: str
    number: int
    policy: Policy
    shapes: Shapes
    batcher: Batcher
    stamp: Stamp


class Policies:
    """Policies by name, each with its current version.

    Args:
        places: {name: run directory, checkpoint, policy file or zoo/NAME}.
        which: last or best, of run directories.
        settings: of the server.
        watches: is called with every batch.
        say: prints a line.

    Raises:
        UserError: one can't be loaded, or not by `settings.backend`.
    """

    def __init__(
        self,
        places: Mapping[str, str],
        which: str,
        settings: ServerSettings,
        watches: Watches,
        say: Callable[[str], None],
    ) -> None:
        self.places, self.which, self.settings = dict(places), which, settings
        self.watches, self.say = watches, say
        self.current = {name: self._load(name, 1) for name in self.places}
        self.failures = 0
        self.refused: dict[str, tuple[Stamp | None, str]] = {}  # the file, None: none was found; what was said of it
        self._one_at_a_time = asyncio.Lock()

    def find(self, name: str | None) -> Version:
        """The current version of a policy; None: of the only one. Raises Refused."""
        if name is None and len(self.current) == 1:
            return next(iter(self.current.values()))
        if name is None:
            raise Refused(400, f"policy: name one of {', '.join(self.current)}")
        if name not in self.current:
            hint = closest(name[:40], self.current)
            raise Refused(404, f"policy {name[:40]!r}: there is none{hint} (there are {', '.join(self.current)})")
        return self.current[name]

    def _load(self, name: str, number: int) -> Version:
        """A version that has acted once on zeros. Raises UserError, whatever a file makes torch raise."""
        where, wait = f"policies.{name}={self.places[name]}", self.settings.max_wait_ms
        try:
            check_suffix(self.places[name])
            stamp = self._stamp(name)
            policy = Policy.load(self.places[name], self.which)
            networks = Networks(policy, self.settings.backend)
            batcher = Batcher(policy, networks, self.settings.max_batch, wait and wait / 1000, self.watches)
            batcher.try_out(first_step(policy))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except Refused as error:
            raise UserError(f"{where}: its actions for observations of zeros are not finite") from error
        except Exception as error:
            raise UserError(f"{where}: can't be served ({type(error).__name__}: {one_line(error)})") from error
        return Version(name, number, policy, Shapes.of(policy), batcher, stamp)

    def _stamp(self, name: str) -> Stamp:
        """What tells a file from the one that lay in its place before."""
        path = zoo.located(self.places[name])
        if path.is_dir() and (path / "policy.safetensors").is_file():
            path = path / "policy.safetensors"
        path = run_directory.find(path, self.which)
        status = os.stat(path)
        return str(Path(path).resolve()), status.st_ino, status.st_mtime_ns, status.st_size

    async def reload(self) -> None:
        """Swap in what is new at each policy's place; what can't be loaded or has other sizes is left out with a line.

        Requests under way and sessions keep the version that they began with.
        """
        async with self._one_at_a_time:
            for name, before in list(self.current.items()):
                stamp = None
                try:
                    stamp = await asyncio.to_thread(self._stamp, name)
                    if stamp == before.stamp:
                        self.refused.pop(name, None)  # should it go wrong again, that is reported again
                        continue
                    if name in self.refused and stamp == self.refused[name][0]:
                        continue
                    # In a thread: requests go on meanwhile. Only the line that swaps is seen by them.
                    after = await asyncio.to_thread(self._load, name, before.number + 1)
                    check_sizes(before, after)
                # Whatever a file makes torch or onnxruntime raise: the version before serves on, and so does watching.
                except Exception as error:
                    kind = "" if isinstance(error, UserError | OSError) else f"{type(error).__name__}: "
                    problem = stamp, f"{kind}{one_line(error)}"
                    if self.refused.get(name) != problem:  # reported and counted once, not at every look
                        self.refused[name] = problem
                        self.failures += 1
                        self.say(f"policies.{name}: version {before.number} stays; {problem[1]}")
                    continue
                self.current[name] = after
                self.refused.pop(name, None)
                self.say(f"policies.{name}: version {after.number} serves, from {after.stamp[0]}")

    async def watch(self, seconds: float) -> None:
        """Reload whenever a file has changed, looking every so many seconds, for ever."""
        while True:
            await asyncio.sleep(seconds)
            await self.reload()


def check_suffix(place: str) -> None:
    """Raises UserError for a file that was made for other programs."""
    if (suffix := Path(place).suffix) in EXPORTED and not Path(place).is_dir():
        raise UserError(
            f"{suffix} is for other programs; give a run directory, a checkpoint (.pt), a policy.safetensors or "
            "zoo/NAME (backend=onnx makes its own .onnx from them)"
        )


def first_step(policy: Policy) -> Job:
    """One row of zeros at an episode's beginning."""
    groups = policy.spec.groups.items()
    zeros = {name: torch.zeros(1, group.n_agents, group.observation_size) for name, group in groups}
    return Job(zeros, 1, policy.memory(1))


def check_sizes(before: Version, after: Version) -> None:
    """Raises UserError where clients of `before` could not go on with `after`."""
    for what, old, new in (
        ("groups, agents or sizes", *({n: (g.agents, *sizes(g)) for n, g in version.policy.spec.groups.items()}
                                      for version in (before, after))),
        ("sizes of memory", before.shapes.memory, after.shapes.memory),
        ("action masks", before.shapes.choices, after.shapes.choices),
    ):  # fmt: skip
        if old != new:
            raise UserError(f"the new one has other {what}, with which clients could not go on")
