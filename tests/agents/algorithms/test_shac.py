"""SHAC's loss: returns of a window by hand, gradients beside differences of the return, groups apart."""

from functools import partial

import pytest
import torch

from agents.algorithms.shac import SHAC, returns_of_window
from agents.tasks.short_horizon import ShortHorizon
from envs.vmas.env import VmasEnv
from marl.networks import MLP

SPREAD = partial(VmasEnv, "simple_spread", num_envs=6, max_steps=7, scenario_kwargs={"n_agents": 2}, global_state=True)
TAG = partial(  # two groups, and no more of anything: a gradient kernel of three hunters takes ten seconds to compile
    VmasEnv, "simple_tag", num_envs=4, max_steps=30, scenario_kwargs={"num_adversaries": 1, "num_landmarks": 1}
)
NET = partial(MLP, hidden=[16])


def task(env, **settings):
    torch.manual_seed(0)
    algo = SHAC(**{"rollout_steps": 10, "minibatch_size": None, "epochs": 1} | settings)
    return ShortHorizon(env, algo, NET, frames=10_000, eval_episodes=2)


def test_returns_of_a_window_by_hand():
    """Three environments: one runs on, one is cut off at the second step, one is terminated there."""
    reward = torch.tensor([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]]).unsqueeze(-1)
    truncated = torch.tensor([[False] * 3, [False, True, False], [False] * 3])
    terminated = torch.tensor([[False] * 3, [False, False, True], [False, False, True]])
    values = {1: torch.tensor([100.0, 8, 100]).unsqueeze(-1), 2: torch.tensor([16.0, 16, 100]).unsqueeze(-1)}
    found = returns_of_window(reward, terminated, truncated, values, gamma=0.5).squeeze(-1)
    runs_on = 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 16
    cut_off = (1 + 0.5 * 2 + 0.25 * 8) + (4 + 0.5 * 16)
    ended = (1 + 0.5 * 2) + 4
    assert found.tolist() == [runs_on, cut_off, ended]
    nothing_follows = returns_of_window(reward, terminated, truncated, {}, gamma=0.5).squeeze(-1)
    assert nothing_follows.tolist() == [1 + 0.5 * 2 + 0.25 * 4, 1 + 0.5 * 2 + 4, 1 + 0.5 * 2 + 4]


def test_what_a_terminated_episode_would_have_been_worth_may_be_nan():
    value = torch.tensor([[torch.nan], [1.0]], requires_grad=True)
    over, never = torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.bool)
    total = returns_of_window(torch.zeros(1, 2, 1), over, never, {0: value}, 0.9)
    assert total.tolist() == [[0.0], [pytest.approx(0.9)]]


@pytest.mark.parametrize(
    "settings",
    [
        {"critic": "agent_state", "value_norm": "running", "normalize_observation": True},
        {"critic": "concat", "std": "independent", "entropy_coef": 0.1, "share_actor": "separate"},
        {"bootstrap": False, "policy": "deterministic"},
    ],
    ids=["state", "entropy", "apg"],
)
def test_the_gradient_of_a_window_is_that_of_the_return(settings):
    """Beside central differences along the gradient and two random directions, through a reset after seven steps."""
    run = task(SPREAD, gamma=0.9, **settings)
    for iteration in range(2):  # statistics of observations and values, a window that begins within an episode
        run.collect(iteration)
        for batch in run.batches(iteration):
            run.loss(batch)
    before, policy = run.collector.state_dict(), run.policy_generator.get_state()
    weights = {name: value.clone() for name, value in run.loss.state_dict().items()}  # with what was learnt of scales
    actor = list(run.loss.actors.parameters())

    def loss(direction: list[torch.Tensor] | None = None, step: float = 0.0) -> torch.Tensor:
        run.loss.load_state_dict(weights)
        run.collector.load_state_dict(before)
        run.policy_generator.set_state(policy)
        with torch.no_grad():
            for p, d in zip(actor, direction or [], strict=bool(direction)):
                p.add_(d, alpha=step)
        run.collect(2)
        return run.loss(next(run.batches(2)))["loss"]

    gradients = torch.autograd.grad(loss(), actor)
    assert bool(run.rollout.truncated.any())
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
    random = torch.Generator().manual_seed(1)
    directions = [[g / norm for g in gradients]]
    for _ in range(2):
        direction = [torch.randn(g.shape, generator=random) * g.abs().mean() for g in gradients]
        length = torch.linalg.vector_norm(torch.cat([d.flatten() for d in direction]))
        directions.append([d / length for d in direction])
    for direction in directions:
        slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
        difference = (loss(direction, 0.01) - loss(direction, -0.01)).item() / 0.02
        assert difference == pytest.approx(slope, rel=0.01, abs=0.005 * norm.item())


def test_each_group_follows_its_own_return_only():
    run = task(TAG, rollout_steps=3)
    run.collect(0)
    objectives = {name: rows["objective"] for name, rows in run.objectives.items()}
    assert len(objectives) == 2
    expected = {}
    for name, objective in objectives.items():
        own = list(run.loss.actors[name].parameters())
        expected[name] = torch.autograd.grad(-objective.mean(), own, retain_graph=True)
    outputs = run.loss(next(run.batches(0)))
    outputs["loss"].backward()
    for name, gradients in expected.items():
        for p, g in zip(run.loss.actors[name].parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, g)
            assert g.abs().max() > 0
        assert outputs[f"{name}/actor_loss"].item() == pytest.approx(-objectives[name].mean().item())


@pytest.mark.parametrize("moved", [False, True], ids=["the policy that played", "one that has moved"])
def test_the_gradient_of_ppos_term_by_hand(moved):
    """d/dw = d(value loss)/dw - c mean over the frames that count of ratio A d(log pi)/dw.

    A frame counts unless its ratio has left [1 - clip, 1 + clip] to the side that its advantage asks for.
    """
    run = task(SPREAD, ppo_coef=0.3, clip=0.1)
    run.collect(0)
    _, batch = run.batches(0)
    rows, actor, critic = batch["agents"], run.loss.actors["agents"], run.loss.critics["agents"]
    if moved:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in actor.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    outputs = run.loss(batch)
    weights = [*actor.parameters(), *critic.parameters()]
    found = torch.autograd.grad(outputs["loss"], weights)
    log_prob = torch.distributions.Normal(*actor.head.loc_std(actor(rows["observation"]))).log_prob(rows["action"])
    log_prob, advantage = log_prob.sum(-1), rows["advantage"]
    ratio = (log_prob - rows["log_prob"]).exp().detach()
    counts = torch.where(advantage > 0, ratio < 1.1, ratio > 0.9)
    error = critic(rows["observation"]) - rows["return"]
    weighted = torch.where(counts, ratio * advantage, 0.0) * log_prob
    expected = torch.autograd.grad(error.square().mean() - 0.3 * weighted.mean(), weights)
    for ours, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-6)
    share = ((ratio - 1).abs() > 0.1).float().mean()
    assert outputs["clip_fraction"].item() == pytest.approx(share.item(), abs=0.01)
    assert (not counts.all() and counts.any()) if moved else (counts.all() and share == 0)


def test_without_its_coefficient_nothing_of_ppo_is_computed():
    run = task(SPREAD)
    run.collect(0)
    _, batch = run.batches(0)
    assert set(batch["agents"].keys()) == {"observation", "return"}
    outputs = run.loss(batch)
    assert set(outputs) == {"loss", "value_loss"}
    found = torch.autograd.grad(outputs["loss"], list(run.loss.actors.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in found)


def test_saved_weights_without_targets_give_both(tmp_path):
    run, other = task(SPREAD), task(SPREAD)
    with torch.no_grad():
        for p in other.loss.critics.parameters():
            p.add_(1.0)
    saved = {name: value for name, value in other.loss.state_dict().items() if not name.startswith("targets.")}
    run.loss.load_state_dict(saved)
    for ours, theirs in zip(run.loss.targets.parameters(), other.loss.critics.parameters(), strict=True):
        assert torch.equal(ours, theirs)
