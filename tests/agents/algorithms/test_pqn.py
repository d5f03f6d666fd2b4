"""PQN: lambda-returns by their recursion, known values, masks and teams."""

from functools import partial

import pytest
import torch

from agents.algorithms.advantages import bootstrap, gae
from agents.algorithms.pqn import PQN, GreedyValue
from agents.tasks.on_policy import OnPolicy
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.networks import GRU, MLP
from tests.agents import two_states
from tests.agents.two_states import GAMMA, REWARD, A, K, TwoStates

SEEN = torch.eye(2).unsqueeze(1).expand(-1, A, -1)
SETTINGS = {"gamma": GAMMA, "rollout_steps": 14, "minibatch_size": 28, "epochs": 4, "explore": 1.0}


def trained(algo, iterations=60, lr=0.05):
    task = OnPolicy(TwoStates, algo, partial(MLP, hidden=[]), frames=14 * 8 * iterations)
    optimizer = torch.optim.Adam(task.loss.parameters(), lr)
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - iteration / iterations)
        task.collect(iteration)
        for batch in task.batches(iteration):
            optimizer.zero_grad()
            task.loss(batch)["loss"].backward()
            optimizer.step()
    return task


def test_returns_are_those_of_the_recursion():
    """G_t = r_t + gamma ((1 - lambda) V(s'_t) + lambda G_{t+1}), V(s'_t) alone where cut off, nothing where over."""
    g = torch.Generator().manual_seed(0)
    T, E, lam = 9, 4, 0.7
    reward, value = torch.randn(T, E, A, generator=g), torch.randn(T + 1, E, A, generator=g)
    terminated = torch.rand(T, E, generator=g) < 0.2
    truncated = (torch.rand(T, E, generator=g) < 0.2) & ~terminated
    index = truncated.flatten().nonzero().squeeze(-1)
    final = torch.randn(len(index), A, generator=g)
    following = bootstrap(value, final, index)
    _, returns = gae(reward, value[:-1], following, terminated, terminated | truncated, GAMMA, lam)
    later = value[-1]
    for t in reversed(range(T)):
        for e in range(E):
            if terminated[t, e]:
                expected = reward[t, e]
            elif truncated[t, e] or t == T - 1:
                expected = reward[t, e] + GAMMA * following[t, e]
            else:
                expected = reward[t, e] + GAMMA * ((1 - lam) * value[t + 1, e] + lam * later[e])
            torch.testing.assert_close(returns[t, e], expected)
        later = returns[t]


def test_pqn_learns_the_optimal_values():
    q = trained(PQN(**SETTINGS, lam=0.0)).loss.actors["team"](SEEN)
    torch.testing.assert_close(q, two_states.choice_values().unsqueeze(1).expand(2, A, K), rtol=0.01, atol=0.02)


def test_pqn_vdn_learns_the_teams_optimal_values():
    task = trained(PQN(**SETTINGS, lam=0.0, mixer="sum"))
    q = task.loss.actors["team"](SEEN)
    torch.testing.assert_close(q.amax(-1).sum(-1), two_states.values(REWARD.amax(1)), rtol=0.01, atol=0.02)
    assert torch.equal(q.argmax(-1), REWARD.argmax(1, keepdim=True).expand(2, A))
    assert task.rows["team"]["return"].shape == (14, 8, 1)


def test_the_best_of_what_is_allowed_is_the_value():
    action = ActionSpec("discrete", nvec=(K,))
    spec = EnvSpec({"team": GroupSpec("team", ("a", "b"), 2, action, ("action", "alive"))}, None, 5)
    loss = PQN(**SETTINGS).make_loss(spec, partial(MLP, hidden=[4]))
    actor, x = loss.actors["team"], torch.randn(5, A, 2)
    mask = torch.rand(5, A, K) < 0.5
    mask[..., 0] = True
    q = actor(x)
    expected = torch.where(mask, q, -torch.inf).amax(-1)
    torch.testing.assert_close(GreedyValue(actor, False)(x, None, mask), expected)
    torch.testing.assert_close(GreedyValue(actor, True)(x, None, mask), expected.sum(-1, keepdim=True))
    rows = {"observation": x, "action": torch.zeros(5, A, 1, dtype=torch.int64), "return": torch.randn(5, A)}
    alive = torch.tensor([[True, False]]).expand(5, A)
    out = loss({"team": {**rows, "mask": mask, "alive": alive}})["loss"]
    torch.testing.assert_close(out, (q[:, 0, 0] - rows["return"][:, 0]).square().mean())


def test_refusals_are_sentences():
    with pytest.raises(UserError, match="has a memory, which algo=pqn does not train"):
        OnPolicy(TwoStates, PQN(**SETTINGS), partial(GRU, hidden=4), frames=200)
    with pytest.raises(UserError, match="these values need epsilon_greedy"):
        PQN(**SETTINGS, policy="categorical")
    with pytest.raises(UserError, match="these actions are continuous; .*algo=masac, .*maddpg, .*mappo, ippo"):
        OnPolicy(partial(TwoStates, continuous=True), PQN(**SETTINGS), partial(MLP, hidden=[4]), frames=200)


def test_a_rollout_explores_as_it_is_logged():
    """Epsilon 1, 0.5 and 0 in three iterations: the last rollout is greedy."""
    algo = PQN(**SETTINGS | {"explore_schedule": "linear", "explore_final": 0.0, "explore_until": 1.0})
    task = OnPolicy(TwoStates, algo, partial(MLP, hidden=[]), frames=14 * 8 * 3)
    for iteration, epsilon in enumerate((1.0, 0.5, 0.0)):
        task.collect(iteration)
        assert task.metrics()["exploration"] == epsilon == task.loss.actors["team"].head.exploration.item()
    greedy = task.rollout.params["team"].argmax(-1, keepdim=True)
    assert torch.equal(task.rollout.action["team"], greedy)
