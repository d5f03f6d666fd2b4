"""The feature-pruned agent-specific state: what is found, what the critic then reads, and that it is kept."""

from functools import partial

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.evaluation.redundant_features import find_repeated, repeated
from agents.models.actor_critic import build_networks
from agents.tasks.on_policy import OnPolicy
from envs.spec import describe, spec_of
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError
from marl.networks import MLP, DeepSets

ENV = partial(VmasEnv, "balance", max_steps=8, global_state=True, fast="off")


def test_repeated_features_of_a_hand_made_state():
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(50, 4, generator=generator)
    other = torch.randn(50, 2, generator=generator)
    # both agents: [a feature of the state, something else, 2 * a feature, a feature that only agent 0 repeats]
    first = torch.stack([state[:, 0], other[:, 0], 2 * state[:, 1], state[:, 2]], -1)
    second = torch.stack([state[:, 3], other[:, 1], 2 * state[:, 1], other[:, 1]], -1)
    assert repeated(torch.stack([first, second], 1), state) == (0,)


def test_of_balance_position_and_velocity_are_found():
    env = ENV(num_envs=4, seed=0)
    spec = find_repeated(env, 3)
    group = spec.groups["agents"]
    observation, state = env.reset(9)
    for _ in range(3):
        step = env.step(env.random_action(torch.Generator().manual_seed(1)))
    observed, state = step.next_observation["agents"], step.next_state
    for f in range(group.observation_size):
        in_state = all((observed[:, a, f : f + 1] == state).all(0).any() for a in range(group.n_agents))
        assert in_state == (f in group.in_state)
    assert {0, 1, 2, 3} <= set(group.in_state) < set(range(group.observation_size))
    assert spec_of(describe(spec)).groups["agents"].in_state == group.in_state


def test_the_critic_reads_the_rest_and_a_saved_one_too():
    algo = PPO(rollout_steps=4, minibatch_size=8, critic="agent_state", prune_state=True, normalize_observation=True)
    task = OnPolicy(partial(ENV, num_envs=4), algo, partial(MLP, hidden=[8]), frames=32, eval_episodes=2)
    pruned, critic = task.spec.groups["agents"].in_state, task.loss.critics["agents"]
    size = task.spec.state_size + task.spec.groups["agents"].observation_size - len(pruned)
    assert critic.network.networks[0].in_shape == (size,) and pruned
    task.collect(0)
    list(task.batches(0))
    observation, state = torch.randn(3, critic.n_agents, 16), torch.randn(3, task.spec.state_size)
    value = critic(observation, state)
    changed = observation.clone()
    changed[..., list(pruned)] += 1
    assert torch.equal(critic(changed, state), value)
    others = [f for f in range(16) if f not in pruned]
    changed[..., others] += 1
    assert not torch.equal(critic(changed, state), value)
    _, critics = build_networks(algo, spec_of(task.state_dict()["spec"]), partial(MLP, hidden=[8]))
    critics["agents"].load_state_dict(critic.state_dict())
    assert torch.equal(critics["agents"](observation, state), value)


def test_where_there_is_nothing_to_prune_it_is_refused():
    with pytest.raises(UserError, match="prune_state=true: needs algo.critic=agent_state, not concat"):
        PPO(prune_state=True)
    algo = PPO(rollout_steps=4, minibatch_size=8, critic="agent_state", prune_state=True)
    with pytest.raises(UserError, match="prune_state=true: its network reads the whole team"):
        OnPolicy(partial(ENV, num_envs=4), algo, partial(DeepSets, hidden=[8]), frames=32)
