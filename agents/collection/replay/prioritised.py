"""Prioritised replay: steps are drawn by the errors that were last made there, and weighted so that this is no bias.

Proportional, of Schaul et al. 2016. Shapes: N items, B rows of a minibatch, W children of a node, E environments.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agents.collection.replay.buffer import ReplayBuffer

UNIT = 2.0**-22  # of a weight: sums of whole numbers are exact, in any order and on any device


class SumTree:
    """Weights of N items, of which each is drawn with the probability weight / sum; three levels of W ~ N^(1/3) nodes.

    Few wide levels take few calls, each of all rows at once. Nothing waits for the device.

    Attributes:
        items: int64 [N], the weights in `UNIT`; 0 = never drawn. Write to it, then call `sum_up`.
        largest: the largest weight that an item may have, so that no sum overflows.
    """

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.width = max(2, round(size ** (1 / 3)))
        while self.width**3 < size:
            self.width += 1
        leaves, middle, top = (torch.zeros(self.width**n, dtype=torch.int64, device=device) for n in (3, 2, 1))
        self.items, self._leaves, self._middle, self._top = leaves[:size], leaves.view(-1, self.width), middle, top
        self._least = torch.full_like(middle, torch.inf, dtype=torch.float32)
        self.largest = 2**62 // size

    def sum_up(self, changed: Tensor | None = None) -> None:
        """Bring the sums up to date after the items `changed`, int64 [B], were written; None: after any were."""
        if changed is None:
            self._middle, self._least = self._of(self._leaves)
        else:
            node = changed // self.width
            total, least = self._of(self._leaves.index_select(0, node))
            self._middle.index_copy_(0, node, total)  # an item that is twice among them writes the same twice
            self._least.index_copy_(0, node, least)
        self._top = self._middle.view(-1, self.width).sum(-1)

    def _of(self, leaves: Tensor) -> tuple[Tensor, Tensor]:
        return leaves.sum(-1), torch.threshold(leaves.float(), 0.0, torch.inf).amin(-1)

    @property
    def least(self) -> Tensor:
        """The smallest weight that is not 0, float32 []."""
        return self._least.amin()

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Items with replacement, int64 [B]; each level is drawn for itself, so that no number's precision runs out."""
        W = self.width
        chance = torch.rand(3, size, generator=generator, device=self.items.device)
        first = _choose(self._top, chance[0])
        second = first * W + _choose(self._middle.view(W, W).index_select(0, first), chance[1])
        return second * W + _choose(self._leaves.index_select(0, second), chance[2])


def _choose(weights: Tensor, chance: Tensor) -> Tensor:
    """Of each row of [B, W], or B times of [W], one: the first whose running sum exceeds `chance` [B] times the whole.

    One of weight 0 has the sum of the one before it, and so is never the first.
    """
    running = weights.cumsum(-1)
    total = running[..., -1]
    at = torch.minimum((chance * total).long(), total - 1)
    if weights.dim() == 1:
        return torch.searchsorted(running, at, right=True)
    return torch.searchsorted(running, at.unsqueeze(1), right=True).squeeze(1)


class PrioritisedReplay:
    """Minibatches of a replay buffer, steps with large errors more often.

        P(i) = p_i^alpha / sum_k p_k^alpha        w_i = (P(i) / min_k P(k))^-beta

    p is the absolute error when the step was last learned from, plus a floor. New steps have the largest p so far, so
    that each is soon learned from. The weights are at most 1, as the paper's and those of TorchRL's PrioritizedSampler.

    Args:
        buffer: whose steps are drawn.
        alpha: 0 would be uniform, 1 in proportion to the errors.
        beta, beta_final: how much of the bias the weights take away, at the beginning and at the end of the run.
        floor: added to the errors, so that no step is lost for good.
    """

    def __init__(
        self, buffer: ReplayBuffer, alpha: float, beta: float = 0.4, beta_final: float = 1.0, floor: float = 1e-6
    ) -> None:
        self.buffer, self.alpha, self.floor = buffer, alpha, floor
        self.beta, self._betas = beta, (beta, beta_final)
        self.tree = SumTree(buffer.capacity * buffer.n_envs, buffer.device)
        self.largest = torch.ones((), device=buffer.device)
        self.drawn = torch.zeros(0, dtype=torch.int64, device=buffer.device)

    def advance(self, progress: float) -> None:
        """Set beta as it is at `progress` of the run, 0 to 1."""
        first, last = self._betas
        self.beta = first + (last - first) * progress

    def added(self) -> None:
        """The buffer has a new rollout: its steps may be drawn, those that made room for it may not."""
        buffer, E, items = self.buffer, self.buffer.n_envs, self.tree.items
        start = (buffer.added - buffer.rollout_steps) % buffer.capacity * E
        items[start : start + buffer.rollout_steps * E].copy_(self._weight(self.largest))
        if buffer.added >= buffer.capacity:  # what follows the newest step lies where the oldest one's observation was
            oldest = buffer.added % buffer.capacity * E
            items[oldest : oldest + E].zero_()
        self.tree.sum_up()

    def _weight(self, priority: Tensor) -> Tensor:
        weight = (priority.pow(self.alpha) / UNIT).round()
        return weight.clamp(min=1, max=self.tree.largest).long()

    def sample(self, size: int, generator: torch.Generator, n_step: int = 1, gamma: float = 1.0) -> dict:
        """As `ReplayBuffer.sample`, with the rows' "weight", float32 [B]."""
        buffer, E = self.buffer, self.buffer.n_envs
        self.drawn = at = self.tree.draw(size, generator)
        oldest = buffer.added - buffer.steps
        step = oldest + (at // E - oldest) % buffer.capacity  # absolute numbers of steps
        batch = buffer.take(step, at % E, n_step, gamma)
        batch["weight"] = (self.tree.items.index_select(0, at) / self.tree.least).pow(-self.beta)
        return batch

    def correct(self, td_error: Tensor) -> None:
        """Errors, float [B], of the rows that `sample` gave last; of a step drawn twice the larger counts.

        What is not finite counts as the largest error so far.
        """
        error = td_error.detach().float().abs() + self.floor
        error = torch.where(error.isfinite(), error, self.largest)
        self.largest = torch.maximum(self.largest, error.amax())
        items = self.tree.items
        items.index_fill_(0, self.drawn, 0).scatter_reduce_(0, self.drawn, self._weight(error), "amax")
        self.tree.sum_up(self.drawn)

    def clear(self) -> None:
        """Forget all, as `ReplayBuffer.clear`."""
        self.tree.items.zero_()
        self.tree.sum_up()
        self.largest = torch.ones_like(self.largest)

    def state_dict(self) -> dict[str, Any]:
        """The weights of the steps held, float32 (exact: they are whole numbers of 24 bits), and the largest error."""
        held = min(self.buffer.added, self.buffer.capacity) * self.buffer.n_envs
        return {"weights": self.tree.items[:held].float(), "largest": self.largest.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, bitwise identically, with a buffer that was put back before."""
        self.clear()
        self.tree.items[: len(state["weights"])].copy_(state["weights"])
        self.tree.sum_up()
        self.largest.copy_(state["largest"])
