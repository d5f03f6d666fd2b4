"""Layers, their parameters and FLOPs by hand; learning rates against torch's own schedule."""

import pytest
import torch

from marl.config import compose
from marl.inspection import model_summary
from marl.launch import build
from marl.optim.optimizer_config import OptimizerConfig
from tests.marl.runs import LINEAR, make_task

DIGITS = ["experiment=digits", "network.hidden=[32]", "task.batch_size=64"]


@pytest.fixture(scope="module")
def task():
    return build.build_task(compose.check(compose.compose(DIGITS)))


def test_layers_are_counted_by_hand(task):
    layers = {layer.name.split(".", 1)[1]: layer for layer in model_summary.layers(task) if layer.parameters}
    assert list(layers) == ["body.0", "head"]
    first, head = layers.values()
    assert (first.kind, first.shape, first.parameters) == ("Linear", (64, 32), 64 * 32 + 32)
    assert (first.flops, head.flops) == (2 * 64 * 32, 2 * 32 * 10)
    assert not any(module._forward_hooks for module in task.loss.modules())


def test_rates_are_torchs(task):
    stage = "scheduler.stages=[{name: CosineAnnealingLR, T_max: total, eta_min: 0.01}]"
    config = compose.check(compose.compose([*DIGITS, "scheduler=constant", stage, "optimizer.lr=0.1"]))
    setup = build.build_setup(config)
    rates = model_summary.rates(task, setup["optimizer"], setup["schedule"], 8, 1)
    assert len(rates["model"]) == 9 and rates["model"][0] == pytest.approx(0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8, 0.01)
    for rate in rates["model"][1:]:
        optimizer.step()
        plan.step()
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_schedule_by_steps_moves_within_iterations(task):
    setup = build.build_setup(compose.check(compose.compose([*DIGITS, "scheduler=one_cycle"])))
    values = model_summary.rates(task, setup["optimizer"], setup["schedule"], 10, 2)["model"]
    assert max(values) > values[0] and values[-1] < values[0]


def test_rates_of_an_optimiser_that_asks_for_the_loss():
    task = make_task(epochs=3)
    before = [p.detach().clone() for p in task.loss.parameters()]
    values = model_summary.rates(task, OptimizerConfig("LBFGS", lr=0.5), LINEAR, 3, 1)["model"]
    assert values[0] == 0.5 and values[-1] < 0.01
    assert all(torch.equal(a, b) for a, b in zip(before, task.loss.parameters(), strict=True))
