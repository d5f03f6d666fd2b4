"""IPPO in pure JAX on a JaxMARL environment: the computation of JaxMARL's baseline `ippo_ff_mpe`, without its logging.

Written after baselines/IPPO/ippo_ff_mpe.py of FLAIROx/JaxMARL (Rutherford et al. 2024), itself after PureJaxRL
(Lu et al. 2022): the same network, keys, wrapper, scans, losses and schedule. Only its report to Weights & Biases is
gone, and the updates come in chunks (`train` there is one scan over all of them), so that they can be timed in turn.
Rows are agents times environments, agent by agent.
"""

from functools import partial
from typing import Any, NamedTuple

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxmarl
import numpy as np
import optax
from flax.linen.initializers import constant, orthogonal
from flax.training.train_state import TrainState
from jaxmarl.wrappers.baselines import MPELogWrapper

DEFAULTS = {
    "lr": 2.5e-4, "envs": 16, "steps": 128, "frames": 1e7, "epochs": 4, "minibatches": 4, "gamma": 0.99, "lam": 0.95,
    "clip": 0.2, "entropy": 0.01, "value": 0.5, "norm": 0.5,
}  # fmt: skip


class ActorCritic(nn.Module):
    """Two tanh networks of 64 and 64 units, one for the logits, one for the value."""

    choices: int

    @nn.compact
    def __call__(self, x):
        def network(outputs: int, gain: float):
            hidden = x
            for _ in range(2):
                dense = nn.Dense(64, kernel_init=orthogonal(np.sqrt(2)), bias_init=constant(0.0))
                hidden = nn.tanh(dense(hidden))
            return nn.Dense(outputs, kernel_init=orthogonal(gain), bias_init=constant(0.0))(hidden)

        return distrax.Categorical(logits=network(self.choices, 0.01)), jnp.squeeze(network(1, 1.0), axis=-1)


class Step(NamedTuple):
    """What a step leaves behind, one row per agent and environment."""

    done: jnp.ndarray
    action: jnp.ndarray
    value: jnp.ndarray
    reward: jnp.ndarray
    log_prob: jnp.ndarray
    observation: jnp.ndarray
    info: Any


def make_train(name: str, overrides: dict | None = None):
    """(begin, update): `begin(key)` is the state of a fresh run, `update(state, count)` trains `count` iterations.

    Both are to be jitted (`count` static); `update` returns the state and the means of each iteration's figures.
    """
    cfg = {**DEFAULTS, **(overrides or {})}
    env = jaxmarl.make(name)
    agents = env.agents
    rows = len(agents) * cfg["envs"]
    iterations = cfg["frames"] // cfg["steps"] // cfg["envs"]
    env = MPELogWrapper(env)
    network = ActorCritic(env.action_space(agents[0]).n)

    def rate(count):
        """Linear to zero, constant within an iteration."""
        return cfg["lr"] * (1.0 - (count // (cfg["minibatches"] * cfg["epochs"])) / iterations)

    def stacked(values: dict) -> jnp.ndarray:
        return jnp.stack([values[agent] for agent in agents]).reshape((rows, -1))

    def begin(key):
        key, subkey = jax.random.split(key)
        params = network.init(subkey, jnp.zeros(env.observation_space(agents[0]).shape))
        tx = optax.chain(optax.clip_by_global_norm(cfg["norm"]), optax.adam(learning_rate=rate, eps=1e-5))
        learner = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
        key, subkey = jax.random.split(key)
        observation, world = jax.vmap(env.reset)(jax.random.split(subkey, cfg["envs"]))
        key, subkey = jax.random.split(key)
        return learner, world, observation, subkey

    def play(carry, _):
        learner, world, observation, key = carry
        inputs = stacked(observation)
        key, subkey = jax.random.split(key)
        policy, value = network.apply(learner.params, inputs)
        action = policy.sample(seed=subkey)
        log_prob = policy.log_prob(action)
        split = action.reshape((len(agents), cfg["envs"], -1))
        key, subkey = jax.random.split(key)
        observation, world, reward, done, info = jax.vmap(env.step)(
            jax.random.split(subkey, cfg["envs"]), world, {agent: split[i] for i, agent in enumerate(agents)}
        )
        info = jax.tree.map(lambda x: x.reshape(rows), info)
        step = Step(stacked(done).squeeze(), action, value, stacked(reward).squeeze(), log_prob, inputs, info)
        return (learner, world, observation, key), step

    def advantages(steps: Step, last_value):
        def backwards(carry, step):
            advantage, following = carry
            delta = step.reward + cfg["gamma"] * following * (1 - step.done) - step.value
            advantage = delta + cfg["gamma"] * cfg["lam"] * (1 - step.done) * advantage
            return (advantage, step.value), advantage

        begin = (jnp.zeros_like(last_value), last_value)
        _, advantage = jax.lax.scan(backwards, begin, steps, reverse=True, unroll=8)
        return advantage, advantage + steps.value

    def loss(params, steps: Step, advantage, target):
        policy, value = network.apply(params, steps.observation)
        log_prob = policy.log_prob(steps.action)
        clipped = steps.value + (value - steps.value).clip(-cfg["clip"], cfg["clip"])
        value_loss = 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target)).mean()
        ratio = jnp.exp(log_prob - steps.log_prob)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        bounded = jnp.clip(ratio, 1.0 - cfg["clip"], 1.0 + cfg["clip"])
        policy_loss = -jnp.minimum(ratio * advantage, bounded * advantage).mean()
        entropy = policy.entropy().mean()
        total = policy_loss + cfg["value"] * value_loss - cfg["entropy"] * entropy
        return total, (value_loss, policy_loss, entropy, ratio)

    def descend(learner, batch):
        (total, (value, policy, entropy, ratio)), gradient = jax.value_and_grad(loss, has_aux=True)(
            learner.params, *batch
        )
        figures = {"total": total, "policy": policy, "value": value, "entropy": entropy, "ratio": ratio}
        return learner.apply_gradients(grads=gradient), figures

    def epoch(carry, _):
        learner, data, key = carry
        key, subkey = jax.random.split(key)
        count = cfg["steps"] * rows
        order = jax.random.permutation(subkey, count)
        flat = jax.tree.map(lambda x: x.reshape((count, *x.shape[2:])), data)
        shuffled = jax.tree.map(lambda x: jnp.take(x, order, axis=0), flat)
        batches = jax.tree.map(lambda x: x.reshape((cfg["minibatches"], -1, *x.shape[1:])), shuffled)
        learner, figures = jax.lax.scan(descend, learner, batches)
        return (learner, data, key), figures

    def iteration(state, _):
        state, steps = jax.lax.scan(play, state, None, cfg["steps"])
        learner, world, observation, key = state
        _, last_value = network.apply(learner.params, stacked(observation))
        data = (steps, *advantages(steps, last_value))
        (learner, _, key), figures = jax.lax.scan(epoch, (learner, data, key), None, cfg["epochs"])
        means = jax.tree.map(lambda x: x.mean(), {**steps.info, **figures})
        return (learner, world, observation, key), means

    @partial(jax.jit, static_argnums=1)
    def update(state, count: int):
        return jax.lax.scan(iteration, state, None, count)

    return jax.jit(begin), update
