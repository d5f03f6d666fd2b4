"""README's lines as a user with strict type checks writes them, and what the names that it imports are."""
# pyright: strict

from functools import partial
from typing import Any, assert_type

from torch import Tensor

from agents import MAPPO, QMIX, Policy, live_page, make_task
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.ppo import PPO
from agents.tasks.rl_task import RLTask
from envs import Transition, VmasEnv
from marl import OptimizerConfig, Trainer, train

env = partial(VmasEnv, "balance", scenario_kwargs={"n_agents": 4, "package_mass": 5})  # makes environments
task = make_task(env, MAPPO(gamma=0.97), frames=600_000, seed=0)  # algo=mappo; every key of conf/algo/mappo.yaml
summary = train(task, "outputs/python", Trainer(grad_clip=5.0, threads=1))  # a run directory like any other
print(summary["final"]["episode_return"], task.evaluate())
policy = Policy.load("outputs/python")
live_page(policy, "outputs/python/live.html")  # open it in a browser; replay_page for recorded episodes
policy.save("outputs/python/policy.safetensors")  # to be loaded in the same way
print(policy.act(env(num_envs=8).reset(seed=1)[0])["agents"].shape)

assert_type(MAPPO(), PPO)
assert_type(QMIX(), QLearning)
assert_type(MAPPO().gamma, float)
assert_type(task, RLTask)
assert_type(task.evaluate(), dict[str, float])
assert_type(summary, dict[str, Any])
assert_type(policy, Policy)
assert_type(OptimizerConfig().lr, float)
environment = env(num_envs=8)
assert_type(environment, VmasEnv)
observation, state = environment.reset(seed=0)
assert_type(observation, dict[str, Tensor])
assert_type(state, Tensor | None)
actions = policy.act(observation)
assert_type(actions, dict[str, Tensor])
assert_type(environment.step(actions), Transition)
assert_type(environment.step(actions).reward, dict[str, Tensor])
assert_type(policy.act(observation["agents"]), Tensor)
remembered = policy.act(observation, memory=policy.memory(8))
assert_type(remembered, tuple[dict[str, Tensor], dict[str, Tensor]])
