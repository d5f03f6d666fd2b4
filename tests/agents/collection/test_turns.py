"""Agents that act in turn through rollout, advantage, loss and statistics: only own turns count."""

from functools import partial

import pytest
import torch

from agents.algorithms.happo import correction
from agents.algorithms.ppo import PPO
from agents.models.normalization import RewardNorm
from agents.policies.policy import Policy
from agents.tasks.on_policy import OnPolicy
from envs.adapters.gymnasium_env import PettingZooEnv
from envs.spec import describe
from marl.engine.trainer import Trainer
from marl.networks import GRU, MLP

NETWORK = partial(MLP, hidden=[16])
GAME = {"nim": ("tests.envs.turn_cases.Nim", {"stones": 5}), "round": ("tests.envs.turn_cases.Round", {})}


def task(game="nim", network=NETWORK, groups=None, **algo):
    torch.manual_seed(0)
    path, kwargs = GAME[game]
    env = partial(PettingZooEnv, path, num_envs=5, max_steps=20, kwargs=kwargs)
    algo = PPO(**{"rollout_steps": 12, "minibatch_size": 20, "epochs": 2, "entropy_coef": 0.01, **algo})
    return OnPolicy(env, algo, network, frames=4 * 60, eval_episodes=6, groups=groups)


def batch_of(each):
    each.collect(0)
    return next(iter(each.batches(0)))


@pytest.mark.parametrize("game", GAME)
@pytest.mark.parametrize("algo", [{}, {"value_clip": 0.2, "value_norm": "running"}])
def test_only_own_turns_are_learnt_from(game, algo):
    each = task(game, **algo)
    batch = batch_of(each)
    data, counts = batch["agents"], batch["agents", "counts"]
    assert (counts.sum(-1) == 1).all() and (data["advantage"][counts] != 0).any()
    expected = each.loss(batch)
    for key in ("log_prob", "advantage", "return", *(["value"] if "value_clip" in algo else [])):
        data[key][~counts] += 3.0
    outputs = each.loss(batch)
    assert {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"} <= set(outputs)
    assert all(torch.equal(expected[key], value) for key, value in outputs.items())
    if not algo:
        value = each.loss.critics["agents"](data["observation"])
        error = (value - data["return"])[counts].square().mean()
        torch.testing.assert_close(outputs["value_loss"], error.detach())
        params = each.loss.actors["agents"](data["observation"], data["mask"])
        entropy = each.loss.actors["agents"].head.entropy(params)[counts].mean()
        torch.testing.assert_close(outputs["entropy"], entropy.detach())


def test_advantages_and_figures_are_those_of_own_turns():
    each = task(value_norm="running", normalize_advantage="batch", normalize_observation=True)
    each.collect(0)
    rows, turn = each.rows["agents"], each.rollout.masks["agents"]["turn"][:-1]
    assert torch.equal(rows["counts"], turn) and torch.equal(each.rollout.data["agents", "turn"], turn)
    advantage = rows["advantage"][turn]
    torch.testing.assert_close(advantage.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(advantage.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    critic = each.loss.critics["agents"]
    returns = critic.value_norm.denormalize(rows["return"])[turn]
    # The first update makes the averages those of this rollout.
    torch.testing.assert_close(critic.value_norm.mean_std()[0].float(), returns.mean())
    value = critic(each.rollout.observed["agents"][:-1])[turn]  # as it was: mean 0, deviation 1
    explained = 1 - (returns - value).var(correction=0) / returns.var(correction=0)
    torch.testing.assert_close(each.figures["explained_variance"], explained.detach(), atol=1e-4, rtol=1e-4)
    list(each.batches(0))
    assert each.loss.actors["agents"].inputs.norm.count.item() == turn.sum()


def test_an_agent_that_drops_out_has_ended():
    each = task("round", gamma=1.0, lam=1.0, rollout_steps=9, minibatch_size=None)
    each.collect(0)  # nine turns: 0, 0, 2, 1, 2, 1, 2, 1, 2, and with its last each has dropped out
    returns, turn = each.rows["agents"]["return"][:, 0], each.rows["agents"]["counts"][:, 0]
    # 0 gets 1 a turn, and 0.5 whenever 2 acts while 0 is there, which it is no more; 1 gets 1, and 0.5 before its first
    # turn; 2 gets 1, and 0.5 from each of the three turns of 1.
    torch.testing.assert_close(returns[:, 0][turn[:, 0]], torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(returns[:, 1][turn[:, 1]], torch.tensor([3.0, 2.0, 1.0]))
    torch.testing.assert_close(returns[:, 2][turn[:, 2]], torch.tensor([5.5, 4.0, 2.5, 1.0]))


def test_rewards_are_scaled_by_returns_from_own_turn_to_own_turn():
    norm = RewardNorm(n_envs=1, n_agents=2, gamma=0.5, limit=100.0)
    reward = torch.tensor([[2.0, 0.0], [2.0, 4.0], [0.0, 8.0]]).unsqueeze(1)
    turn = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]]).bool().unsqueeze(1)
    done = torch.zeros(3, 1, dtype=torch.bool)
    scaled = norm(reward, done, turn=turn)
    # G of the first at its turns: 2, then 0 + 0.5 * (2 + 2) = 2; of the second at its turn: 4 + 0.5 * 0
    seen = torch.tensor([2.0, 2.0, 4.0])
    assert norm.moments.count == 3 and norm.moments.mean.item() == pytest.approx(seen.mean().item())
    torch.testing.assert_close(scaled, reward / seen.std(correction=0))
    assert norm.carry.tolist() == [[2.0, 0.5 * (4.0 + 8.0)]]  # the second acts next
    assert task(reward_norm="std").reward_norm["agents"] is not None
    trained = task(reward_norm="std")
    trained.collect(0)
    assert trained.reward_norm["agents"].moments.count == trained.rollout.masks["agents"]["turn"][:-1].sum()


def test_an_agent_that_waits_corrects_nobody():
    each = task(update="sequential", share_actor="separate", minibatch_size=None)
    each.collect(0)
    rows = {key: value.flatten(0, 1) for key, value in each.rows["agents"].items()}
    with torch.no_grad():
        for parameter in each.loss.actors.parameters():
            parameter.add_(0.1)
    for agent in range(2):
        factor, waits = correction(each.loss.actors["agents"], agent, rows), ~rows["counts"][:, agent]
        assert (factor[waits] == 1).all() and (factor[~waits] != 1).any()


@pytest.mark.parametrize("network", [NETWORK, partial(GRU, hidden=8)], ids=["mlp", "gru"])
def test_a_run_is_resumed_to_the_same_bits(tmp_path, network):
    runs = [Trainer(progress="off", checkpoint_every=1, evaluate_every=0, max_iterations=n) for n in (4, 2, 4)]
    whole, first, second = (task(network=network, reward_norm="std", value_norm="popart") for _ in range(3))
    runs[0].fit(whole, tmp_path / "a")
    runs[1].fit(first, tmp_path / "b")
    runs[2].fit(second, tmp_path / "b", resume=tmp_path / "b" / "checkpoints" / "last.pt")
    for a, b in zip(whole.loss.parameters(), second.loss.parameters(), strict=True):
        assert torch.equal(a, b)
    assert runs[0].evaluation == runs[2].evaluation


def test_a_saved_policy_acts_by_the_masks(tmp_path):
    each = task()
    metadata = {
        "spec": describe(each.spec), "algo": {"_target_": "agents.algorithms.ppo.PPO"}, "critic_network": None,
        "network": {"_target_": "marl.networks.MLP", "hidden": [16]},
    }  # fmt: skip
    Policy(metadata).save(tmp_path / "policy.safetensors")
    policy = Policy.load(tmp_path / "policy.safetensors")
    assert policy.spec.groups["agents"].masks == ("action", "alive", "turn")
    env = each.env
    observation, _ = env.reset(0)
    for _ in range(40):  # a move that is not there would fail
        moved = env.step(policy.act(observation, deterministic=False, masks=env.masks()))
        observation = moved.observation
