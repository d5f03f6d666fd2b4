"""Recorded losses: replays equal the loss itself bitwise, and what could change unseen is refused or found."""

import warnings

import pytest
import torch
from torch import nn

from marl.capture.captured_loss import CapturedLoss
from marl.config import compose
from marl.engine.updater import UpdateConfig, Updater
from marl.launch import build
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig

SMALL = ["trainer.progress=off", "trainer.evaluate_every=0", "trainer.checkpoint_every=0", "logger=csv"]
SIMULATED = ["env.num_envs=6", "env.max_steps=20", "env.fast=off", *SMALL]
PPO = ["algo=mappo", *SIMULATED, "algo.rollout_steps=20", "algo.minibatch_size=30", "frames=360",
       "task.eval_episodes=2", "network.hidden=[16]"]  # fmt: skip
REPLAYED = [*SIMULATED, "algo.rollout_steps=20", "algo.updates=12", "algo.minibatch_size=16",
            "algo.buffer_frames=960", "algo.prefill=0", "frames=360", "task.eval_episodes=2",
            "network.hidden=[16]"]  # fmt: skip
CASES = {
    "soft_actor_critic": ["algo=masac", *REPLAYED],
    "deterministic_gradients": ["algo=maddpg", "algo.twin=true", "algo.policy_every=2", *REPLAYED],
    "mixed_values": ["algo=qmix", "env.continuous_actions=false", *REPLAYED],
    "plain": PPO,
    "draws": [*PPO, "algo.entropy_coef=0.01", "algo.entropy_schedule=linear", "algo.clip_schedule=linear"],
    "discrete": [*PPO, "algo.critic=local", "env=vmas/mpe/simple_spread", "env.continuous_actions=false"],
    "normalised": [*PPO, "algo.value_norm=popart", "algo.normalize_observation=true", "algo.value_clip=0.2"],
    "in_turns": [*PPO, "algo.update=sequential", "algo.share_actor=separate"],
    "parts": [
        "experiment=picture_search",
        "frames=8192",
        "task.eval_episodes=2",
        "algo.normalize_observation=true",
        "env.size=4",
        *SMALL,
    ],
    "memory": ["experiment=memory", "frames=2048", "network.hidden=8", "task.eval_episodes=2", *SMALL],
    "dropout": ["experiment=digits", "epochs=1", "network.dropout=0.1", *SMALL],
    "convolutions": ["experiment=digits_cnn", "epochs=1", *SMALL],
}


def trained(folder, overrides, **setup):
    config = compose.check(compose.compose(overrides))
    trainer, task = build.build_trainer(config), build.build_task(config)
    trainer.fit(task, folder, **build.build_setup(config), **setup)
    return trainer, task.loss.state_dict()


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_training_is_the_same_to_the_bit(tmp_path, overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_replays, weights = trained(tmp_path / "a", overrides)
    without, expected = trained(tmp_path / "b", [*overrides, "trainer.capture=false"])
    assert without.updater.captured is None
    replayed = with_replays.updater.captured.replayed
    assert not replayed.why and sum(graph.runs for graph in replayed.graphs.values()) > 5
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    a, b = (trainer.optimizer.state_dict()["state"] for trainer in (with_replays, without))
    assert all(torch.equal(a[i][name], b[i][name]) for i in b for name in b[i])


def test_networks_of_hidden_state_are_left_to_torch_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer, weights = trained(tmp_path / "a", ["experiment=digits_lstm", "epochs=1", *SMALL])
    expected = trained(tmp_path / "b", ["experiment=digits_lstm", "epochs=1", "trainer.capture=false", *SMALL])[1]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


class Loss(nn.Module):
    """A small loss; `how` adds what a recording must notice."""

    def __init__(self, how=""):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.how, self.factor = nn.Linear(3, 2), how, 1.0
        self.register_buffer("count", torch.zeros(()))

    def capture_key(self):
        return (self.training,)

    def forward(self, batch):
        out = self.layer(batch["x"]) * self.factor
        sums = torch.zeros(4).scatter_add_(0, batch["to"], out.sum(-1))  # a constant that is written to
        if self.how == "buffer":
            self.count += 1
        if self.how == "host" and out.sum().item() > 1e6:
            out = out * 0
        if self.how == "generator":
            out = out + torch.randn(2, generator=torch.Generator().manual_seed(1))
        loss = out.square().mean() + sums.abs().sum()
        return {"loss": loss, "out": out.detach()}


def batches(count, rows=5):
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(rows, 3, generator=generator), "to": torch.arange(rows) % 4} for _ in range(count)]


def gradients(loss, batch):
    loss.zero_grad()
    outputs = loss(batch)
    outputs["loss"].backward()
    return [outputs["loss"].detach(), *[p.grad.clone() for p in loss.parameters()]]


def test_replays_follow_batches_weights_and_shapes():
    loss = Loss()
    capture = CapturedLoss(loss)
    for i, batch in enumerate(batches(12) + batches(12, rows=7) + batches(4)):
        if i == 8:
            loss.load_state_dict({name: value + 1 for name, value in loss.state_dict().items()})
        expected = gradients(loss, batch)
        loss.zero_grad()
        outputs = capture(batch)
        assert all(map(torch.equal, [outputs["loss"], *[p.grad for p in loss.parameters()]], expected))
        for p in loss.parameters():
            p.grad.mul_(3)  # as clipping does
        results = [result for graph in capture.replayed.graphs.values() for result in graph.results]
        assert outputs["loss"].data_ptr() not in [result.data_ptr() for result in results]
    assert [graph.runs for graph in capture.replayed.graphs.values()] == [13, 9]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("buffer", "writes to a parameter or buffer"),
        ("host", "brings a number to the host"),
        ("generator", "draws from a generator of its own"),
        ("hook", "hooks"),
    ],
)
def test_what_cannot_be_replayed_is_computed_eagerly(how, why):
    loss, other = Loss(how), Loss(how)
    if how == "hook":
        loss.layer.register_forward_hook(lambda *_: None)
    capture, state = CapturedLoss(loss), torch.get_rng_state()
    for batch in batches(6):
        outputs, expected = capture(batch), gradients(other, batch)
        assert all(map(torch.equal, [outputs["loss"], *[p.grad for p in loss.parameters()]], expected))
    assert why in capture.replayed.why and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loss.count, other.count)


def test_a_state_that_the_key_does_not_show_is_found():
    loss = Loss()
    capture = CapturedLoss(loss)
    for batch in batches(6):
        capture(batch)
    loss.factor = 2.0
    capture(batch)  # the 4th replay, not held to the loss
    expected = gradients(loss, batch)
    with pytest.warns(UserWarning, match="Loss is not replayed from now on"):
        first = capture(batch)
    assert torch.equal(first["loss"], expected[0]) and capture.replayed.why
    for outputs in (first, capture(batch)):
        assert all(map(torch.equal, [outputs["loss"], *[p.grad for p in loss.parameters()]], expected))


def test_only_known_losses_are_recorded(tmp_path):
    config = compose.check(compose.compose(PPO))
    task = build.build_task(config)
    assert Updater(task, OptimizerConfig(), ScheduleConfig(), UpdateConfig()).captured is not None

    class Mine(type(task.loss)):
        """May depend on more than the key of its base says."""

    for change in ("accumulate", "precision", "class", "batch_norm"):
        config = compose.check(compose.compose([*PPO, *{"batch_norm": ["network.batch_norm=true"]}.get(change, [])]))
        task = build.build_task(config)
        if change == "class":
            task.loss.__class__ = Mine
        settings = {"accumulate": {"accumulate": 2}, "precision": {"precision": "bf16"}}.get(change, {})
        updater = Updater(task, OptimizerConfig(), ScheduleConfig(), UpdateConfig(**settings))
        assert updater.captured is None, change
