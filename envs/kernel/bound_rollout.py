"""The buffers of a rollout by the names that kernels bind them to, and what else is written there step by step."""

from __future__ import annotations

from torch import Tensor

from envs.base import STATE, Transition
from envs.infos import InfoBuffers
from envs.kernel.ir.layout import Layout


class BoundRollout:
    """Where the steps of a rollout go.

    observation: {group: [T, E, A, F]}, entry t the observation after step t (pass `buffer[1:]`);
    next_observation, reward, terminated and truncated likewise. Contiguous, float32 and bool. info, ends: as for
    `Env.bind_rollout`. buffers: all but those two, by the names in `Layout.pointers`.
    """

    def __init__(
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
        self.info, self.ends = info, ends or {}
        self.buffers: dict[tuple, Tensor] = {("after", "observation", g): v for g, v in observation.items()}
        self.buffers |= {("observation", g): v for g, v in next_observation.items()}
        self.buffers |= {("reward", g): v for g, v in reward.items()}
        self.buffers |= {("terminated",): terminated, ("truncated",): truncated}
        if state is not None:
            self.buffers |= {("after", "observation", STATE): state, ("observation", STATE): next_state}

    def info_buffers(self, places: Layout) -> dict[tuple, Tensor]:
        """Where a kernel writes infos: {name to bind: float32 [T, E, A, …]}."""
        if self.info is None:
            return {}
        buffers = {
            key: self.info.buffer(*key[1:], places.inner[key][1:]) for key, _ in places.outputs if key[0] == "info"
        }
        return {key: buffer for key, buffer in buffers.items() if buffer is not None}

    def write(self, t: int, step: Transition) -> None:
        """Copies a transition of the simulator's to entry t."""
        values = {("after", "observation", g): v for g, v in step.observation.items()}
        values |= {("observation", g): v for g, v in step.next_observation.items()}
        values |= {("reward", g): v for g, v in step.reward.items()}
        values |= {("terminated",): step.terminated, ("truncated",): step.truncated}
        values |= {("after", "observation", STATE): step.state, ("observation", STATE): step.next_state}
        for key, buffer in self.buffers.items():
            buffer[t].copy_(values[key])
        self.write_ends(t, step.agent_terminated, step.agent_truncated)
        if self.info is not None:
            self.info.write(t, step.info)

    def write_ends(self, t: int, terminated: dict[str, Tensor], truncated: dict[str, Tensor]) -> None:
        """The ends of single agents, to entry t."""
        for name, (agent_terminated, agent_truncated) in self.ends.items():
            agent_terminated[t].copy_(terminated[name])
            agent_truncated[t].copy_(truncated[name])
