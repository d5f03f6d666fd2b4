"""A task of memory with a known optimum: every agent is shown a cue once and must name it after a delay.

Shapes: E environments, A agents, C cues.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from envs.base import DeviceState, Env, EnvError, Transition
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.seeding import restore

COUNT = Annotated[int, Field(ge=1)]


class MemoryEnv(Env):
    """Each agent sees a cue of its own at the first step, then nothing for a delay, then a question.

    The delay d is drawn per environment and episode, uniformly from min_delay to max_delay, so that time does not tell
    when the question comes and episodes end apart. At step d + 1 all agents are asked; the answer ends the episode
    (terminated). Reward: 1 to an agent that names its cue then, else 0; all other actions count for nothing. So the
    best return is 1, and a policy that looks at the present observation only gets 1 / C, whatever it does.

    Observation [C + 1]: the cue, one-hot, at the first step; 1 in the last place when asked; zeros otherwise.
    Global state [A C + 1], if asked for: all agents' cues, one-hot, and the question.

    Args:
        n_agents: A.
        n_cues: C, also the number of discrete actions; at least 2.
        min_delay, max_delay: steps between cue and question.
        max_steps: time limit, steps; None = max_delay + 2, which no episode reaches without an end of its own. A
            smaller one cuts longer episodes off unasked (truncated).
        global_state: offer the global state.
        num_envs: E.
        seed: of the cues and delays.
        device: where everything lives.

    Raises:
        EnvError: min_delay is above max_delay.
    """

    def __init__(
        self,
        n_agents: COUNT = 2,
        n_cues: Annotated[int, Field(ge=2)] = 4,
        min_delay: Annotated[int, Field(ge=0)] = 6,
        max_delay: Annotated[int, Field(ge=0)] = 10,
        max_steps: COUNT | None = None,
        global_state: bool = False,
        num_envs: COUNT = 64,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if min_delay > max_delay:
            raise EnvError(f"env.min_delay={min_delay}: must be at most env.max_delay={max_delay}.")
        self.n_cues, self.delays, self.global_state = n_cues, (min_delay, max_delay), global_state
        self.num_envs, self.device = num_envs, torch.device(device)
        agents = tuple(f"agent_{i}" for i in range(n_agents))
        group = GroupSpec("agents", agents, n_cues + 1, ActionSpec("discrete", nvec=(n_cues,)))
        state_size = n_agents * n_cues + 1 if global_state else None
        self.max_steps = max_steps or max_delay + 2
        self.spec = EnvSpec({"agents": group}, state_size, self.max_steps)
        self.one_hot = torch.eye(n_cues, device=self.device)  # torch's own one_hot waits for the device to check it
        self.generator = torch.Generator(self.device)
        where = {"dtype": torch.int64, "device": self.device}
        self.cue = torch.zeros(num_envs, n_agents, **where)  # these stay where they are
        self.delay, self.time = torch.zeros(num_envs, **where), torch.zeros(num_envs, **where)
        self.reset(seed)

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Fresh cues int64 [E, A] and delays int64 [E]."""
        A, (low, high) = self.spec.groups["agents"].n_agents, self.delays
        how = {"generator": self.generator, "device": self.device}
        cue = torch.randint(self.n_cues, (self.num_envs, A), **how)
        return cue, torch.randint(low, high + 1, (self.num_envs,), **how)

    def _see(self) -> tuple[dict[str, Tensor], Tensor | None]:
        cue = self.one_hot[self.cue]
        at_question = (self.time == self.delay + 1).float()
        shown = cue * (self.time == 0).view(-1, 1, 1)
        question = at_question.view(-1, 1, 1).expand(*self.cue.shape, 1)
        state = torch.cat([cue.flatten(1), at_question.unsqueeze(-1)], -1) if self.global_state else None
        return {"agents": torch.cat([shown, question], -1)}, state

    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Restart all environments; a seed restarts their random stream as well."""
        if seed is not None:
            self.generator.manual_seed(seed)
        cue, delay = self._draw()
        self.cue.copy_(cue)
        self.delay.copy_(delay)
        self.time.zero_()
        return self._see()

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step with {"agents": int64 [E, A, 1]}."""
        terminated = self.time == self.delay + 1
        reward = (action["agents"].squeeze(-1) == self.cue) & terminated.unsqueeze(-1)
        self.time += 1
        truncated = (self.time >= self.max_steps) & ~terminated
        next_observation, next_state = self._see()
        done = terminated | truncated
        cue, delay = self._draw()  # for all, needed or not: nothing is read back
        self.cue.copy_(torch.where(done.unsqueeze(-1), cue, self.cue))
        self.delay.copy_(torch.where(done, delay, self.delay))
        self.time.masked_fill_(done, 0)
        observation, state = self._see()
        return Transition(
            observation,
            next_observation,
            {"agents": reward.float()},
            terminated,
            truncated,
            state,
            next_state,
        )

    def device_state(self) -> DeviceState:
        """Cues, delays, time; the random stream."""
        return DeviceState([self.cue, self.delay, self.time], [self.generator])

    def snapshot(self) -> dict[str, Tensor]:
        """Cues, delays, time and the random stream."""
        tensors = {"cue": self.cue, "delay": self.delay, "time": self.time}
        return {**{k: v.clone() for k, v in tensors.items()}, "generator": self.generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot. EnvError if it is another environment's."""
        for name in ("cue", "delay", "time"):
            value = snapshot.get(name)
            if value is None or value.shape != getattr(self, name).shape:
                raise EnvError("this snapshot is of another environment: its cues, delays or sizes differ.")
            getattr(self, name).copy_(value)
        restore(self.generator, snapshot["generator"])
