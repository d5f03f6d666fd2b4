"""Faults of a scenario's own code, named with the scenario, the method, the agent and the step."""

from __future__ import annotations

import linecache
import re
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import vmas.simulator
from torch import Tensor

from envs.base import EnvError
from envs.vmas import patches

SIMULATOR = Path(vmas.simulator.__file__).parent


@contextmanager
def naming_errors(scenario: str, step: int) -> Iterator[None]:
    """Turn what a scenario raises at `step` into an EnvError; steps count from the last reset, 0 is the first trial."""
    try:
        yield
    except EnvError:
        raise
    except Exception as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        if isinstance(error, AssertionError) and _of_simulator(frames[-1][0].f_code.co_filename):
            raise  # it is about the actions
        returned = _returned(frames)
        if returned:
            raise EnvError(
                f"scenario {scenario!r}: {returned[0]} returned {returned[1]} {_when(step)}; must be {returned[2]}"
            ) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split()) or "no message"
        raise EnvError(
            f"scenario {scenario!r} raised {type(error).__name__} {_when(step)}, in "
            f"{frame.filename}:{frame.lineno} ({frame.name}): {message[:300]}"
        ) from error


WANTED = {
    "reward": "a tensor [E], one number per environment",
    "observation": "a float tensor [E, F], or a dict of such",
    "done": "a bool tensor [E] or [E, A]",
    "info": "a dict of tensors [E, …]",
}


def _of_simulator(file: str) -> bool:
    return Path(file).is_relative_to(SIMULATOR) or file == patches.__file__


def _returned(frames: list[tuple[types.FrameType, int]]) -> tuple[str, str, str] | None:
    """(method and agent, what it returned, what it must be) where the simulator stumbled over what a method returned.

    It copies what it gets, and a plain number or a text has no copy.
    """
    if not _of_simulator(frames[-1][0].f_code.co_filename):
        return None
    for frame, line in reversed(frames):
        called = re.search(
            r"scenario\.(\w+)\(", "".join(linecache.getline(frame.f_code.co_filename, n) for n in (line, line + 1))
        )
        if called and called[1] in WANTED and "agent" in frame.f_locals:
            value = frames[-1][0].f_locals.get("value")
            what = "no tensor" if value is None or isinstance(value, dict) else f"{type(value).__name__} {value!r}"[:80]
            return f"{called[1]} of {frame.f_locals['agent'].name}", what, WANTED[called[1]]
    return None


def check_outputs(
    scenario: str,
    step: int,
    num_envs: int,
    agents: list[str],
    observations: list[Any],
    rewards: list[Tensor],
    terminated: Tensor,
    widths: list[int] | None = None,
) -> None:
    """Refuse what a scenario returns in a wrong shape or dtype. Looks at no number, so nothing waits for the device.

    widths: numbers per observation of each agent, F, if they are known.
    observations: per agent float32 [E, F] or a dict of such, of sets [E, N, F] or of pictures [E, C, H, W], which may
        be uint8; rewards: per agent [E] or [E, 1]; terminated: bool [E].
    Raises EnvError naming the scenario, the method, the agent and the step.
    """

    def refuse(method: str, agent: str, got: Any, expected: str) -> None:
        kind = f"{got.dtype} {list(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
        raise EnvError(f"scenario {scenario!r}: {method} of {agent} returned {kind} {_when(step)}; must be {expected}")

    for i, (agent, observation, reward) in enumerate(zip(agents, observations, rewards, strict=True)):
        parts = _leaves(observation)
        for part in parts:
            shaped = isinstance(part, Tensor) and part.dim() >= 2 and len(part) == num_envs
            if not shaped or not (part.is_floating_point() or (part.dtype == torch.uint8 and part.dim() == 4)):
                refuse("observation", agent, part, f"a float tensor [{num_envs}, F], environments first")
        if widths is not None and (width := sum(part[0].numel() for part in _leaves(observation))) != widths[i]:
            raise EnvError(
                f"scenario {scenario!r}: observation of {agent} returned {width} numbers {_when(step)}; "
                f"must be {widths[i]}, as when it was tried out"
            )
        if not isinstance(reward, Tensor) or reward.numel() != num_envs or reward.is_complex():
            refuse("reward", agent, reward, f"a tensor [{num_envs}], one number per environment")
    if terminated.dtype != torch.bool or terminated.shape != (num_envs,):
        refuse(
            "done",
            "the scenario",
            terminated,
            f"a bool tensor [{num_envs}], or [{num_envs}, {len(agents)}] where agents end each on its own",
        )


def _leaves(observation: Any) -> list[Tensor]:
    if isinstance(observation, dict):
        return [leaf for value in observation.values() for leaf in _leaves(value)]
    return [observation]


def _when(step: int) -> str:
    return f"at step {step} of its environments" if step else "when it was tried out"
