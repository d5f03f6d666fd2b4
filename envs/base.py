"""The contract that every environment in this package fulfils: transitions, step, snapshot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from envs.infos import InfoBuffers, InfoRules
from envs.spec import EnvSpec, sample_actions
from marl.core.errors import UserError

STATE = "/state"  # the global state's key where it lies among the groups' observations; no group has a slash
REFUSED = "not a number, or outside of the allowed choices"


class EnvError(UserError):
    """A user's mistake about an environment."""


class ActionError(EnvError):
    """The environment refuses an action: it holds what is no number, or none of the choices."""


def misshapen(name: str, shape: tuple[int, ...], value: Tensor | None) -> EnvError:
    """What to raise where a group's action is missing, or not of this shape [E, A, D]."""
    got = f"no group {name!r}" if value is None else f"shape {tuple(value.shape)} for group {name!r}"
    return EnvError(f"actions must be {{{name!r}: {list(shape)}, …}}, got {got}.")


def check_actions(env: Env, where: str, action: Mapping[str, Tensor]) -> None:
    """Looks at actions {group: [E, A, D]}, waiting for their device; where: the environment's name.

    Raises:
        EnvError: a group is missing, or its actions have another shape.
        ActionError: a number is not finite, or none of its choices; those of the dead and of who waits are ignored.
    """
    for name, group in env.spec.groups.items():
        shape, value = (env.num_envs, group.n_agents, group.action.size), action.get(name)
        if value is None or value.shape != shape:
            raise misshapen(name, shape, value)
        chosen = group.action.chosen(value)
        if not bool(chosen.all()):
            masks = env.masks()[name] if group.masks else {}
            for kind in masks.keys() & {"alive", "turn"}:
                chosen = chosen | ~masks[kind].unsqueeze(-1)
        if not bool(torch.isfinite(value).all() & chosen.all()):
            raise ActionError(f"{where} refused the action of group {name!r}: {REFUSED}.")


def whole(name: str, value: Tensor) -> Tensor:
    """A group's choices as int64, whatever their type. Raises ActionError for fractions, for which it waits."""
    choices = value.long()
    if value.is_floating_point() and not torch.equal(choices.to(value.dtype), value):
        raise ActionError(f"the actions of {name!r} are refused: {REFUSED}.")
    return choices


@dataclass(eq=False)
class Transition:
    """What a step of E environments returns; `next_*` are from before the auto-reset, the rest is after it."""

    observation: dict[str, Tensor]  # {group: float32 [E, A, F]}: what the policy acts on next
    next_observation: dict[str, Tensor]  # {group: float32 [E, A, F]}: where the step really led
    reward: dict[str, Tensor]  # {group: float32 [E, A]}
    terminated: Tensor  # bool [E]: the task ended
    truncated: Tensor  # bool [E]: the time limit ended it; False where terminated
    state: Tensor | None = None  # float32 [E, S] after auto-reset
    next_state: Tensor | None = None  # float32 [E, S] before auto-reset
    # {group: {name: [E, A] or [E, A, …]}}: figures of the environment's own, of before the auto-reset; nan where none
    # was told. Names of which nothing was told in this step may be left out.
    info: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    # {group: bool [E, A]} of groups with `GroupSpec.ends`: whose own episode this step ended, and how. An agent that
    # was cut off is bootstrapped from its row of `next_observation`. Where the environment's episode ends, so does that
    # of every agent that was alive.
    agent_terminated: dict[str, Tensor] = field(default_factory=dict)
    agent_truncated: dict[str, Tensor] = field(default_factory=dict)  # False where agent_terminated

    @property
    def done(self) -> Tensor:
        """bool [E]: terminated or truncated."""
        return self.terminated | self.truncated


@dataclass(frozen=True, eq=False)
class DeviceState:
    """What steps on a GPU go on from, where `step_into` is work of the GPU and nothing else.

    tensors: all memory that a step writes and a later one reads. It stays where it is, in `reset` and `restore` too.
    generators: random streams that steps draw from, beside torch's default one: the same ones as long as the
        environment lives.
    key: all else that decides what steps do.
    """

    tensors: list[Tensor]
    generators: list[torch.Generator] = field(default_factory=list)
    key: Hashable = ()


class Env(ABC):
    """E environments stepped at once, each reset on its own when it ends, deciding by nothing but their own state."""

    spec: EnvSpec
    num_envs: int
    device: torch.device
    # Settings with which one of its class is built soonest, to look at its spec, and whether building compiles
    # something that is kept on the disk, so that another process may build it ahead.
    cheap: ClassVar[Mapping[str, Any]] = {"num_envs": 2}
    compiles: ClassVar[bool] = False
    shared_draws: tuple[str, ...] = ()  # what a reset draws once for all environments: their episodes have it in common
    why_not_captured: str = ""  # why rollouts on a GPU are no graphs where a user may wonder, as a part of a sentence

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """Whether a resumed run must keep the setting `key`: all but `workers`, which change no number."""
        return key != "workers"

    @abstractmethod
    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Restart all environments; a seed restarts their random stream as well.

        Returns {group: float32 [E, A, F]} and the global state float32 [E, S] (None if not asked for).
        """

    @abstractmethod
    def step(self, action: dict[str, Tensor]) -> Transition:
        """Advance by one step with {group: [E, A, D]}, float (continuous, clamped to the range) or int64 (discrete)."""

    def masks(self) -> dict[str, dict[str, Tensor]]:
        """{group: {kind: mask}} of the observations handed out last, by `reset` or `step`, for every `GroupSpec.masks`.

        "action": bool [E, A, sum(nvec)], True where a choice is allowed, the action's dimensions one after the other;
        where none is, all are taken to be. "alive": bool [E, A]; the observation of a dead agent is all zeros (in
        `next_observation` too), its action is ignored, and its episode ends with that of the others. In groups with
        `GroupSpec.ends` it ends with the agent: `next_observation` then holds the agent's true final observation at the
        step that ended it, and zeros after that. Where it comes to life again a new episode of its own begins.
        Where no agent of any group is alive the step belongs to no episode.
        "turn": bool [E, A], who acts in the next step; the others watch, their actions are ignored, and no choice is
        masked for them. Rewards come to everyone at every step, and what lies between an agent's own turns belongs to
        the earlier one.
        """
        return {}

    def final_masks(self) -> dict[str, Tensor]:
        """{group: bool [E, A, sum(nvec)]}: choices allowed at the `next_observation` of the last step.

        They differ from `masks` where the step ended an episode. Before the first step they are of any values, for the
        same groups. {} where the environment cannot tell: then all choices count as allowed there.
        """
        return {}

    def figures(self) -> dict[str, float]:
        """What the environment tells of itself, by name, for the log ("env/…"); numbers that lie on the host."""
        return {}

    def set_progress(self, progress: float) -> None:  # noqa: B027 - most environments do not ask
        """How far the run is, 0 to 1, for environments that read it; it is 1, the full task, until this is called.

        Part of the state: in snapshots, and the same in every environment.
        """

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """Everything that decides the next step, random streams included: cloned tensors under flat names."""

    @abstractmethod
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot: from there on `step` repeats itself, bitwise. EnvError if it is another env's."""

    def bind_rollout(
        self,
        observation: dict[str, Tensor],
        next_observation: dict[str, Tensor],
        reward: dict[str, Tensor],
        terminated: Tensor,
        truncated: Tensor,
        state: Tensor | None = None,
        next_state: Tensor | None = None,
        info: InfoBuffers | None = None,
        ends: dict[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Name the buffers that `step_into(t, …)` writes entry t of, as `Transition` would hold it.

        observation, next_observation: {group: float32 [T, E, A, F]}; reward: {group: float32 [T, E, A]}; terminated,
        truncated: bool [T, E]; state, next_state: float32 [T, E, S] or None. All contiguous, on `device`.
        ends: {group: (agent_terminated, agent_truncated)}, bool [T, E, A], of the groups with `GroupSpec.ends`.
        info: what infos are written to, those that it keeps; None: none are.
        """
        self.keep_infos(info.rules if info else InfoRules())
        self._info = info
        self._buffers = (observation, next_observation, reward, terminated, truncated, state, next_state)
        self._end_buffers = ends or {}

    def step_into(self, t: int, action: dict[str, Tensor]) -> None:
        """One step as `step` makes it, its results written to entry t of the bound buffers."""
        observation, next_observation, reward, terminated, truncated, state, next_state = self._buffers
        transition = self.step(action)
        for buffers, values in (
            (observation, transition.observation),
            (next_observation, transition.next_observation),
            (reward, transition.reward),
        ):
            for name, buffer in buffers.items():
                buffer[t].copy_(values[name])
        terminated[t].copy_(transition.terminated)
        truncated[t].copy_(transition.truncated)
        if state is not None and next_state is not None:
            assert transition.state is not None and transition.next_state is not None
            state[t].copy_(transition.state)
            next_state[t].copy_(transition.next_state)
        for name, (agent_terminated, agent_truncated) in self._end_buffers.items():
            agent_terminated[t].copy_(transition.agent_terminated[name])
            agent_truncated[t].copy_(transition.agent_truncated[name])
        if self._info is not None:
            self._info.write(t, transition.info)

    def prepare(self, steps: int) -> None:  # noqa: B027 - most environments have nothing to do
        """Before every rollout: the host's part of its steps (numbers drawn there, counters), brought to the device.

        The next that the environment is asked for are those steps, `step_into(0, …)` to `step_into(steps - 1, …)`.
        """

    def device_state(self) -> DeviceState | None:
        """What the rollout that was prepared needs to be a CUDA graph; None: its steps are made one by one."""
        return None

    def keep_infos(self, rules: InfoRules) -> None:  # noqa: B027 - most environments have theirs at no cost
        """From now on `Transition.info` need hold no figures but those that the rules keep; at first it holds all."""

    def random_action(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Uniform actions {group: [E, A, D]} from the caller's generator, which lives on the CPU or on `device`.

        Where actions are masked, uniform over the allowed ones of the observations handed out last.
        """
        return sample_actions(self.spec, self.num_envs, self.device, generator, self.masks())

    def close(self) -> None:  # noqa: B027 - most environments hold nothing that needs closing
        """Release what the environment holds outside of memory."""
