"""Prioritised draws against exact probabilities, a hand case of the weights, and TorchRL's sampler."""

import numpy as np
import pytest
import torch
from torchrl.data import LazyTensorStorage
from torchrl.data.replay_buffers.samplers import prioritized as torchrls

from agents.collection.replay.prioritised import UNIT, PrioritisedReplay, SumTree
from tests.agents.collection.replay.test_replay_buffer import ENDS, GAMMA, E, Plain, T


def expect_frequencies(drawn: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Counts are those of independent draws: within five deviations each, and by chi-square all together."""
    n, counts = len(drawn), drawn.bincount(minlength=len(probabilities)).double()
    expected = n * probabilities.double()
    assert (counts[expected == 0] == 0).all()
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1e-9).all()
    likely = expected > 0
    chi_square = ((counts - expected)[likely].square() / expected[likely]).sum()
    freedom = int(likely.sum()) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("size", [4, 5, 27, 1000, 1331])
def test_items_are_drawn_by_their_weights(size: int) -> None:
    tree, g = SumTree(size, "cpu"), torch.Generator().manual_seed(size)
    weights = torch.randint(0, 2000, (size,), generator=g) ** 2
    weights[:: max(2, size // 4)] = 0
    weights[-1] = 7
    tree.items.copy_(weights)
    tree.sum_up()
    assert tree.least == weights[weights > 0].min()
    expect_frequencies(tree.draw(400_000, g), weights / weights.sum())


def test_an_item_that_weighs_all_but_nothing_is_drawn_as_often_as_that() -> None:
    """A part in a million of the whole, among a million items."""
    tree, g = SumTree(1_000_000, "cpu"), torch.Generator().manual_seed(1)
    tree.items.fill_(1000)
    tree.items[123_456] = 100_000_000  # about a tenth
    tree.sum_up()
    drawn = tree.draw(300_000, g)
    assert abs((drawn == 123_456).double().mean() - 100 / 1099.999) < 0.003
    others = drawn[drawn != 123_456]
    expect_frequencies(others // 10_000, torch.full((100,), 1 / 100))


def test_sums_stay_exact_over_many_changes() -> None:
    tree, g = SumTree(5000, "cpu"), torch.Generator().manual_seed(0)
    for _ in range(200):
        changed = torch.randint(5000, (64,), generator=g)
        tree.items[changed] = torch.randint(0, 2**40, (64,), generator=g)
        tree.sum_up(changed)
    sums = tree._top.clone(), tree._middle.clone(), tree._least.clone()
    tree.sum_up()
    assert all(map(torch.equal, sums, (tree._top, tree._middle, tree._least)))
    assert tree._top.sum() == tree.items.sum()


def filled(rollouts: int, *settings: float, **more: float) -> tuple[Plain, PrioritisedReplay]:
    """A buffer of three rollouts to which so many were added."""
    plain = Plain(ENDS, 0, frames=3 * T * E)
    replay = PrioritisedReplay(plain.buffer, *settings, **more)
    for k in range(rollouts):
        plain.fill(k)
        plain.buffer.add(plain.rollout, plain.rollout.cut_frames())
        replay.added()
    return plain, replay


@pytest.mark.parametrize("rollouts", [1, 2, 3, 4, 9])
def test_new_steps_have_the_largest_priority_and_only_what_is_held_is_drawn(rollouts: int) -> None:
    plain, replay = filled(rollouts, 0.5)
    batch = replay.sample(60_000, torch.Generator().manual_seed(0))
    shown, counts = batch["team"]["observation"][:, 0, 0].unique(return_counts=True)
    oldest = plain.buffer.added - plain.buffer.steps
    assert len(shown) == plain.buffer.steps * E and shown.min() == oldest
    expected = 60_000 / len(counts)
    assert ((counts - expected).abs() < 5 * expected**0.5).all() and (batch["weight"] == 1).all()


def test_errors_decide_how_often_a_step_is_drawn() -> None:
    """Every step's error is its number: the probability of step n is (n + floor)^alpha over their sum."""
    alpha, floor = 0.6, 0.5
    plain, replay = filled(5, alpha, beta=0.7, floor=floor)
    g = torch.Generator().manual_seed(3)
    for _ in range(3):
        batch = replay.sample(3000, g)
        replay.correct(batch["team"]["observation"][:, 0, 0].round())
    batch = replay.sample(200_000, g, 2, GAMMA)
    number = batch["team"]["observation"][:, 0, 0].round().long()
    held = torch.arange(plain.buffer.added - plain.buffer.steps, plain.buffer.added)
    p = torch.zeros(plain.buffer.added, dtype=torch.float64)
    p[held] = (held.double() + floor) ** alpha
    p = p / (p.sum() * E)  # of each environment's step
    expect_frequencies(number, p * E)
    weights = (p / p[held].min()) ** -0.7
    torch.testing.assert_close(batch["weight"], weights[number].float(), rtol=1e-5, atol=0)
    for row in range(5):  # and the rows are whole: two-step sums
        n = int(number[row])
        e = int((batch["team"]["observation"][row, 0, 0] * 10).round()) % 10
        reward, discount, _, _ = plain.expected(n, e, 2)
        assert batch["team"]["reward"][row, 0] == reward and batch["discount"][row] == discount


def test_weights_by_hand() -> None:
    """Errors 1, 3, 8 and alpha 1: P = 1/12, 3/12, 8/12; (P / min P)^-1/2 = 1, 3^-1/2, 8^-1/2."""
    replay = PrioritisedReplay(Plain({}, 1, frames=2 * T * E).buffer, alpha=1.0, beta=0.5, floor=1e-9)
    replay.tree.items[:3] = (torch.tensor([1.0, 3.0, 8.0]) / UNIT).long()
    replay.tree.sum_up()
    batch = replay.sample(1000, torch.Generator().manual_seed(0))
    expected = torch.tensor([1.0, 3.0, 8.0]) ** -0.5
    torch.testing.assert_close(batch["weight"], expected[replay.drawn], rtol=1e-6, atol=0)
    replay.advance(0.25)
    assert replay.beta == 0.5 + 0.5 * 0.25


def test_the_larger_error_of_a_step_drawn_twice_counts_and_what_is_not_finite_is_the_largest() -> None:
    replay = PrioritisedReplay(Plain({}, 1, frames=2 * T * E).buffer, alpha=1.0, floor=1.0)
    replay.added()
    replay.drawn = torch.tensor([4, 2, 4, 5])
    replay.correct(torch.tensor([-7.0, 1.0, 3.0, float("nan")]))
    in_units = replay.tree.items.double() * UNIT
    assert in_units[:6].tolist() == [1, 1, 2, 1, 8, 1]  # the largest so far was 1 when the nan came
    replay.correct(torch.tensor([0.0, float("inf"), 0.0, 0.0]))
    assert replay.largest == 8 and (replay.tree.items.double() * UNIT)[:6].tolist() == [1, 1, 8, 1, 1, 1]
    assert in_units[T * E :].sum() == 0


class Segments:
    """A segment tree of TorchRL's C++ extension as a plain array."""

    def __init__(self, size: int) -> None:
        self.values = np.full(size, self.neutral)

    def __setitem__(self, index, value) -> None:
        self.values[np.asarray(index)] = np.asarray(value)

    def __getitem__(self, index) -> torch.Tensor:
        return torch.as_tensor(self.values[np.asarray(index)])

    def query(self, left: int, right: int) -> float:
        return self.over(self.values[left:right])

    def scan_lower_bound(self, mass) -> np.ndarray:
        return np.searchsorted(np.cumsum(self.values), mass)


Sums = type("Sums", (Segments,), {"neutral": 0.0, "over": staticmethod(np.sum)})
Minima = type("Minima", (Segments,), {"neutral": np.inf, "over": staticmethod(np.min)})


def test_weights_and_frequencies_are_torchrls(monkeypatch) -> None:
    for kind in ("Fp32", "Fp64"):
        monkeypatch.setattr(torchrls, f"SumSegmentTree{kind}", Sums)
        monkeypatch.setattr(torchrls, f"MinSegmentTree{kind}", Minima)
    size, alpha, beta, floor = T * E, 0.6, 0.4, 1e-3
    theirs = torchrls.PrioritizedSampler(size, alpha, beta, eps=floor, dtype=torch.float64)
    storage = LazyTensorStorage(size)
    storage.set(range(size), torch.arange(size))
    errors = torch.rand(size, generator=torch.Generator().manual_seed(5)) * 4
    theirs.update_priority(torch.arange(size), errors)
    replay = PrioritisedReplay(Plain({}, 1, frames=2 * T * E).buffer, alpha, beta, floor=floor)
    replay.added()
    replay.drawn = torch.arange(size)
    replay.correct(errors)
    np.random.seed(0)
    index, info = theirs.sample(storage, 100_000)
    mine = replay.sample(100_000, torch.Generator().manual_seed(0))
    by_item = {int(i): float(w) for i, w in zip(index, info["priority_weight"], strict=True)}
    expected = torch.tensor([by_item[i] for i in range(size)])
    torch.testing.assert_close(mine["weight"], expected[replay.drawn], rtol=1e-5, atol=0)
    shares = (errors + floor) ** alpha
    for drawn in (index, replay.drawn):
        expect_frequencies(drawn, shares / shares.sum())
