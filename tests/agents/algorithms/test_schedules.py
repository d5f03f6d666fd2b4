"""Schedules of the loss's coefficients, and the learning rate that follows the policy's steps."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from agents.algorithms.coefficients import Scheduled
from agents.algorithms.kl_adaptive import KLAdaptive
from agents.algorithms.ppo import PPO, PPOLoss
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.networks import MLP
from marl.supervised.task import SupervisedLoss

SPEC = EnvSpec({"agents": GroupSpec("agents", ("a", "b"), 4, ActionSpec("discrete", nvec=(3,)))}, None, 10)


def test_shapes_by_hand():
    assert Scheduled(0.2).value == 0.2 and type(Scheduled(0.2).value) is float
    linear = Scheduled(0.2, "linear", 0.1)
    assert [linear.advance(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.2, 0.175, 0.1])
    cosine = Scheduled(0.0, "cosine", 1.0)
    # (1 - cos(pi p)) / 2
    assert [cosine.advance(p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert cosine.value.item() == 1.0 and cosine.matters and not Scheduled(0.0).matters
    assert not cosine.state_dict()  # a resumed run computes it again


def test_the_loss_uses_what_is_scheduled():
    config = {"clip": 0.4, "entropy_coef": 0.1}
    moving = PPO(**config, clip_schedule="linear", clip_final=0.1, entropy_schedule="linear", entropy_final=0.02)
    network = partial(MLP, hidden=[8])
    torch.manual_seed(0)
    loss = moving.make_loss(SPEC, network)
    fixed = [PPO(clip=c, entropy_coef=e).make_loss(SPEC, network) for c, e in ((0.4, 0.1), (0.1, 0.02))]
    g = torch.Generator().manual_seed(0)
    group = {"observation": torch.randn(9, 2, 4, generator=g), "action": torch.randint(3, (9, 2, 1), generator=g)}
    group |= {key: torch.randn(9, 2, generator=g) for key in ("log_prob", "advantage", "return")}
    for progress, other in zip((0.0, 1.0), fixed, strict=True):
        other.load_state_dict(loss.state_dict())
        logged = loss.advance(progress)
        ours, theirs = loss({"agents": group}), other({"agents": group})
        assert logged == pytest.approx({"clip": other.clip.value, "entropy_coef": other.entropy_coef.value})
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value)
    assert fixed[0].advance(0.5) == {}


def trainer(*rates, scheduler=None, loss=PPOLoss):
    groups = [{"lr": rate} for rate in rates]
    return SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=groups),
        schedule=SimpleNamespace(scheduler=scheduler),
        task=SimpleNamespace(loss=object.__new__(loss)),
    )


def test_learning_rate_follows_the_kl():
    callback = KLAdaptive(target=0.01, factor=2.0, tolerance=2.0, lowest=1e-4, highest=1e-2)
    run = trainer(1e-3, torch.tensor(4e-3))
    tensor = run.optimizer.param_groups[1]["lr"]
    callback.on_start(run)
    expected = {0.015: (1e-3, 4e-3), 0.021: (5e-4, 2e-3), 0.006: (5e-4, 2e-3), 0.004: (1e-3, 4e-3)}
    for kl, rates in expected.items():
        callback.on_iteration(run, {"approx_kl": kl})
        assert [float(group["lr"]) for group in run.optimizer.param_groups] == pytest.approx(list(rates))
    for kl, rates in ((0.0, (1e-2, 1e-2)), (1.0, (1e-4, 1e-4))):
        for _ in range(9):
            callback.on_iteration(run, {"approx_kl": kl})
        assert [float(group["lr"]) for group in run.optimizer.param_groups] == pytest.approx(list(rates))
    assert run.optimizer.param_groups[1]["lr"] is tensor


def test_what_interferes_is_refused():
    with pytest.raises(UserError, match="this task trains none by PPO"):
        KLAdaptive().on_start(trainer(1e-3, loss=SupervisedLoss))
    with pytest.raises(UserError, match="scheduler=constant"):
        KLAdaptive().on_start(trainer(1e-3, scheduler=object()))
    with pytest.raises(UserError, match="callbacks.kl_adaptive.lowest=0.1"):
        KLAdaptive(lowest=0.1).on_start(trainer(1e-3))
    with pytest.raises(UserError, match="approx_kl"):
        KLAdaptive().on_iteration(trainer(1e-3), {"loss": 1.0})
