"""Losses of weighted rows: equal to a hand sum, and each gives its rows' errors back."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.sac import SAC
from tests.agents.algorithms.test_replayed_losses import BOX, CHOICES, NETWORK, B, batch, spec

CASES = {
    "iql": (QLearning(critic="local"), CHOICES),
    "vdn": (QLearning(critic="local", mixer="sum"), CHOICES),
    "qmix": (QLearning(critic="local", mixer="monotonic", error="huber"), CHOICES),
    "maddpg": (DDPG(critic="concat"), BOX),
    "matd3": (DDPG(critic="concat", twin=True, policy_every=2), BOX),
    "masac": (SAC(critic="concat"), BOX),
    "isac": (SAC(critic="local"), CHOICES),
}


@pytest.fixture(params=CASES)
def case(request) -> Iterator[tuple]:
    algo, action = CASES[request.param]
    torch.manual_seed(0)
    yield algo.make_loss(spec(action), NETWORK), batch(action)


def run(loss, rows: dict) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of the noise
    return loss(rows)


def some(rows: dict, index: list[int]) -> dict:
    return {k: some(v, index) if isinstance(v, dict) else v[index] for k, v in rows.items()}


def test_weights_of_one_change_nothing_and_uniform_batches_give_no_errors(case) -> None:
    loss, rows = case
    plain, weighted = run(loss, rows), run(loss, rows | {"weight": torch.ones(B)})
    assert "td_error" not in plain and weighted.pop("td_error").shape == (B,)
    assert plain.keys() == weighted.keys()
    for key in plain:  # one path is compiled
        torch.testing.assert_close(plain[key], weighted[key], rtol=1e-5, atol=1e-6)


def test_a_row_counts_by_its_weight(case, monkeypatch) -> None:
    """A loss of two rows of which one weighs 3 and the other nothing is 3/2 of the loss of the first alone."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # the noise of a row depends on its place
    loss, rows = case
    both = loss(some(rows, [4, 9]) | {"weight": torch.tensor([3.0, 0.0])})
    alone = loss(some(rows, [4]))
    key = "td_loss" if "td_loss" in both else "critic_loss"
    torch.testing.assert_close(both[key], 1.5 * alone[key], rtol=1e-5, atol=1e-7)
    if "actor_loss" in both:  # the critics' weights are none of the actors'
        torch.testing.assert_close(both["actor_loss"], loss(some(rows, [4, 9]))["actor_loss"])


def test_errors_by_hand() -> None:
    """Two critics, two rows, two agents, of whom one is dead in the second row."""
    errors = DDPG(critic="local", twin=True).make_loss(spec(BOX), NETWORK).errors
    q = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 9.0], [3.0, -5.0]]])  # [N, B, A]
    target, nothing = torch.tensor([[2.0, 2.0], [1.0, 1.0]]), torch.zeros(1, 2, 2)
    rows, over = {"discount": torch.ones(2), "weight": torch.tensor([0.5, 2.0])}, torch.tensor([False, False])
    squares = torch.tensor([[1.0 + 4, 0.0 + 49], [4.0 + 4, 9.0 + 36]])  # summed over the critics
    out = errors(q, nothing, target, over, rows, None)
    assert out["td_error"].tolist() == [(2 + 7) / 2, (2 + 6) / 2]
    assert out["td_loss"].item() == pytest.approx((0.5 * squares[0] + 2 * squares[1]).sum().item() / 4)
    alive = torch.tensor([[True, True], [True, False]])
    out = errors(q, nothing, target, over, rows, alive)
    assert out["td_error"].tolist() == [4.5, 2.0]
    assert out["td_loss"].item() == pytest.approx((0.5 * squares[0].sum() + 2 * squares[1, 0]).item() / 3)
    dead = torch.zeros(2, 2, dtype=torch.bool)
    assert errors(q[:1], nothing, target, over, rows, dead)["td_error"].tolist() == [0.0, 0.0]
    team = errors(q[:1, :, 0], nothing[..., 0], target[:, 0], over, rows, None)
    assert team["td_error"].tolist() == [1.0, 2.0]
    assert team["td_loss"].item() == pytest.approx((0.5 * 1 + 2 * 4) / 2)
    uniform = errors(q, nothing, target, over, {"discount": torch.ones(2)}, None)
    assert uniform.keys() == {"td_loss", "q"} and uniform["td_loss"].item() == pytest.approx(squares.sum().item() / 4)
