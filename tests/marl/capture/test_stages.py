"""The order of a recording's calls: what can be joined is, and nothing is read before it is written or after."""

import torch
from torch import nn

from marl.capture.captured_loss import CapturedLoss
from marl.capture.stages import Recorded, staged
from marl.native.library import KernelCall
from marl.networks import MLP


def order(*given):
    """Names in their order, joined ones as one; given: (name, whether it can be joined, reads, writes)."""
    done, names = [], {}

    def join(calls):
        return lambda: done.append("+".join(names[id(call)] for call in calls))

    recorded = []
    for name, joinable, reads, writes in given:
        call = KernelCall(done.append, (name,), (), (), join if joinable else None)
        names[id(call)] = name
        recorded.append(Recorded(call, set(reads), set(writes)))
    for call in staged(recorded):
        call()
    return done


def test_passes_that_need_nothing_of_one_another_are_made_by_one_call():
    steps = [("next", True, {0}, {10}), ("draw", False, {10}, {11}), ("target", True, {11}, {12}),
             ("values", True, {1}, {13}), ("error", False, {12, 13}, {14}), ("back", True, {13, 14}, {15})]  # fmt: skip
    assert order(*steps) == ["next+values", "draw", "target", "error", "back"]


def test_what_is_written_again_waits_for_who_reads_it():
    steps = [("first", True, {0}, {10}), ("again", False, {1}, {0}), ("second", True, {0}, {11}),
             ("over", True, {1}, {10})]  # fmt: skip
    assert order(*steps) == ["first", "again", "second+over"]
    assert order(("a", True, {0}, {10}), ("b", True, {0}, {10})) == ["a", "b"]


def test_calls_that_cannot_be_joined_keep_their_order():
    assert order(("a", False, {0}, {1}), ("b", False, {5}, {6}), ("c", False, {1}, {2})) == ["a", "b", "c"]


class Networks(nn.Module):
    """Passes of all kinds side by side: one network twice, another without gradients, a third of its inputs only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.target, self.fixed = (MLP(7, 3, hidden=(40, 33)) for _ in range(3))
        self.target.requires_grad_(False)
        self.fixed.requires_grad_(False)

    def capture_key(self):
        return (self.training,)

    def forward(self, batch):
        first, second = self.one(batch["x"]), self.one(batch["y"])
        goal = self.target(batch["x"])
        value = self.fixed(torch.cat([second, first[:71], goal[:71, :1]], -1))
        return {"loss": (first - goal).square().mean() + value.mean()}


def test_joined_passes_change_no_bit():
    loss = Networks()
    capture, generator = CapturedLoss(loss), torch.Generator().manual_seed(3)
    for _ in range(9):
        batch = {name: torch.randn(rows, 7, generator=generator) for name, rows in (("x", 130), ("y", 71))}
        capture(batch)
        ours = [p.grad.clone() for p in loss.one.parameters()]
        expected = torch.autograd.grad(loss(batch)["loss"], list(loss.one.parameters()))
        assert all(map(torch.equal, ours, expected))
    (graph,) = capture.replayed.graphs.values()
    assert not capture.replayed.why and graph.runs == 6
    joined = [call for call in graph.calls if getattr(getattr(call, "func", None), "__name__", "") == "_run"]
    assert [call.args[1][1] for call in joined] == [3, 2]  # then the third beside a backward pass
