"""The task of gradients through the simulator: what makes SHAC and APG a learning problem for the engine.

Data flows one way: environment -> window with its graph -> one step of the actors -> targets -> steps of the critics.
Shapes: T time, E environments, A agents in a group, N ends of episodes.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from agents.algorithms.advantages import bootstrap, explained_variance, gae, normalize_advantage
from agents.algorithms.shac import SHAC, returns_of_window
from agents.collection.collector import Collector
from agents.collection.differentiable_collector import DifferentiableCollector, Window
from agents.collection.value_estimates import values_of
from agents.curriculum.checks import cheaply
from agents.models.policy_heads.exploring import fitting
from agents.tasks.rl_task import RLTask
from envs.base import Env
from envs.infos import DEFAULT, Rules
from envs.vmas.env import VmasEnv
from marl.config.described import remembers_arguments
from marl.core import distributed
from marl.core.errors import UserError
from marl.data.epoch import take


class ShortHorizon(RLTask):
    """A window per iteration: a step of the actors back through it, then the critics' epochs on it. See `RLTask`.

    Args:
        env, frames, seed, device, eval_episodes, eval_deterministic, groups, info: see `RLTask`.
        algo: settings of SHAC or APG.
        network: factory of the actors' networks (and of the critics', unless `critic_network` is given).
        critic_network: factory of the critics' networks.
        curriculum: must be empty.
        trains: False = the agents are judged and played with only, which needs no gradients.

    The environments run on from window to window, whose ends need not be those of episodes. With `algo.ppo_coef` the
    critics' minibatches train the actors, too.

    Raises:
        UserError: as `RLTask`; an environment without gradients, networks with a memory, past versions, a curriculum,
            several processes, or a minibatch larger than the window.
    """

    name = "short_horizon"
    accumulates = False  # the actors' step is of one minibatch, the window
    repeatable = False  # its graph is walked back once

    @remembers_arguments
    def __init__(
        self,
        env: Callable[..., Env],
        algo: SHAC,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        frames: Annotated[int, Field(ge=1)] = 600_000,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | Any = "cpu",
        eval_episodes: Annotated[int, Field(ge=1)] = 200,
        eval_deterministic: bool = True,
        groups: dict[str, Any] | None = None,
        info: Rules | None = DEFAULT,
        curriculum: dict[str, Any] | None = None,
        trains: bool = True,
    ):
        if curriculum and curriculum.get("env"):
            raise UserError("curriculum.env: needs algo=mappo, ippo or pqn; algo=shac and apg stay in one environment")
        if trains:
            require_gradients(env, seed, device)
        self.collector_class = DifferentiableCollector if trains else Collector
        steps, played = algo.rollout_steps, (eval_episodes, eval_deterministic, groups, info)
        super().__init__(env, algo, steps, frames, seed, device, *played)
        if self.lineup.partly:
            raise UserError(f"groups.{min(self.lineup.partly)}.past: needs algo=mappo or ippo")
        self.minibatch_size = algo.minibatch_size or self.batch_frames
        if algo.bootstrap and self.minibatch_size > self.batch_frames:  # without a critic there are no minibatches
            raise UserError(
                f"algo.minibatch_size={algo.minibatch_size}: larger than the window of algo.rollout_steps * "
                f"env.num_envs = {self.batch_frames} frames; at most {self.batch_frames} is allowed"
            )
        self.build_loss(network, critic_network)
        if any(module.memory_shape for module in (*self.loss.actors.values(), *self.loss.critics.values())):
            raise UserError("network: has a memory, which algo=shac and apg do not train; use one without, network=mlp")
        self.build_collector(steps)
        self.minibatches = self.batch_frames // self.minibatch_size
        self.steps_per_iteration = 1 + algo.epochs * self.minibatches * algo.bootstrap
        self.objectives: dict[str, dict[str, Tensor]] = {}

    def parts(self) -> dict[str, nn.Module]:
        """As the loss names them."""
        return self.loss.parts()

    def collect(self, iteration: int) -> None:
        """A window under the current policy, and the actors' returns in it with their graph."""
        scheduled = self.loss.advance(min(iteration / max(self.iterations - 1, 1), 1.0))
        self.gather(iteration)
        self.figures |= scheduled
        window = self.collector.take_window()
        self.objectives = {name: self._objective(name, window) for name in self.lineup.algos}

    def _objective(self, name: str, window: Window) -> dict[str, Tensor]:
        """What the actors of a group maximise, {name: float32 [E, A]}, with its graph."""
        rollout, algo = self.rollout, self.lineup.algos[name]
        reward, values = torch.stack(window.reward[name]), {}
        if name in self.loss.targets:
            target = self.loss.targets[name]
            for t, (observation, state) in window.final.items():
                values[t] = target.network.denormalize(target(observation[name], state))
        reward = reward if algo.reward_scale == 1 else algo.reward_scale * reward
        ends = rollout.terminated, rollout.truncated
        objective = {"objective": returns_of_window(reward, *ends, values, algo.gamma)}
        if self.loss.entropy_coef.matters:
            params = torch.stack(window.params[name])
            objective["entropy"] = self.loss.actors[name].head.entropy(params, self.policy_generator).mean(0)
        return objective

    def _critic_rows(self) -> dict:
        """What the loss reads of a window's frames: {group: {name: [T * E, A, ...]}}, and "state" where it is used."""
        rollout, rows, explained = self.rollout, {}, []
        truncated = rollout.cut_frames()
        for name in self.lineup.algos:
            tensors, variance = self._rows(name, truncated)
            rows[name] = {key: value.flatten(0, 1) for key, value in tensors.items()}
            explained.append(variance)
            if len(self.loss.groups) > 1:
                self.figures[f"{name}/explained_variance"] = variance
        self.figures["explained_variance"] = torch.stack(explained).mean()
        if self.loss.uses_state:
            rows["state"] = rollout.states[:-1].flatten(0, 1)
        return rows

    def _rows(self, name: str, truncated: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the loss reads of a group, {name: [T, E, A, ...]}, and how much of the targets' variance is explained.

        truncated: int64 [N], t * E + e, frames in which episodes were cut off.
        """
        rollout, critic, target = self.rollout, self.loss.critics[name], self.loss.targets[name].network
        algo, reward = self.lineup.algos[name], rollout.reward[name]
        reward = reward if algo.reward_scale == 1 else algo.reward_scale * reward
        value, final_value = values_of(target, name, rollout, truncated, self.collector.memories["critic"])
        next_value = bootstrap(value, final_value, truncated)
        ends = rollout.terminated, rollout.done
        advantage, returns = gae(reward, value[:-1], next_value, *ends, algo.gamma, algo.lam)
        explained = explained_variance(value[:-1], returns)
        goal, _ = critic.learn_scale(returns, value[:-1])
        target.learn_scale(returns, value[:-1])  # one scale for both, so that the target may follow the weights
        rows = {"observation": rollout.observed[name][:-1], "return": goal}
        if algo.ppo_coef:
            rows |= {"action": rollout.action[name], "log_prob": rollout.log_prob[name]}
            rows["advantage"] = normalize_advantage(advantage, "batch")
        return rows, explained

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """The window for the actors, then shuffled minibatches of its frames for the critics, `epochs` times over."""
        objectives, self.objectives = self.objectives, {}
        yield TensorDict(objectives, batch_size=[self.env.num_envs])
        if self.algo.bootstrap:
            rows = self._critic_rows()  # not before: it may rescale the targets, which the actors' graph goes through
            self.loss.train()
            yield from self._epochs(rows)
            self.loss.eval()
        states = None if self.rollout.states is None else self.rollout.states[:-1]
        self.loss.learn_inputs({name: seen[:-1] for name, seen in self.rollout.observed.items()}, states)
        self.loss.follow()

    def _epochs(self, rows: dict) -> Iterator[TensorDict]:
        B, count = self.minibatch_size, self.batch_frames
        for _ in range(self.algo.epochs):
            if self.algo.minibatch_size is None:
                yield TensorDict(rows, batch_size=[count])
                continue
            order = torch.randperm(count, generator=self.minibatch_generator, device=self.device)
            for index in order[: self.minibatches * B].split(B):
                yield TensorDict(take(rows, index), batch_size=[len(index)])


def require_gradients(env: Callable[..., Env], seed: int, device: str | torch.device) -> None:
    """Raise UserError where an environment cannot have gradients, before anything is compiled."""
    made, settings = getattr(env, "func", env), getattr(env, "keywords", {})
    needs = "algo=shac and apg need gradients through the simulator, which"
    if not (isinstance(made, type) and issubclass(made, VmasEnv)):
        raise UserError(f"env: {needs} VMAS scenarios have (env=vmas/…), {getattr(made, '__name__', made)} has not")
    if torch.device(device).type not in ("cpu", "cuda"):
        raise UserError(f"device={device}: {needs} kernels on a CPU or a GPU of NVIDIA's have (device=cpu or cuda)")
    if settings.get("fast") == "off":
        raise UserError(f"env.fast=off: {needs} kernels have (env.fast=auto)")
    if distributed.world() > 1:
        raise UserError("trainer.strategy: algo=shac and apg train in one process")
    for name, group in cheaply(env, seed, device).groups.items():
        if group.action.kind != "continuous":
            kind, others = group.action.kind, fitting(group.action)
            raise UserError(f"group {name}: {needs} continuous actions have; its own are {kind}, and {others}")
        if group.masks:
            raise UserError(f"group {name}: {needs} groups have whose agents neither die nor act in turn")
