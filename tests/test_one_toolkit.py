"""One toolkit: the same network, optimiser and schedule of one configuration make and train models and agents."""

import pytest
import torch

from agents.tasks.on_policy import OnPolicy
from marl.config import compose
from marl.data import Digits, Sine
from marl.engine.updater import Updater
from marl.launch import build
from marl.losses.objectives import CrossEntropy
from marl.networks import MLP
from marl.supervised.task import Supervised
from tests.fixtures.runs import TINY

ONE = ["network=mlp", "network.hidden=[32,32]", "optimizer=adamw", "optimizer.lr=0.005", "scheduler=cosine"]


class Watched(Updater):
    """Keeps the learning rate of every step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.learning_rates = []

    def step(self):
        self.learning_rates.append(self.optimizer.param_groups[0]["lr"])
        super().step()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{name: (its MLP, figures before, figures after, learning rates)}: a classifier, a regressor, actor and critic."""
    config = compose.check(compose.compose([*TINY, *ONE, "frames=3600", "env.num_envs=24", "algo.minibatch_size=120"]))
    torch.manual_seed(0)
    network = build.part(config["network"])  # one object makes all four
    tasks = {
        "classifier": Supervised(Digits(), network, CrossEntropy(), epochs=10),
        "regressor": Supervised(Sine(), network, torch.nn.MSELoss(), epochs=10),
        "agents": OnPolicy(build.part(config["env"]), build.part(config["algo"]), network, frames=3600,
                           eval_episodes=8),
    }  # fmt: skip
    by_name = {}
    for name, task in tasks.items():
        setup = build.build_setup(config)  # one optimiser and schedule configuration trains all four
        trainer = build.build_trainer({"trainer": {**config["trainer"], "threads": None}})
        updater = Watched(task, setup.pop("optimizer"), setup.pop("schedule"), trainer.update_config)
        weights = {part: [p.detach().clone() for p in module.parameters()] for part, module in task.parts().items()}
        before = task.evaluate() if isinstance(task, Supervised) else {}
        trainer.fit(task, tmp_path_factory.mktemp(name), updater=updater, **{**setup, "loggers": []})
        by_name[name] = task, before, trainer, weights, updater.learning_rates
    return by_name


def test_one_object_makes_classifier_regressor_actor_and_critic(trained):
    agents = trained["agents"][0].loss
    networks = [
        trained["classifier"][0].loss.model,
        trained["regressor"][0].loss.model,
        agents.actors["agents"].network.networks[0],
        agents.critics["agents"].network,
    ]
    assert [type(net) for net in networks] == [MLP] * 4
    assert [[layer.out_features for layer in net.body[::2]] for net in networks] == [[32, 32]] * 4


@pytest.mark.parametrize(("name", "metric"), [("classifier", "loss"), ("regressor", "loss")])
def test_models_learn(trained, name, metric):
    _, before, trainer, _, _ = trained[name]
    assert trainer.evaluation[metric] < 0.5 * before[metric]


def test_actor_and_critic_learn(trained):
    _, _, trainer, before, _ = trained["agents"]
    for part, module in trainer.task.parts().items():
        moved = [not torch.equal(a, b) for a, b in zip(before[part], module.parameters(), strict=True)]
        assert all(moved), part
    assert trainer.metrics.latest["explained_variance"] > 0.1


def test_all_follow_one_schedule(trained):
    for _, _, trainer, _, rates in trained.values():
        assert type(trainer.optimizer) is torch.optim.AdamW
        assert rates[0] == pytest.approx(0.005 / 3) and max(rates) == pytest.approx(0.005)  # two steps of warm-up
        assert trainer.optimizer.param_groups[0]["lr"] < 0.001
