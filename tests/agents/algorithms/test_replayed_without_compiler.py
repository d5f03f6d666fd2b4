"""Losses of replayed steps by compiled functions and by torch's operations: the same values and gradients."""

from functools import partial

import pytest
import torch

from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.sac import SAC
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.native import library
from marl.networks import MLP

B, A, F, D, K = 24, 3, 5, 2, 4
BOX = ActionSpec("continuous", torch.full((A, D), -1.0), torch.full((A, D), 2.0))
CHOICES = ActionSpec("discrete", nvec=(K,))
CASES = {
    "ddpg": (DDPG(critic="concat", reward_scale=0.5), BOX),
    "td3": (DDPG(critic="concat", twin=True), BOX),
    "huber": (DDPG(critic="concat", error="huber"), BOX),
    "sac": (SAC(critic="concat", reward_scale=0.5), BOX),
    "sac_independent_std": (SAC(critic="concat", std="independent"), BOX),
    "sac_choices": (SAC(critic="concat"), CHOICES),
    "iql": (QLearning(critic="local", reward_scale=2.0), CHOICES),
    "vdn": (QLearning(critic="local", mixer="sum"), CHOICES),
    "qmix": (QLearning(critic="local", mixer="monotonic"), CHOICES),
}


def minibatch(action: ActionSpec) -> dict:
    g = torch.Generator().manual_seed(1)
    raw = torch.randn(B, A, D, generator=g) if action.kind == "continuous" else torch.randint(K, (B, A, 1), generator=g)
    seen = {name: torch.randn(B, A, F, generator=g) for name in ("observation", "next_observation")}
    team = {**seen, "action": raw, "reward": torch.randn(B, A, generator=g)}
    return {"team": team, "terminated": torch.rand(B, generator=g) < 0.3, "discount": torch.full((B,), 0.9)}


@pytest.mark.parametrize(("algo", "action"), CASES.values(), ids=CASES)
def test_a_loss_does_not_depend_on_who_computes_it(monkeypatch, algo, action) -> None:
    torch.manual_seed(0)
    spec = EnvSpec({"team": GroupSpec("team", ("a", "b", "c"), F, action)}, None, 100)
    loss = algo.make_loss(spec, partial(MLP, hidden=[16]))
    trained, told = [p for p in loss.parameters() if p.requires_grad], []
    for enabled in (True, False):
        monkeypatch.setattr(library, "enabled", enabled)
        torch.manual_seed(2)  # of the draws
        outputs = loss(minibatch(action))
        told.append((outputs, torch.autograd.grad(outputs["loss"], trained)))
    (ours, gradients), (theirs, expected) = told
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
