"""JaxMARL's side of scripts/benchmark.py, in its own virtual environment; everything jitted, compilation not timed.

step  each command {"steps": n, "scan": true|false}: n steps of --envs environments with pre-drawn actions: as one
      scan, or as n calls; a step holds JaxMARL's automatic reset
ippo  each command {"times": n}: n iterations (collection and update) of its IPPO baseline at its default shapes
"""

import argparse
import time

import jax
import jax.numpy as jnp
import jaxmarl
from jaxmarl_ippo import DEFAULTS, make_train
from line import Line

NAME = "MPE_simple_spread_v3"
DRAWN = 8  # sets of actions, used in turn


class Steps:
    """Environments under random actions; `scan(n)` and `single(n)` return the seconds of n steps."""

    def __init__(self, envs: int):
        env = jaxmarl.make(NAME)
        key, reset, draw = jax.random.split(jax.random.PRNGKey(0), 3)
        observation, state = jax.vmap(env.reset)(jax.random.split(reset, envs))
        choices = env.action_space(env.agents[0]).n
        drawn = jax.random.randint(draw, (DRAWN, len(env.agents), envs), 0, choices)
        self.actions = [{agent: drawn[k, i] for i, agent in enumerate(env.agents)} for k in range(DRAWN)]
        self.carry = (observation, state, jnp.zeros((len(env.agents), envs)), key)
        self.compiled: dict[int, object] = {}

        def step(carry, actions):
            _, state, total, key = carry
            key, subkey = jax.random.split(key)
            observation, state, reward, _, _ = jax.vmap(env.step)(jax.random.split(subkey, envs), state, actions)
            return (observation, state, total + jnp.stack([reward[a] for a in env.agents]), key), None

        def several(carry, count):
            def one(carry, t):
                return step(carry, {a: drawn[t % DRAWN, i] for i, a in enumerate(env.agents)})

            return jax.lax.scan(one, carry, jnp.arange(count))[0]

        self.step = jax.jit(lambda carry, actions: step(carry, actions)[0])
        self.several = jax.jit(several, static_argnums=1)

    def scan(self, count: int) -> float:
        began = time.perf_counter()
        self.carry = jax.block_until_ready(self.several(self.carry, count))
        return time.perf_counter() - began

    def single(self, count: int) -> float:
        carry, began = self.carry, time.perf_counter()
        for t in range(count):
            carry = self.step(carry, self.actions[t % DRAWN])
        self.carry = jax.block_until_ready(carry)
        return time.perf_counter() - began


def steps(envs: int, line: Line) -> None:
    simulation = Steps(envs)
    line.send(ready="step")
    for command in line.commands():
        count = command["steps"]
        line.send(step_s=(simulation.scan if command["scan"] else simulation.single)(count) / count)


def ippo(line: Line) -> None:
    begin, update = make_train(NAME)
    state = jax.block_until_ready(begin(jax.random.PRNGKey(30)))
    line.send(ready="ippo", frames=DEFAULTS["envs"] * DEFAULTS["steps"])
    for command in line.commands():
        began = time.perf_counter()
        state, figures = jax.block_until_ready(update(state, command["times"]))
        seconds = time.perf_counter() - began
        line.send(iteration_s=seconds / command["times"],
                  episode_return=float(figures["returned_episode_returns"][-1]))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "ippo"])
    parser.add_argument("--envs", type=int, default=600)
    line, args = Line(), parser.parse_args()
    if args.what == "step":
        steps(args.envs, line)
    else:
        ippo(line)


if __name__ == "__main__":
    main()
