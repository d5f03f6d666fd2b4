"""Training on sequences: how a rollout is cut for networks with a memory, and what these networks say of the pieces.

Shapes: T steps of a rollout, E environments, L steps of a chunk, b of burn-in, K = T / L chunks per environment, B rows
of a minibatch (chunks), A agents in a group, F features, S global state features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.actor import Actor, allowed
from agents.critic import Critic
from marl.errors import UserError

if TYPE_CHECKING:
    from agents.ppo import PPO
    from agents.rollout import Rollout

PER_STEP = ("action", "log_prob", "advantage", "return", "value", "mask", "alive")


class Chunks:
    """Cuts rollouts into K chunks of L steps per environment, each with the memory that the rollout had at its start.

    With burn-in (Kapturowski et al. 2019, section 3) a network first goes through the b steps before a chunk, without
    gradient, from the memory that the rollout had there: so what it remembers at the chunk's first step is its current
    weights' own, and not the rollout's. A rollout's first chunk has no steps before it: it begins with what was stored.

    Args:
        algo: settings; `chunk_length` L (None: all of the rollout), `burn_in` b.

    Attributes:
        length: L.
        marks: {time in the rollout: chunks whose stored memory is that of before this step}.
    """

    def __init__(self, algo: PPO) -> None:
        self.length, self.burn_in = algo.chunk_length or algo.rollout_steps, algo.burn_in
        self.count = algo.rollout_steps // self.length
        self.marks: dict[int, list[int]] = {}
        for k in range(self.count):
            self.marks.setdefault(max(0, k * self.length - self.burn_in), []).append(k)

    @classmethod
    def of(cls, algo: PPO, modules: list[Actor | Critic]) -> Chunks | None:
        """For these networks; None where none of them has a memory.

        Raises:
            UserError: settings of chunks where no network has a memory, or minibatches smaller than a chunk.
        """
        if not any(module.memory_shape for module in modules):
            for key, default in (("chunk_length", None), ("burn_in", 0)):
                if (value := getattr(algo, key)) != default:
                    raise UserError(f"algo.{key}={value}: needs a network with a memory, such as network=gru")
            return None
        made = cls(algo)
        if algo.minibatch_size is not None and algo.minibatch_size < made.length:
            raise UserError(
                f"algo.minibatch_size={algo.minibatch_size}: smaller than one sequence of {made.length} steps "
                "(algo.chunk_length, or algo.rollout_steps where that is null); at least that is allowed"
            )
        return made

    def cut(self, x: Tensor) -> Tensor:
        """[T, E, ...] -> [K * E, L, ...]."""
        return x.unflatten(0, (self.count, self.length)).transpose(1, 2).flatten(0, 1)

    def cut_before(self, x: Tensor) -> Tensor:
        """[T, E, ...] -> [K * E, b + L, ...], with the steps of burn-in (in a first chunk its first step, unread)."""
        if not self.burn_in:
            return self.cut(x)
        first = torch.arange(self.count, device=x.device).unsqueeze(-1) * self.length - self.burn_in
        steps = (first + torch.arange(self.burn_in + self.length, device=x.device)).clamp(min=0)
        return x[steps].transpose(1, 2).flatten(0, 1)

    def rows(self, rows: Mapping[str, Mapping[str, Tensor]], rollout: Rollout) -> dict[str, dict[str, Tensor]]:
        """What a loss reads of each chunk.

        Args:
            rows: {group: {name: [T, E, ...]}}.
            rollout: it says when episodes begin, and what the networks remembered.

        Returns:
            {group: {name: [K * E, L, ...]}}, the observations with b steps before them, and for each group: start bool
            [K * E, b + L]; actor_memory and critic_memory float32 [K * E, *memory_shape] where there are such; with
            burn-in, burns bool [K * E].
        """
        E = rollout.env.num_envs
        start = self.cut_before(rollout.starts[:-1])
        burns = (torch.arange(self.count, device=start.device) > 0).unsqueeze(-1).expand(-1, E).reshape(-1)
        made = {}
        for name, tensors in rows.items():
            made[name] = {k: self.cut_before(v) if k == "observation" else self.cut(v) for k, v in tensors.items()}
            made[name]["start"] = start
            if self.burn_in:
                made[name]["burns"] = burns
            for kind, kept in rollout.kept.items():
                if name in kept:
                    made[name][f"{kind}_memory"] = kept[name].flatten(0, 1)
        return made


def flat(rows: Mapping) -> dict[str, Tensor]:
    """The parts of chunks that are read step by step, as rows of their own: [B, L, ...] -> [B * L, ...]."""
    return {name: rows[name].flatten(0, 1) for name in PER_STEP if name in rows.keys()}  # noqa: SIM118


def policy_params(actor: Actor, rows: Mapping, only: int | None = None) -> Tensor:
    """Parameters of the policy for a group's `rows`: [B, A, n_features], of chunks [B * L, A, n_features]."""
    mask = rows["mask"] if "action" in actor.masks else None
    if rows["observation"].dim() == 3:
        return actor(rows["observation"], mask, only)
    burn_in = _burn_in(rows)
    mask = None if mask is None else mask.flatten(0, 1)
    if actor.memory_shape is None:
        return actor(rows["observation"][:, burn_in:].flatten(0, 1), mask, only)
    observation, start = (_time_first(rows[key]) for key in ("observation", "start"))

    def unroll(steps: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
        return actor.unroll(observation[steps], memory, start[steps], only)

    return allowed(_through(unroll, rows, "actor", burn_in), mask)


def values(critic: Critic, rows: Mapping, state: Tensor | None) -> Tensor:
    """Values for a group's `rows`, as `Critic.forward`'s: [B, A], of chunks [B * L, A].

    state: float32 [B, S], of chunks [B, b + L, S], where the critic reads it.
    """
    if rows["observation"].dim() == 3:
        return critic(rows["observation"], state)
    burn_in = _burn_in(rows)
    if critic.memory_shape is None:
        own = None if state is None else state[:, burn_in:].flatten(0, 1)
        return critic(rows["observation"][:, burn_in:].flatten(0, 1), own)
    observation, start = (_time_first(rows[key]) for key in ("observation", "start"))
    state = None if state is None else _time_first(state)

    def unroll(steps: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
        return critic.unroll(observation[steps], None if state is None else state[steps], memory, start[steps])

    return _through(unroll, rows, "critic", burn_in)


def _through(unroll, rows: Mapping, kind: str, burn_in: int) -> Tensor:
    """What a network says along the chunks, [B * L, ...], after the burn-in."""
    memory = rows[f"{kind}_memory"]
    if burn_in:
        with torch.no_grad():
            _, memories = unroll(slice(0, burn_in), memory)
        burns = rows["burns"]
        memory = torch.where(burns.view(-1, *[1] * (memory.dim() - 1)), memories[-1], memory)
    out, _ = unroll(slice(burn_in, None), memory)
    return out.transpose(0, 1).flatten(0, 1)


def _burn_in(rows: Mapping) -> int:
    return rows["observation"].shape[1] - rows["action"].shape[1]


def _time_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)
