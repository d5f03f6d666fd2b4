"""Which agents of a VMAS scenario are alive and what they may choose, as the scenario itself says.

Shapes: E environments, A agents (of a group, or all that act by a policy, in the world's order).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from envs.base import EnvError
from envs.grouping import Group

ALIVE, MASK = "/alive/", "/mask/"  # before a group's name: keys among the observations; no group has a slash


class AgentMasks:
    """What a scenario says beside VMAS's own methods, and who was alive in the observations handed out last.

    done() -> bool [E, A]: instead of [E], where agents' episodes end each on its own. An agent is alive while its done
        is False. If that turns False again a new episode of its own begins. The environment's ends when all are done.
    alive(agent) -> bool [E]: False of an agent that is not there. With a done of [E, A] its episode ends when it goes
        (terminated), and another one begins when it comes. With a done of [E] it ends with those of the others.
    action_mask(agent) -> bool [E, choices]: True where a choice is allowed; for discrete actions only. Of several
        dimensions the choices follow one after the other.

    They are asked after every step and every reset, perhaps more than once, and must change nothing and draw nothing.
    What they say rides as float32 0 and 1 among the observations, "/alive/GROUP" [E, A] and "/mask/GROUP"
    [E, A, sum(nvec)], so that pools, kernels and auto-resets treat it like any other observation.

    now: {group: {kind: bool}} as `Env.masks` returns it. led: the same of where the last step led, before a reset.
    ends: whether agents end each on its own.
    """

    def __init__(self, scenario: str, simulator: Any, groups: dict[str, Group]) -> None:
        self.scenario, self.groups = scenario, groups
        done = simulator.scenario.done()
        self.ends = done.dtype == torch.bool and tuple(done.shape) == (simulator.num_envs, simulator.n_agents)
        self.comes, self.chooses = (callable(getattr(simulator.scenario, n, None)) for n in ("alive", "action_mask"))
        if self.chooses and simulator.continuous_actions:
            raise EnvError(
                f"scenario {scenario!r} has an action_mask, and masks are of discrete actions only; set "
                "env.continuous_actions=false."
            )
        kinds = {"action": self.chooses, "alive": self.ends or self.comes}
        self.kinds = tuple(kind for kind, has in kinds.items() if has)
        for group in groups.values() if self else ():
            group.spec = replace(group.spec, masks=self.kinds, ends=self.ends)
        self._places: dict[tuple[str, str], Tensor] = {}  # see `stay`
        self.now: dict[str, dict[str, Tensor]] = {}
        self.led: dict[str, dict[str, Tensor]] = {}
        self.observe(simulator)  # a wrong shape is refused at once

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def observe(self, simulator: Any) -> dict[str, Tensor]:
        """What the scenario says of a simulator's state, by key. Raises EnvError for a wrong shape or dtype."""
        scenario, num_envs, said = simulator.scenario, simulator.num_envs, {}
        if "alive" in self.kinds:
            living: list[Tensor | None] = [None] * simulator.n_agents
            if self.ends:
                shape = (num_envs, simulator.n_agents)
                done = self._checked(scenario.done(), shape, "done")
                living = [~done[:, i] for i in range(simulator.n_agents)]
            if self.comes:
                for i, agent in enumerate(simulator.agents):
                    alive = self._checked(scenario.alive(agent), (num_envs,), f"alive of {agent.name}")
                    living[i] = alive if living[i] is None else living[i] & alive
            for name, group in self.groups.items():
                said[ALIVE + name] = torch.stack([living[i] for i in group.members], 1).float()
        if self.chooses:
            for name, group in self.groups.items():
                masks = {}
                for i, nvec in zip(group.members, group.nvecs, strict=True):
                    agent = simulator.agents[i]
                    mask = self._checked(
                        scenario.action_mask(agent), (num_envs, sum(nvec)), f"action_mask of {agent.name}"
                    )
                    masks[i] = mask
                said[MASK + name] = group.mask(masks).float()
        return said

    def _checked(self, value: Any, shape: tuple[int, ...], method: str) -> Tensor:
        if not isinstance(value, Tensor) or value.dtype != torch.bool or tuple(value.shape) != shape:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise EnvError(f"scenario {self.scenario!r}: {method} returned {got}; must be a bool tensor {list(shape)}")
        return value

    def take(self, observation: dict[str, Tensor]) -> None:
        """These observations are handed out: remember who is alive in them and what is allowed."""
        self.now = masks_in(observation, self.groups)

    def stay(self) -> list[Tensor]:
        """Copy what is handed out now to the memory where it lay the last time this was called; that memory."""
        for name, kinds in self.now.items():
            for kind, mask in kinds.items():
                if (name, kind) not in self._places:
                    self._places[name, kind] = mask.clone()
                kinds[kind] = self._places[name, kind].copy_(mask)
        return list(self._places.values())

    def settle(
        self, reward: dict[str, Tensor], moved: dict[str, Tensor], after: dict[str, Tensor], truncated: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Make zeros of what the dead see and get, in place, and take what the scenario said out of the observations.

        reward: {group: [E, A]}. moved, after: observations before and after the auto-reset, as `VmasWorld.observe`
        gives them. truncated: bool [E].

        Returns whose own episode the step terminated and truncated, {group: bool [E, A]} each; {} without such ends.
        """
        before = self.now
        led = self.led = masks_in(moved, self.groups)
        self.take(after)
        veil(after, self.now)
        terminated, cut = {}, {}
        if "alive" in self.kinds:
            for name in self.groups:
                was, now = before[name]["alive"], led[name]["alive"]
                reward[name].masked_fill_(~was, 0.0)
                shown = was | now if self.ends else now
                moved[name].masked_fill_(~shown.unsqueeze(-1), 0.0)
                if self.ends:
                    terminated[name] = was & ~now
                    cut[name] = was & now & truncated.unsqueeze(-1)
        for observation in (moved, after):
            drop(observation)
        return terminated, cut

    def snapshot(self) -> dict[str, Tensor]:
        """Who is alive and what is allowed now, as cloned tensors under flat names."""
        return {
            f"agent_masks/{name}/{kind}": mask.clone()
            for name, kinds in self.now.items()
            for kind, mask in kinds.items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to a snapshot. EnvError where it tells nothing of this."""
        for name, kinds in self.now.items():
            for kind, mask in kinds.items():
                key = f"agent_masks/{name}/{kind}"
                if key not in saved or saved[key].shape != mask.shape:
                    raise EnvError(f"this snapshot is of another environment: it has no {key} of {list(mask.shape)}.")
                kinds[kind] = saved[key].to(mask.device, copy=True)


def masks_in(observation: Mapping[str, Tensor], groups: Any) -> dict[str, dict[str, Tensor]]:
    """{group: {kind: bool}} as `Env.masks` returns it, of observations with what the scenario said among them."""
    keys = {"action": MASK, "alive": ALIVE}
    return {
        name: {kind: observation[key + name] > 0.5 for kind, key in keys.items() if key + name in observation}
        for name in groups
    }


def veil(observation: dict[str, Tensor], masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Make zeros of what the dead see, {group: float32 [E, A, F]}, in place."""
    for name, kinds in masks.items():
        if "alive" in kinds:
            observation[name].masked_fill_(~kinds["alive"].unsqueeze(-1), 0.0)


def drop(observation: dict[str, Tensor]) -> None:
    """Take what the scenario said out of observations."""
    for key in [key for key in observation if key.startswith((ALIVE, MASK))]:
        del observation[key]


def is_said(key: tuple) -> bool:
    """Whether a kernel's output is what the scenario says of its agents' lives and choices."""
    return key[:-1] in (("observation",), ("after", "observation")) and key[-1].startswith((ALIVE, MASK))
