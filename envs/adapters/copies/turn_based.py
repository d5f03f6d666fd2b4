"""Environments whose agents act in turn (PettingZoo's AEC interface) as copies of which one agent acts per step."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.adapters.copies.action_rows import choices
from envs.adapters.copies.env_copies import ByAgent, Copy, Played
from envs.adapters.copies.host_infos import MASK
from envs.base import EnvError


class Turns(Copy):
    """A copy with PettingZoo's agent-environment-cycle interface (Terry et al. 2021, section 3.2): a step is one turn.

    All living agents observe at every step; the action of the one on turn counts, the others' are ignored. Rewards are
    those of the step (`env.rewards`), the others' among them. Agents whose episode has ended are stepped with None
    until they have left, as AEC wants it, and are dead from then on. The episode ends when no agent is left.

    env: the environment, with possible_agents, agents, agent_selection, terminations, truncations, rewards, infos,
        reset, step, observe, observation_space and action_space.
    """

    in_turns = ends = True

    def __init__(self, env: Any) -> None:
        self.env, self.agents = env, tuple(env.possible_agents)
        self.observation_spaces = {agent: env.observation_space(agent) for agent in self.agents}
        self.action_spaces = {agent: env.action_space(agent) for agent in self.agents}
        self._everything = {agent: np.ones(choices(space), dtype=bool) for agent, space in self.action_spaces.items()}

    def reset(self, seed: int) -> tuple[ByAgent, ByAgent]:
        self.env.reset(seed=seed)
        self._there = self._living()
        return self._shown()

    def step(self, action: ByAgent) -> Played:
        before = self._there
        self.env.step(action[self.on_turn])
        rewards = {agent: float(reward) for agent, reward in self.env.rewards.items()}
        ended, told = self.env.terminations, self.env.infos
        living = self._living()
        terminated = {agent: bool(ended.get(agent, False)) for agent in before}
        truncated = {agent: not terminated[agent] and agent not in living for agent in before}
        over = [agent for agent in before if agent not in living]
        final = {agent: self.env.observe(agent) for agent in over}  # before they leave
        final_infos = {agent: told.get(agent) or {} for agent in over}
        if living and over:  # else the dead need not leave before a reset
            self._bury(living)
        self._there = living
        observations, infos = self._shown()
        return {**final, **observations}, {**final_infos, **infos}, rewards, terminated, truncated

    def close(self) -> None:
        self.env.close()

    def _living(self) -> list[str]:
        """Who is there and has not ended; each attribute is read once, for wrappers look it up level by level."""
        terminated, truncated = self.env.terminations, self.env.truncations
        return [agent for agent in self.env.agents if not terminated.get(agent) and not truncated.get(agent)]

    def _bury(self, living: list[str]) -> None:
        """Step those who have ended with None, while it is their turn."""
        for _ in self.agents:
            if self.env.agent_selection in living:
                return
            self.env.step(None)
        if (agent := self.env.agent_selection) not in living:
            raise EnvError(
                f"the environment {self.env} keeps {agent} on turn, whose episode has ended: stepped with "
                "None, such an agent must leave."
            )

    def _shown(self) -> tuple[ByAgent, ByAgent]:
        """What those who are there see and are told, no choice masked for who is not on turn."""
        env, told = self.env, self.env.infos
        self.on_turn = env.agent_selection
        observations = {agent: env.observe(agent) for agent in self._there}
        infos = {agent: told.get(agent) or {} for agent in self._there}
        everywhere = any(MASK in info for info in infos.values())
        for agent in self._there:
            if agent == self.on_turn:
                continue
            if isinstance(observations[agent], dict) and MASK in observations[agent]:
                observations[agent] = {**observations[agent], MASK: self._everything[agent]}
            if everywhere:
                infos[agent] = {**infos[agent], MASK: self._everything[agent]}
        return observations, infos
