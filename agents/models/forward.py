"""What networks say of a loss's rows, be they single frames or sequences.

Shapes: L steps of a sequence, b of burn-in, B rows of a minibatch (frames, or sequences), A agents in a group, F
features, S global state features.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agents.models.actor import Actor, allowed
from agents.models.critic import Critic

PER_STEP = ("action", "log_prob", "advantage", "return", "value", "mask", "alive", "counts")

# (steps of the sequences, memory before the first) -> (results [L, B, ...], memory after each step).
Unroll = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def flat(rows: Mapping) -> dict[str, Tensor]:
    """The parts of sequences that are read step by step, as rows of their own: [B, L, ...] -> [B * L, ...]."""
    return {name: rows[name].flatten(0, 1) for name in PER_STEP if name in rows.keys()}  # noqa: SIM118


def policy_params(actor: Actor, rows: Mapping, only: int | None = None) -> Tensor:
    """Parameters of the policy for a group's `rows`: [B, A, n_features], of sequences [B * L, A, n_features]."""
    mask = rows["mask"] if "action" in actor.masks else None
    if rows["observation"].dim() == 3:
        return actor(rows["observation"], mask, only)
    burn_in = _burn_in(rows)
    mask = None if mask is None else mask.flatten(0, 1)
    if actor.memory_shape is None:
        return actor(rows["observation"][:, burn_in:].flatten(0, 1), mask, only)
    observation, start = (_time_first(x) for x in (rows["observation"], _start(rows, actor.ends)))

    def unroll(steps: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
        return actor.unroll(observation[steps], memory, start[steps], only)

    return allowed(_through(unroll, rows, "actor", burn_in), mask)


def values(critic: Critic, rows: Mapping, state: Tensor | None) -> Tensor:
    """Values for a group's `rows`, as `Critic.forward`'s: [B, A], of sequences [B * L, A].

    state: float32 [B, S], of sequences [B, b + L, S], where the critic reads it.
    """
    if rows["observation"].dim() == 3:
        return critic(rows["observation"], state)
    burn_in = _burn_in(rows)
    if critic.memory_shape is None:
        state = None if state is None else state[:, burn_in:].flatten(0, 1)
        return critic(rows["observation"][:, burn_in:].flatten(0, 1), state)
    observation, start = (_time_first(x) for x in (rows["observation"], _start(rows, critic.per_agent)))
    state = None if state is None else _time_first(state)

    def unroll(steps: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
        return critic.unroll(observation[steps], None if state is None else state[steps], memory, start[steps])

    return _through(unroll, rows, "critic", burn_in)


def _through(unroll: Unroll, rows: Mapping, kind: str, burn_in: int) -> Tensor:
    """What a network says along the sequences, [B * L, ...], after the burn-in."""
    memory = rows[f"{kind}_memory"]
    if burn_in:
        with torch.no_grad():
            _, memories = unroll(slice(0, burn_in), memory)
        burns = rows["burns"]
        memory = torch.where(burns.view(-1, *[1] * (memory.dim() - 1)), memories[-1], memory)
    out, _ = unroll(slice(burn_in, None), memory)
    return out.transpose(0, 1).flatten(0, 1)


def _start(rows: Mapping, per_agent: bool) -> Tensor:
    """Where a memory begins again, bool [B, L] or, each agent's own, [B, L, A]."""
    return rows["agent_start"] if per_agent else rows["start"]


def _burn_in(rows: Mapping) -> int:
    return rows["observation"].shape[1] - rows["action"].shape[1]


def _time_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)
