"""Forbidden actions and dead agents through rollout, distribution, loss, advantage, evaluation and resume."""

from functools import partial
from itertools import product

import pytest
import torch

from agents.algorithms.advantages import normalize_advantage
from agents.algorithms.ppo import PPO
from agents.algorithms.pqn import PQN, GreedyValue
from agents.collection.rollout_buffer import RolloutBuffer
from agents.collection.value_estimates import values_of
from agents.evaluation.episodes import evaluate
from agents.models.actor import Actor
from agents.tasks.on_policy import OnPolicy
from envs.adapters.gymnasium_env import PettingZooEnv
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.networks import MLP
from marl.optim.optimizer_config import OptimizerConfig
from tests.agents.masked_env import NVEC, Doors

NETWORK = partial(MLP, hidden=[16])


def task(**algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 9, "minibatch_size": 15, "epochs": 2, "entropy_coef": 0.01, **algo})
    return OnPolicy(partial(Doors, num_envs=5), algo, NETWORK, frames=4 * 45, eval_episodes=50)


def test_masked_policy_by_enumeration():
    """Probabilities and entropy are those of a softmax over the open doors alone, dimension by dimension."""
    env = Doors(num_envs=8)
    actor = Actor(env.spec.groups["agents"], NETWORK)
    observation, mask = env.reset(1)[0]["agents"], env.masks()["agents"]["action"]
    logits, params = actor(observation), actor(observation, mask)
    entropy = actor.head.entropy(params)
    for e, a in product(range(8), range(3)):
        total, h = {}, 0.0
        for dimension, (x, m) in enumerate(zip(logits[e, a].split(NVEC), mask[e, a].split(NVEC), strict=True)):
            p = x[m].double().softmax(0)
            h -= (p * p.log()).sum().item()
            total |= {(dimension, i): q.item() for i, q in zip(m.nonzero().flatten().tolist(), p, strict=True)}
        assert entropy[e, a].item() == pytest.approx(h, abs=1e-5)
        for i, j in product(*map(range, NVEC)):
            raw = torch.zeros(8, 3, 2, dtype=torch.int64)
            raw[e, a] = torch.tensor([i, j])
            got = actor.evaluate(observation, raw, mask)[e, a].exp().item()
            assert got == pytest.approx(total.get((0, i), 0.0) * total.get((1, j), 0.0), abs=1e-6)


def test_forbidden_choices_get_no_gradient():
    env = Doors(num_envs=8)
    actor = Actor(env.spec.groups["agents"], NETWORK)
    mask = env.masks()["agents"]["action"]
    params = torch.randn(8, 3, sum(NVEC), requires_grad=True)
    masked = params.masked_fill(~mask, -1e30)
    raw, _ = actor.head.sample(masked.detach(), torch.Generator().manual_seed(0))
    log_prob, entropy = actor.head.log_prob_and_entropy(masked, raw)
    (log_prob.sum() + entropy.sum()).backward()
    assert torch.isfinite(params.grad).all() and (params.grad[~mask] == 0).all() and (params.grad[mask] != 0).any()


def batch_of(each):
    each.collect(0)
    return next(iter(each.batches(0)))


@pytest.mark.parametrize("dual", [None, 1.2])
def test_the_loss_is_the_mean_over_the_living(dual):
    each = task(dual_clip=dual)
    batch = batch_of(each)
    data, alive = batch["agents"], batch["agents", "alive"]
    assert 0 < (~alive).sum() < alive.numel()
    data["log_prob"] += 0.5 * torch.randn(data["log_prob"].shape, generator=torch.Generator().manual_seed(0))
    actor = each.loss.actors["agents"]
    params = actor(data["observation"], data["mask"])
    log_prob, entropy = actor.head.log_prob(params, data["action"])[alive], actor.head.entropy(params)[alive]
    ratio, advantage = (log_prob - data["log_prob"][alive]).exp(), data["advantage"][alive]
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    if dual is not None:
        objective = torch.where(advantage < 0, torch.maximum(objective, dual * advantage), objective)
    out = each.loss(batch)
    torch.testing.assert_close(out["policy_loss"], -objective.mean().detach())
    torch.testing.assert_close(out["entropy"], entropy.mean().detach())
    torch.testing.assert_close(out["clip_fraction"], ((ratio - 1).abs() > 0.2).float().mean())
    torch.testing.assert_close(out["approx_kl"], (ratio - 1 - ratio.log()).mean().detach())
    parameters = list(actor.parameters())
    plain = torch.autograd.grad(-objective.mean() - 0.01 * entropy.mean(), parameters)
    for ours, theirs in zip(torch.autograd.grad(out["loss"], parameters), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["batch", "agent"])
def test_advantages_are_normalised_over_the_living(mode):
    g = torch.Generator().manual_seed(0)
    advantage, alive = 3 + torch.randn(7, 5, 3, generator=g), torch.rand(7, 5, 3, generator=g) < 0.6
    got = normalize_advantage(advantage, mode, alive=alive)
    for a in range(3):
        living = advantage[alive] if mode == "batch" else advantage[..., a][alive[..., a]]
        expected = (advantage[..., a] - living.mean()) / living.std(correction=0)
        torch.testing.assert_close(got[..., a], expected, rtol=1e-4, atol=1e-4)
    everyone = normalize_advantage(advantage, mode, alive=torch.ones_like(alive))
    torch.testing.assert_close(everyone, normalize_advantage(advantage, mode), rtol=1e-4, atol=1e-5)


def test_masks_lie_beside_what_was_observed():
    each = task()
    for _ in range(2):
        last = each.rollout.masks["agents"]["action"][-1].clone()
        each.collect(0)
    masks, observed = each.rollout.masks["agents"], each.rollout.observed["agents"]
    assert torch.equal(masks["action"][0], last)
    assert torch.equal(observed, masks["action"].float() * masks["alive"].unsqueeze(-1))
    assert torch.equal(each.rollout.data["agents", "action_mask"], masks["action"][:-1])
    dead = ~masks["alive"][:-1]
    assert dead[..., -1].any() and not dead[..., :-1].any()


def test_random_and_trained_play_keep_to_open_doors_and_training_helps(tmp_path):
    algo = {"rollout_steps": 18, "minibatch_size": 30, "normalize_observation": True, "agent_ids": True}
    each = task(**algo, normalize_advantage="batch")
    random = each.run_episodes(random=True).episode_returns().mean()
    trainer = Trainer(progress="off", evaluate_every=0, checkpoint_every=0, max_iterations=25)
    trained = trainer.fit(each, tmp_path, optimizer=OptimizerConfig(lr=5e-3))["final"]["episode_return"]["mean"]
    # The best, always the last open door, is worth about 1.5 times as much as any open door.
    assert trained > 1.25 * random
    norm = each.loss.actors["agents"].inputs.norm
    assert norm.count.item() < 25 * 18 * 5 * 3  # observations of the dead are no observations


def test_resume_is_exact(tmp_path):
    whole, first, second = task(), task(), task()
    runs = [Trainer(progress="off", checkpoint_every=1, evaluate_every=0, max_iterations=n) for n in (4, 2, 4)]
    runs[0].fit(whole, tmp_path / "a")
    runs[1].fit(first, tmp_path / "b")
    runs[2].fit(second, tmp_path / "b", resume=tmp_path / "b" / "checkpoints" / "last.pt")
    for a, b in zip(whole.loss.parameters(), second.loss.parameters(), strict=True):
        assert torch.equal(a, b)
    assert runs[0].evaluation == runs[2].evaluation


def test_a_state_from_before_there_were_masks_is_taken_up():
    each, other = task(), task()
    for one in (each, other):
        one.collect(0)
    other.collect(1)
    state = each.collector.state_dict()
    other.collector.load_state_dict({**state, "masks": {"agents": {}}})
    for kind, mask in state["masks"]["agents"].items():
        assert torch.equal(other.rollout.masks["agents"][kind][-1], mask)


def test_continuous_actions_cannot_be_masked():
    box = ActionSpec("continuous", -torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(UserError, match="group red: its actions are continuous"):
        Actor(GroupSpec("red", ("a",), 3, box, ("action",)), NETWORK)


def test_evaluation_asks_for_the_masks():
    env = Doors(num_envs=20)
    actors = PPO().make_loss(env.spec, NETWORK).actors
    played = evaluate(env, actors, seed=3, deterministic=False)  # a closed door would fail
    assert (played.returns["agents"][:, -1] <= 2 * 5).all() and (played.lengths == 6).all()


def test_pettingzoos_masks_reach_the_loss(tmp_path):
    doors = partial(PettingZooEnv, "tests.envs.host_cases.Doors", num_envs=5, max_steps=20, heterogeneous="pad")
    torch.manual_seed(0)
    algo = PPO(rollout_steps=18, minibatch_size=30, epochs=2, entropy_coef=0.01)
    each = OnPolicy(doors, algo, NETWORK, frames=10**4, eval_episodes=5)
    trainer = Trainer(progress="off", evaluate_every=0, checkpoint_every=0, max_iterations=23)
    trainer.fit(each, tmp_path)  # 414 steps and the evaluation's; a forbidden action would fail
    batch = batch_of(each)
    alive, expected = batch["agents", "alive"], each.loss(batch)
    assert 0 < (~alive).sum() < alive.numel()
    for key in ("log_prob", "advantage"):
        batch["agents", key][~alive] += 3.0
    outputs = each.loss(batch)
    assert all(torch.equal(expected[key], outputs[key]) for key in ("policy_loss", "entropy", "approx_kl"))


@pytest.mark.parametrize("told", [True, False])
def test_greedy_values_of_true_final_observations_are_of_what_is_allowed_there(told):
    """Else, where the environment cannot tell, of all choices."""
    group = GroupSpec("team", ("a", "b"), 4, ActionSpec("discrete", nvec=(3,)), ("action",))
    actor = Actor(group, NETWORK, PQN())
    rollout = RolloutBuffer(EnvSpec({"team": group}, None, 5), 3, "cpu", 6, {"team": actor},
                            final_masks=("team",) if told else ())  # fmt: skip
    rollout.masks["team"]["action"].fill_(True)
    rollout.next["team"].normal_(generator=torch.Generator().manual_seed(0))
    if told:
        for t in range(6):
            rollout.write_final_masks(t, {"team": torch.arange(3).view(1, 1, 3).expand(3, 2, 3) != t % 3})
    truncated = torch.tensor([1, 5, 16])
    _, final = values_of(GreedyValue(actor, team=False), "team", rollout, truncated, None)
    for row, frame in enumerate(truncated.tolist()):
        values = actor(rollout.next["team"].flatten(0, 1)[frame])
        choices = [k for k in range(3) if not told or k != frame // 3 % 3]
        assert torch.equal(final[row], values[:, choices].amax(-1))
