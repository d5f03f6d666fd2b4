"""How a rollout is cut into sequences, on which networks with a memory are trained.

Shapes: T steps of a rollout, E environments, L steps of a sequence, b of burn-in, K = T / L sequences per environment.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from agents.collection.rollout_buffer import RolloutBuffer
from marl.core.errors import UserError


class Sequences:
    """Cuts rollouts into K sequences of L steps per environment, each with the memory that the rollout had there.

    With burn-in (Kapturowski et al. 2019, section 3) a network first goes through the b steps before a sequence,
    without gradient, from the memory that the rollout had there. What it remembers at the sequence's first step is
    then its current weights' own, and not the rollout's. A rollout's first sequence has no steps before it. It begins
    with what was stored.

    Args:
        steps: T.
        length: L, which divides T; None = T.
        burn_in: b.

    Attributes:
        marks: {time in the rollout: sequences whose stored memory is that of before this step}.
    """

    def __init__(self, steps: int, length: int | None = None, burn_in: int = 0) -> None:
        self.length, self.burn_in = length or steps, burn_in
        self.count = steps // self.length
        self.marks: dict[int, list[int]] = {}
        for k in range(self.count):
            self.marks.setdefault(max(0, k * self.length - self.burn_in), []).append(k)

    @classmethod
    def of(
        cls,
        modules: Iterable[nn.Module],
        steps: int,
        length: int | None = None,
        burn_in: int = 0,
        minibatch_size: int | None = None,
    ) -> "Sequences | None":
        """For these actors and critics; None where none of them has a memory.

        Raises:
            UserError: settings of sequences where no network has a memory, or minibatches smaller than a sequence.
        """
        if not any(module.memory_shape for module in modules):
            for key, value, default in (("chunk_length", length, None), ("burn_in", burn_in, 0)):
                if value != default:
                    raise UserError(f"algo.{key}={value}: needs a network with a memory, such as network=gru")
            return None
        sequences = cls(steps, length, burn_in)
        if minibatch_size is not None and minibatch_size < sequences.length:
            raise UserError(
                f"algo.minibatch_size={minibatch_size}: smaller than one sequence of {sequences.length} steps "
                "(algo.chunk_length, or algo.rollout_steps where that is null); at least that is allowed"
            )
        return sequences

    def cut(self, x: Tensor) -> Tensor:
        """[T, E, ...] -> [K * E, L, ...]."""
        return x.unflatten(0, (self.count, self.length)).transpose(1, 2).flatten(0, 1)

    def cut_before(self, x: Tensor) -> Tensor:
        """[T, E, ...] -> [K * E, b + L, ...], with the steps of burn-in (unread in a first sequence)."""
        if not self.burn_in:
            return self.cut(x)
        first = torch.arange(self.count, device=x.device).unsqueeze(-1) * self.length - self.burn_in
        steps = (first + torch.arange(self.burn_in + self.length, device=x.device)).clamp(min=0)
        return x[steps].transpose(1, 2).flatten(0, 1)

    def rows(self, rows: Mapping[str, Mapping[str, Tensor]], rollout: RolloutBuffer) -> dict[str, dict[str, Tensor]]:
        """What a loss reads of each sequence.

        Args:
            rows: {group: {name: [T, E, ...]}}.
            rollout: it says when episodes begin, and what the networks remembered.

        Returns:
            {group: {name: [K * E, L, ...]}}, the observations with b steps before them. For each group also: start bool
            [K * E, b + L], where agents end each on its own agent_start bool [K * E, b + L, A]; actor_memory and
            critic_memory float32 [K * E, *memory_shape] where there are such; with burn-in, burns bool [K * E].
        """
        start = self.cut_before(rollout.starts[:-1])
        burns = (torch.arange(self.count, device=start.device) > 0).unsqueeze(-1)
        burns = burns.expand(-1, rollout.starts.shape[1]).reshape(-1)
        cut = {}
        for name, tensors in rows.items():
            cut[name] = {k: self.cut_before(v) if k == "observation" else self.cut(v) for k, v in tensors.items()}
            cut[name]["start"] = start
            if name in rollout.agent_starts:
                cut[name]["agent_start"] = self.cut_before(rollout.agent_starts[name][:-1])
            if self.burn_in:
                cut[name]["burns"] = burns
            for kind, memories in rollout.memories_at_marks.items():
                if name in memories:
                    cut[name][f"{kind}_memory"] = memories[name].flatten(0, 1)
        return cut
