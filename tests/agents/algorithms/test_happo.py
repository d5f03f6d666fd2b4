"""HAPPO: whose turn it is, the correction factor against policies kept aside, and whom a turn leaves alone."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.tasks.on_policy import OnPolicy
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.networks import MLP
from marl.optim.optimizer_config import OptimizerConfig, clip_gradients
from tests.agents.masked_env import Doors

SEQUENTIAL = {"update": "sequential", "share_actor": "separate"}


def make(env=None, **algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 8, "minibatch_size": 12, "epochs": 2, **SEQUENTIAL, **algo})
    env = env or partial(VmasEnv, "balance", num_envs=6, max_steps=8)
    return OnPolicy(env, algo, partial(MLP, hidden=[16]), frames=48 * 3, eval_episodes=4)


def weights(networks):
    return [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks]


@pytest.mark.parametrize("env", [None, partial(Doors, num_envs=6)], ids=["continuous", "masked"])
def test_each_turn_trains_one_agent_on_corrected_advantages(env):
    task = make(env, minibatch_size=None, epochs=3, dual_clip=2.0)
    task.collect(0)
    actor, critic, data = task.loss.actors["agents"], task.loss.critics["agents"], task.rows["agents"]
    flat = {key: value.flatten(0, 1) for key, value in data.items()}
    A, mask = actor.n_agents, flat.get("mask")
    alive = flat.get("alive", torch.ones(48, A, dtype=torch.bool))
    # Momentum: an agent that is not left alone altogether would move on.
    optimizer = OptimizerConfig(lr=5e-3).build(task.parts())
    original, order, steps = copy.deepcopy(actor), [], 0
    for batch in task.batches(0):
        agent = task.loss.selected_agents["agents"]
        if agent not in order:
            order.append(agent)
        with torch.no_grad():  # every agent's policy as it now is, against those the rollout was played with
            new, old = (each.evaluate(flat["observation"], flat["action"], mask) for each in (actor, original))
        torch.testing.assert_close(old, flat["log_prob"], rtol=1e-4, atol=1e-4)
        ratio = torch.where(alive, (new - old).exp(), 1.0)
        expected = flat["advantage"] * ratio[:, order[:-1]].prod(-1, keepdim=True)
        torch.testing.assert_close(batch["agents", "advantage"], expected, rtol=1e-3, atol=1e-5)
        who = alive[:, agent]
        r, M = ratio[who, agent], expected[who, agent]
        objective = torch.minimum(r * M, r.clamp(0.8, 1.2) * M)
        objective = torch.where(M < 0, torch.maximum(objective, 2 * M), objective)
        out = task.loss(batch)
        torch.testing.assert_close(out["policy_loss"], -objective.mean(), rtol=1e-3, atol=1e-5)
        before, values = weights(actor.network.networks), weights([critic])
        out["loss"].backward()
        clip_gradients(list(critic.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after = weights(actor.network.networks)
        moved = [i for i in range(A) if not torch.equal(before[i], after[i])]
        assert moved == [agent] and torch.equal(values[0], weights([critic])[0]) == (len(order) > 1)
        steps += 1
    assert sorted(order) == list(range(A)) and steps == task.steps_per_iteration == 3 * A
    assert task.loss.selected_agents == {} and task.loss.value_loss_scale == 1
    assert (ratio - 1).abs().max() > 0.02  # the correction was no trifle


def test_the_first_turn_is_the_joint_loss_of_one_agent():
    task = make(critic="local")
    task.collect(0)
    batch = next(iter(task.batches(0)))
    sequential, (agent,) = task.loss(batch), task.loss.selected_agents.values()
    task.loss.select({}, 1)
    torch.testing.assert_close(sequential["value_loss"], 3 * task.loss(batch)["value_loss"])
    torch.testing.assert_close(sequential["policy_loss"], -batch["agents", "advantage"][:, agent].mean())


@pytest.mark.parametrize("scenario", ["balance", "mpe/simple_tag"])  # one group; two, of three agents and of one
def test_trains_resumes_exactly_and_reports_whole_means(tmp_path, scenario):
    env = partial(VmasEnv, scenario, num_envs=6, max_steps=8, fast="off")
    make_one = partial(make, env, entropy_coef=0.01, target_kl=0.5)
    ends = []
    for folder, limits in (("a", [3]), ("b", [2, 3])):
        for limit in limits:
            task, trainer = make_one(), Trainer(progress="off", checkpoint_every=1, max_iterations=limit, grad_clip=1.0)
            last = tmp_path / folder / "checkpoints" / "last.pt"
            resume = last if last.exists() else None
            summary = trainer.fit(task, tmp_path / folder, optimizer=OptimizerConfig(lr=1e-3), resume=resume)
        ends.append(torch.cat(weights([task.loss])))
        assert np.isfinite(summary["final"]["episode_return"]["mean"])
    assert torch.equal(*ends)


def test_shared_parameters_are_refused():
    for algo in ({"share_actor": "shared"}, {"share_actor": "separate", "std": "independent"}):
        with pytest.raises(UserError, match="algo.update=sequential"):
            PPO(update="sequential", **algo)


def test_the_norm_of_no_gradient_is_zero():
    assert clip_gradients([torch.nn.Parameter(torch.ones(3))], 1.0).item() == 0.0
