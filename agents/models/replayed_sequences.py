"""What actors say of replayed steps; those with a memory by unrolling sequences, with the memory as it was at each end.

Shapes: b steps of burn-in, L steps learnt from, n steps summed in targets, B sequences, N = L * B rows (without a
memory the rows of a minibatch), A agents in a group, F features, K choices, M numbers of memory.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from agents.models.actor import Actor, allowed

Memory = Literal["stored", "zeros"]  # what a sequence begins with


class Unrolled:
    """An actor at the steps of a minibatch, and where their targets bootstrap.

    A network with a memory goes through the burn-in without gradient, then through the steps. What follows them is
    seen with the memory after the last step that a target sums: where an episode was cut off there, as that left it.

    Args:
        actor: of the group, or its target.
        rows: of the group, as `agents.collection.replay_buffer.ReplayBuffer.take` gives them, with a memory
            `agents.collection.replay_sequences.SequenceBuffer.take_sequences`.
        burn_in: b.
    """

    def __init__(self, actor: Actor, rows: Mapping, burn_in: int) -> None:
        self.actor, self.rows = actor, rows
        if actor.memory_shape is not None:
            self.params, self.memory = self._unroll(rows["sequence"], burn_in)

    def _unroll(self, sequence: Mapping, burn_in: int) -> tuple[Tensor, Tensor]:
        """Parameters [N, A, n_features], and the memory where targets bootstrap [N, A, M], without gradient."""
        observation, start, memory = sequence["observation"], sequence["start"], sequence["memory"]
        if burn_in:
            with torch.no_grad():
                memory = self.actor.unroll(observation[:burn_in], memory, start[:burn_in])[1][-1]
        end = burn_in + len(self.rows["observation"]) // len(memory)
        params, memories = self.actor.unroll(observation[burn_in:end], memory, start[burn_in:end])
        params, memories = params.flatten(0, 1), memories.detach()
        if end == len(observation):
            return params, memories.flatten(0, 1)
        with torch.no_grad():
            _, more = self.actor.unroll(observation[end:], memories[-1], start[end:])
        return params, torch.cat([memories, more]).flatten(0, 1).index_select(0, sequence["last"])

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
