"""What `RLTask` gives to any reinforcement-learning task: here one with an algorithm that is no PPO at all."""

from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDict
from torch import nn

from agents.algorithms.base import Algorithm
from agents.algorithms.ppo import PPO
from agents.tasks.rl_task import RLTask
from envs.vmas.env import VmasEnv
from marl.engine.trainer import Trainer
from marl.networks import MLP
from marl.optim.optimizer_config import OptimizerConfig


class ReinforceLoss(nn.Module):
    """-log pi(a|o) R, R being the reward of the step."""

    def __init__(self, actors, critics, config, configs=None, partly=()):
        super().__init__()
        self.actors, self.critics = nn.ModuleDict(actors), nn.ModuleDict(critics)

    def forward(self, batch):
        losses = []
        for name, actor in self.actors.items():
            log_prob = actor.evaluate(batch[name, "observation"], batch[name, "action"])
            losses.append(-(log_prob * batch["next", name, "reward"].squeeze(-1)).mean())
        return {"loss": torch.stack(losses).sum()}


@dataclass(frozen=True, kw_only=True)
class Reinforce(Algorithm):
    steps: int = 5

    @property
    def loss_class(self):
        return ReinforceLoss


class OneBatch(RLTask):
    name, steps_per_iteration = "reinforce", 1

    def __init__(self, env, algo, network, frames):
        super().__init__(env, algo, algo.steps, frames, 0, "cpu", 4, True, None)
        self.build_loss(network)
        self.build_collector(algo.steps)

    def collect(self, iteration):
        self.gather(iteration)

    def batches(self, iteration):
        yield TensorDict(self.rollout.data.flatten(0, 1).to_dict(), batch_size=[self.batch_frames])


def make():
    torch.manual_seed(0)
    env = partial(VmasEnv, "balance", num_envs=6, max_steps=8)
    return OneBatch(env, Reinforce(critic="local"), partial(MLP, hidden=[8]), frames=30 * 4)


def test_a_task_of_another_kind_trains_is_judged_and_resumes_bitwise_identically(tmp_path):
    ends = []
    for folder, limits in (("a", [4]), ("b", [2, 4])):
        for limit in limits:
            task, trainer = make(), Trainer(progress="off", checkpoint_every=1, max_iterations=limit)
            last = tmp_path / folder / "checkpoints" / "last.pt"
            resume = last if last.exists() else None
            summary = trainer.fit(task, tmp_path / folder, optimizer=OptimizerConfig(lr=1e-2), resume=resume)
        ends.append(torch.cat([p.detach().flatten() for p in task.loss.actors.parameters()]))
        assert summary["final"]["episode_return"]["episodes"] == 4
    assert torch.equal(*ends)
    assert {"episode_return", "episode_length", "episodes"} <= set(task.metrics())


def test_what_a_resumed_run_keeps_is_what_shapes_the_networks_and_the_algorithms_own():
    assert Reinforce.keeps_on_resume("prune_state") and not Reinforce.keeps_on_resume("gamma")
    assert not Reinforce.keeps_on_resume("rollout_steps") and PPO.keeps_on_resume("rollout_steps")
    assert Reinforce.divided == () and Reinforce.common == ("time_limit",) and "minibatch_size" in PPO.divided
