"""Steps of the optimiser: parts that thaw, penalties on weights, clipping by value, recomputed activations."""

from functools import partial

import pytest
import torch
from torch import nn

from marl.callbacks.base import Callback
from marl.config import compose
from marl.core.errors import UserError
from marl.data import Digits, Sine
from marl.engine.activation_checkpointing import recompute
from marl.engine.trainer import Trainer
from marl.engine.updater import Updater
from marl.launch import build
from marl.networks import CNN, LSTM, MLP
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig, clip_gradients
from marl.supervised.task import Supervised
from tests.fixtures.runs import TINY, make_run
from tests.marl.runs import make_task, rows, run


class Watch(Callback):
    """Keeps a layer's weight after every iteration."""

    def __init__(self):
        self.seen = []

    def on_iteration(self, trainer, record):
        self.seen.append(trainer.task.loss.model.body[0].weight.detach().clone())


def test_a_cpu_takes_minibatches_one_by_one():
    updater = Trainer(progress="off").build_updater(make_task(), OptimizerConfig(), ScheduleConfig())
    assert updater.device_update is None and not updater.takes_epochs and updater.captured is not None


def test_a_part_thaws_at_its_epoch_and_a_resumed_run_thaws_with_it(tmp_path):
    config = OptimizerConfig(lr=0.01, unfreeze={"model.body": 3})

    def fit(folder, task, resume=None, **settings):
        watch = Watch()
        first = task.loss.model.body[0].weight.detach().clone()
        trainer = Trainer(progress="off", checkpoint_every=0, **settings)
        trainer.fit(task, tmp_path / folder, optimizer=config, callbacks=[watch], resume=resume)
        return first, watch.seen

    before, weights = fit("whole", make_task(epochs=5))
    assert all(torch.equal(before, weight) for weight in weights[:3])
    assert not torch.equal(before, weights[3]) and not torch.equal(weights[3], weights[4])
    fit("half", make_task(epochs=5), max_iterations=2)
    last = tmp_path / "half" / "checkpoints" / "last.pt"
    _, rest = fit("rest", make_task(epochs=5), resume=last)
    assert len(rest) == 3 and torch.equal(rest[-1], weights[-1])


def test_what_is_inside_of_a_part_freezes_and_has_its_own_rate():
    model = MLP(3, 2, hidden=[4])
    config = OptimizerConfig(freeze=["model.body"], lr_per_part={"model.head.bias": 0.5}, lr=0.1)
    optimizer = config.build({"model": model})
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"model": 0.1, "model.head.bias": 0.5}
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    with pytest.raises(UserError, match="no part 'model.tail'; parts are model.body, model.head"):
        OptimizerConfig(freeze=["model.tail"]).build({"model": model})


def test_an_actor_thaws_while_its_critic_learns(tmp_path):
    class Actor(Callback):
        def __init__(self):
            self.seen = []

        def on_iteration(self, trainer, record):
            parts = trainer.task.parts()
            self.seen.append([[p.detach().clone() for p in parts[name].parameters()] for name in ("actor", "critic")])

    config = compose.check(compose.compose([*TINY, "frames=120", "optimizer.unfreeze={actor: 2}"]))
    watch, task = Actor(), build.build_task(config)
    setup = build.build_setup(config)
    build.build_trainer(config).fit(task, tmp_path, **{**setup, "callbacks": [watch], "loggers": []})
    actors, critics = zip(*watch.seen, strict=True)

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(actors[0], actors[1]) and not same(actors[1], actors[2]) and not same(critics[0], critics[1])
    with pytest.raises(UserError, match="optimizer.unfreeze=.*nothing would train"):
        OptimizerConfig(unfreeze={"actor": 1, "critic": 1}).build(task.parts())


def test_l1_adds_the_sign_and_spares_biases():
    model = nn.Linear(3, 1)
    optimizer = OptimizerConfig(name="SGD", lr=1.0, l1=0.25).build({"model": model})
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] - 0.5 - 0.25 * before[0].sign())
    torch.testing.assert_close(model.bias.detach(), before[1] - 0.5)


def test_l1_makes_useless_weights_small_and_l2_shrinks_all(tmp_path):
    from marl.data import LinearRegression
    from marl.networks import Linear

    data = LinearRegression(features=4)
    data.weight[:2] = 0.0
    for rows_ in (data.train, data.validation, data.test):
        rows_["y"] = rows_["x"] @ data.weight.unsqueeze(1) + data.bias
    weights = {}
    for name, settings in {"none": {}, "l1": {"l1": 0.1}, "l2": {"weight_decay": 1.0}}.items():
        torch.manual_seed(0)
        task = Supervised(data, Linear, nn.MSELoss(), epochs=60, batch_size=700)
        Trainer(progress="off").fit(task, tmp_path / name, optimizer=OptimizerConfig("SGD", 0.1, **settings))
        weights[name] = task.loss.model.head.weight.detach().flatten()
    assert weights["l1"][:2].abs().max() < 0.02 and (weights["none"] - data.weight).abs().max() < 1e-3
    # The optimum of squared error + l1·|w| lies l1 / 2 nearer to zero, that of Adam's and SGD's decay shrinks all.
    torch.testing.assert_close(weights["l1"][2:].abs(), data.weight[2:].abs() - 0.05, atol=0.02, rtol=0)
    assert (weights["l2"][2:].abs() < 0.8 * data.weight[2:].abs()).all()


def test_clipping_by_value_equals_torch_and_reports_the_norm_before(tmp_path):
    models = [nn.Linear(3, 1), nn.Linear(3, 1)]
    for model in models:
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, -0.2, -4.0]]), torch.tensor([0.1])
    norm = clip_gradients(list(models[0].parameters()), None, 0.5)
    nn.utils.clip_grad_value_(models[1].parameters(), 0.5)
    assert norm.item() == pytest.approx((9 + 0.04 + 16 + 0.01) ** 0.5)
    assert torch.equal(models[0].weight.grad, models[1].weight.grad)
    clip_gradients(list(models[0].parameters()), 0.1, 0.5)
    assert torch.cat([p.grad.flatten() for p in models[0].parameters()]).norm().item() == pytest.approx(0.1, rel=1e-3)
    run(tmp_path, task=make_task(epochs=1, batch_size=160), clip_value=1e-6, grad_clip=None)
    assert float(rows(tmp_path)[0]["grad_norm"]) > 1e-3


@pytest.mark.parametrize("network", [partial(MLP, hidden=[32, 32], dropout=0.3), partial(CNN, hidden=[16])])
def test_recomputed_activations_give_the_same_gradients_and_keep_less(network):
    x, bytes_kept, gradients = torch.randn(64, 1, 8, 8), [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = nn.ModuleDict({"net": network((1, 8, 8), 3)})
        if enabled:
            recompute(net)
        torch.manual_seed(1)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = net["net"](x).square().sum()
        loss.backward()
        bytes_kept.append(sum(sizes))
        gradients.append([p.grad for p in net.parameters()])
    assert bytes_kept[1] < 0.7 * bytes_kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    with pytest.raises(UserError, match="BatchNorm"):
        recompute(nn.ModuleDict({"net": MLP(3, 1, batch_norm=True)}))


def test_figures_of_evaluations_that_a_schedule_waits_for_are_known_before_a_run():
    build = Trainer(progress="off").build_updater
    plateau: dict = {"stages": [{"name": "ReduceLROnPlateau", "mode": "min"}]}
    with pytest.raises(UserError, match="scheduler.monitor='eval/los': evaluation has .*did you mean 'eval/loss'"):
        build(make_task(), OptimizerConfig(), ScheduleConfig(**plateau, monitor="eval/los"))
    updater = build(make_task(), OptimizerConfig(), ScheduleConfig(**plateau, monitor="eval/loss"))
    assert updater.schedule.monitor == "eval/loss"


def test_agents_have_no_data_for_statistics_of_an_swa(tmp_path):
    norm = ["network.batch_norm=true", "trainer.average=swa"]
    with pytest.raises(UserError, match="trainer.average=swa: BatchNorm.*use network.batch_norm=false or trainer.aver"):
        make_run(tmp_path, *norm)


def test_settings_without_effect_are_refused_before_a_run(tmp_path):
    lstm = Supervised(Digits(), LSTM, nn.CrossEntropyLoss(), 2)
    for task, settings, optimizer, words in (
        (lstm, {"recompute": True}, {}, "trainer.recompute=true: .* no stack of layers"),
        (None, {"average_from": 0.5}, {}, "trainer.average_from=0.5: nothing is averaged; trainer.average=ema or swa"),
        (None, {"average_decay": 0.9}, {}, "trainer.average_decay=0.9: nothing is averaged"),
        (None, {"average": "swa", "average_decay": 0.9}, {}, "trainer.average_decay=0.9: swa is a plain mean"),
        (None, {}, {"unfreeze": {"model.body": 2}}, r"optimizer.unfreeze=\{model.body: 2\}: the run ends before"),
    ):
        with pytest.raises(UserError, match=words):
            run(tmp_path, task=task or make_task(epochs=2), **settings, optimizer=OptimizerConfig(**optimizer))
    assert not list(tmp_path.iterdir())
    run(tmp_path, task=make_task(epochs=2), optimizer=OptimizerConfig(unfreeze={"model.body": 1}))


def test_recomputing_serves_supervised_runs_and_agents(tmp_path):
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        task = Supervised(Sine(samples=200), partial(MLP, hidden=[16], layer_norm=True), nn.MSELoss(), 3, seed=3)
        summary, _ = run(tmp_path / str(enabled), task=task, recompute=enabled)
        losses.append(summary["final"]["loss"])
    assert losses[0] == losses[1]
    runs = [make_run(tmp_path / f"agents {enabled}", f"trainer.recompute={enabled}") for enabled in (True, False)]
    for a, b in zip(*map(rows, runs), strict=True):
        assert float(a["value_loss"]) == pytest.approx(float(b["value_loss"]), rel=1e-4)


class Scaled(Updater):
    """Scales its loss as fp16 does, in float32: by a power of two, which changes no bit."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


def test_a_scaled_loss_steps_as_a_plain_one_and_an_overflow_is_left_out(tmp_path):
    weights = []
    for kind in (Updater, Scaled):
        task = make_task(epochs=3)
        trainer = Trainer(progress="off", capture=False)  # a replay has no part in scaling
        updater = kind(task, OptimizerConfig(lr=0.01), ScheduleConfig(), trainer.update_config)
        trainer.fit(task, tmp_path / kind.__name__, updater=updater)
        weights.append([p.detach() for p in task.loss.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert updater.scaler.get_scale() == 1024.0
    task = make_task(epochs=3)
    updater = Scaled(task, OptimizerConfig(), ScheduleConfig(), trainer.update_config)
    before = [p.detach().clone() for p in task.loss.parameters()]
    batch = next(task.batches(0))
    batch["y"] = torch.full_like(batch["y"], 1e37)  # its error is finite, its scaled gradient is not
    updater.update(batch)
    assert updater.scaler.get_scale() == 512.0 and updater.metrics.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, task.loss.parameters(), strict=True))
