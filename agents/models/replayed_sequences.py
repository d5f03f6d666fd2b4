"""What networks say of replayed steps; those with a memory go through sequences, and know at ends what was remembered.

Shapes: b steps of burn-in, L steps learnt from, n steps summed in targets, B sequences, N = L * B rows (without a
memory the rows of a minibatch), A agents in a group, F features, D action dimensions, S state features, K choices,
M numbers of memory, C critics.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from agents.models.action_values.q_critic import ChoiceCritic, QCritic
from agents.models.actor import Actor, allowed
from agents.models.forward import Unroll
from agents.models.hidden_state import forget

Memory = Literal["stored", "zeros"]  # what a sequence begins with


class Unrolled:
    """An actor at the steps of a minibatch, and where their targets bootstrap.

    A network with a memory goes through the burn-in without gradient, then through the steps. What follows them is
    seen with the memory after the last step that a target sums: where an episode was cut off there, as that left it.

    Args:
        actor: of the group, or its target.
        rows: of the group, as `agents.collection.replay.buffer.ReplayBuffer.take` gives them, with a memory
            `agents.collection.replay.sequences.SequenceBuffer.take_sequences`.
        burn_in: b.
    """

    def __init__(self, actor: Actor, rows: Mapping, burn_in: int) -> None:
        self.actor, self.rows = actor, rows
        if actor.memory_shape is None:
            return
        sequence = rows["sequence"]
        observation, start = sequence["observation"], _start(sequence, actor.ends)

        def unroll(steps: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
            return actor.unroll(observation[steps], memory, start[steps])

        params, _, self.memory = _through(unroll, rows, sequence["actor_memory"], burn_in)
        self.params = params.flatten(0, 1)

    def now(self, mask: Tensor | None) -> Tensor:
        """Parameters of the policy at the steps, [N, A, n_features]; mask: of actions, bool [N, A, K], or None."""
        if self.actor.memory_shape is None:
            return self.actor(self.rows["observation"], mask)
        return allowed(self.params, mask)

    def after(self, mask: Tensor | None) -> Tensor:
        """The same where targets bootstrap."""
        if self.actor.memory_shape is None:
            return self.actor(self.rows["next_observation"], mask)
        return self.actor.remember(self.rows["next_observation"], self.memory, mask)[0]


class UnrolledCritic:
    """Critics of actions likewise. What they remember is of the steps as they were played.

    Args:
        critic: of the group, or its target.
        rows: as for `Unrolled`.
        states: float32 [N, S] at the steps and where targets bootstrap, or None where the critic reads none.
        burn_in: b.
        unit: raw actions to the unit that the critic reads; of a `ChoiceCritic`, which reads none, None.
    """

    def __init__(
        self,
        critic: QCritic | ChoiceCritic,
        rows: Mapping,
        states: tuple[Tensor | None, Tensor | None],
        burn_in: int,
        unit: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.critic, self.rows, self.states, self.unit = critic, rows, states, unit
        if critic.memory_shape is None:
            return
        sequence = rows["sequence"]
        observation, start = sequence["observation"], _start(sequence, critic.per_agent)
        action = unit(sequence["action"]) if unit else None
        state = sequence["state"] if critic.uses_state else None

        def unroll(steps: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
            seen = [None if x is None else x[steps] for x in (observation, action, state)]
            values, memories = critic.unroll(*seen, memory, start[steps])
            return values.transpose(0, 1), memories  # steps first

        values, before, self.memory = _through(unroll, rows, sequence["critic_memory"], burn_in)
        self.values = values.transpose(0, 1).flatten(1, 2)
        self.before = forget(before, start[burn_in : burn_in + len(before)]).flatten(0, 1)

    def now(self) -> Tensor:
        """Values at the steps of the actions that were taken, [C, N, A]; of a `ChoiceCritic` of all, [C, N, A, K]."""
        if self.critic.memory_shape is not None:
            return self.values
        return self._ask(self.rows["observation"], self.unit and self.unit(self.rows["action"]), self.states[0])

    def of(self, action: Tensor) -> Tensor:
        """Values at the steps of other actions, [N, A, D] in the critic's unit."""
        return self._ask(self.rows["observation"], action, self.states[0], "before")

    def after(self, action: Tensor | None = None) -> Tensor:
        """Values where targets bootstrap."""
        return self._ask(self.rows["next_observation"], action, self.states[1], "memory")

    def _ask(self, observation: Tensor, action: Tensor | None, state: Tensor | None, memory: str = "") -> Tensor:
        if self.critic.memory_shape is None:
            return self.critic(observation, *(() if action is None else (action,)), state)
        seen = [None if x is None else x.unsqueeze(0) for x in (observation, action, state)]
        return self.critic.unroll(*seen, getattr(self, memory))[0].squeeze(1)


def _through(unroll: Unroll, rows: Mapping, memory: Tensor, burn_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a network says along the sequences after the burn-in, [L, B, ...].

    And its memories before each of these steps, [L, B, ...], and after the last that is summed, [N, ...], both without
    gradient.
    """
    if burn_in:
        with torch.no_grad():
            memory = unroll(slice(burn_in), memory)[1][-1]
    sequence, length = rows["sequence"], len(rows["observation"]) // len(memory)
    out, memories = unroll(slice(burn_in, burn_in + length), memory)
    memories = memories.detach()
    before, after = torch.cat([memory.unsqueeze(0), memories[:-1]]), memories.flatten(0, 1)
    if burn_in + length < len(sequence["observation"]):
        with torch.no_grad():
            _, more = unroll(slice(burn_in + length, None), memories[-1])
        after = torch.cat([after, more.flatten(0, 1)]).index_select(0, sequence["last"])
    return out, before, after


def _start(sequence: Mapping, per_agent: bool) -> Tensor:
    """Where a memory begins again, bool [.., B] or, each agent's own, [.., B, A]."""
    return sequence["agent_start"] if per_agent else sequence["start"]
