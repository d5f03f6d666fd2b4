"""Recordings: episodes as a sequence of the simulator's states, with what agents saw, did and got; no pixels.

Shapes: T steps, E episodes (one per environment), A agents in a group, F features, D action dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from envs.base import EnvError
from envs.rendering.scene import Scene, scene
from envs.vmas.agent_masks import masks_in, veil
from envs.vmas.env import VmasEnv

FORMAT = 1
MOST_STEPS = 1000  # of an environment without a time limit

Act = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


@dataclass
class Recording:
    """E episodes. Frame 0 is the reset, frame t the state after t steps; an episode's frames end at its length.

    settings: keyword arguments of `VmasEnv` but num_envs. groups: {group: agent names}. dt: seconds per step.
    state: {path: [T + 1, …] or, where nothing changes, [1, …]}, the simulator's tensors as `envs.vmas.simulator_state`
        names them.
    plain: plain values {path: value}, frame by frame what has changed. lengths, terminated: per episode.
    observation: {group: [T + 1, E, A, F]}, action: [T, E, A, D], reward: [T, E, A], value: [T + 1, E, A] or absent.
    """

    settings: dict[str, Any]
    seed: int
    dt: float
    groups: dict[str, list[str]]
    state: dict[str, Tensor]
    plain: list[dict[str, Any]]
    lengths: list[int]
    terminated: list[bool]
    observation: dict[str, Tensor]
    action: dict[str, Tensor]
    reward: dict[str, Tensor]
    value: dict[str, Tensor] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)  # the caller's own: checkpoint, frames, …

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {f"state/{k}": v for k, v in self.state.items()}
        for name in ("observation", "action", "reward", "value"):
            tensors |= {f"{name}/{group}": v for group, v in getattr(self, name).items()}
        content = {
            k: getattr(self, k) for k in ("settings", "seed", "dt", "groups", "plain", "lengths", "terminated", "note")
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(
                {k: v.contiguous().clone() for k, v in tensors.items()},
                temporary,
                {"recording": json.dumps({"format": FORMAT, **content})},
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what `save` wrote; EnvError for any other file."""
        try:
            with safe_open(str(path), "pt") as file:
                content = json.loads((file.metadata() or {}).get("recording", "{}"))
                if content.pop("format", None) != FORMAT:
                    raise EnvError(f"{path} is no recording of this version (format {FORMAT}).")
                parts: dict[str, dict[str, Tensor]] = {"value": {}}
                for key in file.keys():  # noqa: SIM118 - not a dict
                    kind, _, name = key.partition("/")
                    parts.setdefault(kind, {})[name] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise EnvError(f"{path} can't be read as a recording: {error}.") from error
        return cls(**content, **parts)

    def scenes(self, episode: int, every: int = 1) -> Iterator[Scene]:
        """The drawn frames of an episode, from reset to end, in the simulator's own drawing."""
        simulator = Restorer(self)
        for t in range(0, self.lengths[episode] + 1, every):
            yield simulator.scene(t, episode)


class Restorer:
    """A simulator that is put into the states of a recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        arguments = {"num_envs": recording.episodes, "seed": recording.seed}  # some draw colours when they are built
        self.env = VmasEnv(**recording.settings, **arguments, fast="off")
        self._at: int | None = None
        unknown = self.env.world.pool.main.tensors.keys() - recording.state.keys()
        if unknown:
            raise EnvError(f"this recording is of another scenario or version: it has no {min(unknown)}.")

    def show(self, t: int) -> Any:
        """The simulator in frame t. Raises EnvError if the recording is of another scenario or version."""
        if self._at == t:
            return self.env.world.simulator
        main = self.env.world.pool.main
        for k in range(t + 1) if self._at is None or self._at > t else range(self._at + 1, t + 1):
            main.write_host(self.recording.plain[k])
        main.refresh()
        for path, values in self.recording.state.items():
            slot = main.tensors.get(path) or main.host.get(path)
            value = values[min(t, len(values) - 1)]
            if slot is None:
                continue  # scratch that a step makes and a reset drops
            if isinstance(slot.value, Tensor) and slot.value.shape != value.shape:
                raise EnvError(
                    f"this recording is of another scenario or version: {path} has shape "
                    f"{tuple(value.shape)} there, and {tuple(slot.value.shape)} here."
                )
            slot.write(value.clone())
        main.refresh()
        self._at = t
        return self.env.world.simulator

    def scene(self, t: int, episode: int) -> Scene:
        """The picture of an episode's frame t."""
        return scene(self.show(t), episode)


@torch.no_grad()
def record(
    settings: dict[str, Any], act: Act, episodes: int = 1, seed: int = 0, note: dict[str, Any] | None = None
) -> Recording:
    """Play `episodes` episodes at once and write their states down, by the simulator itself.

    The eager path, since a kernel leaves what only drawings need (rays, forces) as it was.
    settings: keyword arguments of `VmasEnv` but num_envs. act: maps {group: [E, A, F]} (and "/state": [E, S], where
    the settings ask for it, and what `envs.vmas.agent_masks` says) to actions {group: [E, A, D]} in the environment's
    units, and values {group: [E, A]}. The dead see zeros and earn nothing.
    """
    return record_in(*eager_env(settings, episodes, seed), act, seed, note)


def eager_env(settings: Mapping[str, Any], episodes: int, seed: int) -> tuple[VmasEnv, dict[str, Any]]:
    """The environment that `record` plays in, and those of its settings that a recording keeps."""
    kept = {k: v for k, v in settings.items() if k not in ("num_envs", "fast", "device", "seed", "pool_size")}
    return VmasEnv(**kept, num_envs=episodes, seed=seed, fast="off"), kept


def record_in(
    env: VmasEnv, settings: dict[str, Any], act: Act, seed: int, note: dict[str, Any] | None = None
) -> Recording:
    """As `record`, for players that are made for one environment: `env` and `settings` come from `eager_env`."""
    episodes = env.num_envs
    simulator, pool = env.world.simulator, env.world.pool
    observation = env.world.reset(seed)
    taken = _Taker(env)
    names = list(env.spec.groups)
    observed, actions, rewards, values = [observation], [], [], []
    lengths, ended = torch.zeros(episodes, dtype=torch.int64), torch.zeros(episodes, dtype=torch.bool)
    running = torch.ones(episodes, dtype=torch.bool)
    taken.take()
    for _ in range(env.spec.max_steps or MOST_STEPS):
        action, value = act(observation)
        with pool.stream:
            observations, gains, terminated, over, _ = simulator.step(env.world.split_actions(action))
        before = masks_in(observation, names)
        observation = env.world.observe(simulator, observations)
        veil(observation, masks_in(observation, names))
        taken.take()
        observed.append(observation)
        actions.append(action)
        values.append(value)
        reward = {name: env.world.groups[name].reward(gains) for name in names}
        rewards.append({n: r * before[n]["alive"] if "alive" in before[n] else r for n, r in reward.items()})
        lengths += running
        ended |= running & terminated
        running &= ~(terminated | over)
        if not running.any():
            break
    values.append(act(observation)[1])

    def stacked(frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([f[name] for f in frames]) for name in names if all(name in f for f in frames)}

    return Recording(
        settings,
        seed,
        float(simulator.world.dt),
        {name: list(group.agents) for name, group in env.spec.groups.items()},
        taken.states(),
        taken.plain,
        lengths.tolist(),
        ended.tolist(),
        stacked(observed),
        stacked(actions),
        stacked(rewards),
        stacked(values),
        note or {},
    )


class _Taker:
    """Copies the simulator's state, frame by frame."""

    def __init__(self, env: VmasEnv) -> None:
        self.main = env.world.pool.main
        self.frames: dict[str, list[Tensor]] = {}
        self.plain: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}

    def take(self) -> None:
        self.main.refresh()
        for path, slot in self.main.tensors.items():
            self.frames.setdefault(path, [])
            frames = self.frames[path]
            frames += [slot.value.detach().clone()] * (len(self.plain) + 1 - len(frames))  # late: as they first were
        now = self.main.host_values()
        self.plain.append({k: v for k, v in now.items() if k not in self._last or self._last[k] != v})
        self._last = now

    def states(self) -> dict[str, Tensor]:
        out = {}
        for path, frames in self.frames.items():
            frames = frames + [frames[-1]] * (len(self.plain) - len(frames))
            if any(value.shape != frames[0].shape for value in frames):
                raise EnvError(f"the scenario's tensor {path} changes its shape from step to step.")
            same = all(torch.equal(value, frames[0]) for value in frames)
            out[path] = torch.stack(frames[:1] if same else frames)
        return out
