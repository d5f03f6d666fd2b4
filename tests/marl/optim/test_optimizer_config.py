"""Optimisers and schedules by name: groups, frozen parts, warm-up, chains, clipping."""

import pytest
import torch
from torch import nn

from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig, clip_gradients


def parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"actor": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), "critic": nn.Linear(3, 1)}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "Adadelta", "Rprop"])
def test_any_optimiser_of_torch_steps(name):
    model = parts()
    optimizer = OptimizerConfig(name=name, lr=0.1).build(model)
    before = model["critic"].weight.clone()
    model["critic"](torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model["critic"].weight)


def test_decay_spares_bias_and_norm_and_parts_have_their_own_rate():
    model = parts()
    optimizer = OptimizerConfig(name="AdamW", lr=1.0, weight_decay=0.1, lr_per_part={"critic": 0.5}).build(model)
    groups = {(g["name"], g["weight_decay"]): g for g in optimizer.param_groups}
    assert {key: group["lr"] for key, group in groups.items()} == {
        ("actor", 0.1): 1.0, ("actor", 0.0): 1.0, ("critic", 0.1): 0.5, ("critic", 0.0): 0.5
    }  # fmt: skip
    assert [p.shape for p in groups["actor", 0.1]["params"]] == [(4, 3)]
    assert len(groups["actor", 0.0]["params"]) == 3  # the linear bias, the norm's weight and bias


def test_frozen_part_stays():
    model = parts()
    optimizer = OptimizerConfig(freeze=["actor"]).build(model)
    assert {group["name"] for group in optimizer.param_groups} == {"critic"}
    assert not any(p.requires_grad for p in model["actor"].parameters())


def test_a_part_has_its_own_settings_as_if_it_had_its_own_optimiser():
    part = {"eps": 0.1, "weight_decay": 0.5, "betas": [0.5, 0.6], "lr": 0.03}
    model, other = parts(), parts()
    config = OptimizerConfig(lr=0.01, kwargs={"eps": 1e-5}, per_part={"critic": part}, no_decay_on_bias_and_norm=False)
    optimizer = config.build(model)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {key: groups["critic"][key] for key in part} == part
    assert {key: groups["actor"][key] for key in ("eps", "weight_decay", "lr")} == {
        "eps": 1e-5, "weight_decay": 0.0, "lr": 0.01
    }  # fmt: skip
    apart = [
        torch.optim.Adam(other["actor"].parameters(), lr=0.01, eps=1e-5),
        torch.optim.Adam(other["critic"].parameters(), **part),
    ]
    for net, optimizers in ((model, [optimizer]), (other, apart)):
        for _ in range(3):
            loss = net["actor"](torch.ones(2, 3)).square().sum() + net["critic"](torch.ones(2, 3)).square().sum()
            loss.backward()
            for each in optimizers:
                each.step()
                each.zero_grad()
    for name in model:
        for a, b in zip(model[name].parameters(), other[name].parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_settings_of_parts_and_rates_of_parts_go_together():
    per_part = {"critic": {"weight_decay": 0.5}, "actor.0": {"lr": 0.2}, "actor.0.weight": {"eps": 0.1}}
    optimizer = OptimizerConfig(lr_per_part={"critic.weight": 0.3}, per_part=per_part).build(parts())
    by_group = {(g["name"], g["weight_decay"]): (g["lr"], g["eps"]) for g in optimizer.param_groups}
    assert by_group == {
        ("actor", 0.0): (1e-3, 1e-8),
        ("actor.0", 0.0): (0.2, 1e-8),
        ("actor.0.weight", 0.0): (0.2, 0.1),
        ("critic", 0.0): (1e-3, 1e-8),  # the bias, which decay spares
        ("critic.weight", 0.5): (0.3, 1e-8),
    }


def test_muon_keeps_its_momentum_from_the_adamw_beside_it():
    optimizer = OptimizerConfig("Muon", per_part={"critic": {"momentum": 0.5}}).build(parts())
    assert [g.get("momentum") for g in optimizer.param_groups if g["name"] == "critic"] == [0.5, None]


def test_a_critic_has_its_own_eps():
    settings = ["algo=mappo", "env.fast=off", "optimizer.per_part={critic: {eps: 1e-3, betas: [0.9, 0.95]}}"]
    config = compose.check(compose.compose(settings))
    optimizer = build.part(config["optimizer"]).build(build.build_task(config).parts())
    assert {g["name"]: (g["eps"], list(g["betas"])) for g in optimizer.param_groups} == {
        "actor": (1e-5, [0.9, 0.999]), "critic": (1e-3, [0.9, 0.95])
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dict(name="Adamm"), "optimizer.name='Adamm'"),
        (dict(freeze=["body"]), "no part 'body'"),
        (dict(lr_per_part={"body": 1.0}), "no part 'body'"),
        (dict(kwargs={"momentun": 0.9}), "momentun"),
        (dict(kwargs={"lr": 0.1}), "^optimizer.kwargs.lr=0.1: is set by optimizer.lr$"),
        (dict(kwargs={"weight_decay": 0.1}), "^optimizer.kwargs.weight_decay=0.1: is set by optimizer.weight_decay$"),
        (dict(kwargs={"params": []}), "is set by optimizer.freeze"),
        (dict(name="SGD", kwargs={"eps": 1e-5}), "eps=1e-05: SGD has none.* momentum,.*~optimizer.kwargs.eps takes"),
        (dict(name="Adafactor", kwargs={"eps": 1e-5}), "Adafactor refuses .*~optimizer.kwargs.KEY"),
        (dict(name="Rprop", weight_decay=0.01), "Rprop has none; write optimizer.weight_decay=0"),
        (dict(freeze=["actor", "critic"]), "nothing is left"),
        (dict(per_part={"body": {"eps": 1.0}}), "optimizer.per_part: no part 'body'"),
        (dict(per_part={"critic": {"ep": 1.0}}), "per_part.critic.ep=1.0: Adam has none.*'eps'.*lr, betas, eps, "),
        (dict(per_part={"critic": {"fused": True}}), "per_part.critic.fused=True: Adam has none"),
        (dict(per_part={"critic": {"eps": -1.0}}), "optimizer.per_part.critic: Adam refuses .*Invalid epsilon"),
        (dict(per_part={"critic": {"betas": 0.9}}), "optimizer.per_part.critic: Adam refuses"),
        (dict(per_part={"critic": {"lr": 1.0}}, lr_per_part={"critic": 0.1}), "lr=1.0: optimizer.lr_per_part"),
        (dict(name="LBFGS", per_part={"critic": {"max_iter": 3}}), "LBFGS.*no per_part"),
        (
            dict(name="LBFGS", kwargs={"line_search_fn": "wolfe"}),
            "LBFGS cannot make its steps.*'wolfe'.*'strong_wolfe'",
        ),
        (dict(name="LBFGS", kwargs={"history_size": 0}), "LBFGS cannot make its steps.*'history_size': 0.*empty list"),
        (dict(kwargs={"differentiable": True}), "Adam refuses.*'differentiable': True.*`fused` does not support"),
    ],
)
def test_bad_optimiser_is_one_sentence(config, words):
    with pytest.raises(UserError, match=words):
        OptimizerConfig(**config).build(parts())


def rates(config: ScheduleConfig, n: int) -> list[float]:
    optimizer = OptimizerConfig(name="SGD", lr=1.0).build({"model": nn.Linear(1, 1)})
    schedule, drawn_rates = config.build(optimizer, iterations=n, steps=10 * n), []
    for _ in range(n):
        drawn_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step("iteration")
    return drawn_rates


def test_linear_decay_ends_at_zero_and_total_is_the_run():
    stage = {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": "total"}
    assert rates(ScheduleConfig([stage]), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_warmup_then_two_stages():
    stages = [
        {"name": "ConstantLR", "factor": 1.0, "length": 2},
        {"name": "CosineAnnealingLR", "T_max": "total"},
    ]
    of_iterations = rates(ScheduleConfig(stages, warmup=2), 8)
    cosine = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / 4)).item()) for i in range(4)]
    assert of_iterations == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, *cosine])


def test_interval_step_ignores_iterations():
    config = ScheduleConfig([{"name": "StepLR", "step_size": 1, "gamma": 0.1}], interval="step")
    assert rates(config, 3) == [1.0, 1.0, 1.0]


def test_plateau_follows_the_evaluation():
    optimizer = OptimizerConfig(name="SGD", lr=1.0).build({"model": nn.Linear(1, 1)})
    stage = {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.5}
    schedule = ScheduleConfig([stage]).build(optimizer, 10, 10)
    for loss in (1.0, 0.5, 0.7):
        schedule.step("iteration")
        schedule.observe({"loss": loss}, "loss")
    assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(UserError, match="scheduler.monitor"):
        schedule.observe({"accuracy": 1.0}, "loss")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ScheduleConfig([{"name": "Linear"}]), "Linear"),
        (ScheduleConfig([{"gamma": 1}]), "needs a name"),
        (ScheduleConfig([{"name": "StepLR"}]), "step_size"),
        (ScheduleConfig([{"name": "ConstantLR"}, {"name": "ConstantLR"}]), "length"),
        (ScheduleConfig([{"name": "ReduceLROnPlateau"}], warmup=3), "stands alone"),
        (ScheduleConfig([{"name": "ExponentialLR", "gamma": "abc"}]), "^scheduler.stages.0.gamma=abc: must be a num"),
        (ScheduleConfig([{"name": "StepLR", "step_size": 0}]), "StepLR cannot make its steps.*zero"),
        (ScheduleConfig([{"name": "MultiStepLR", "milestones": [3], "gamma": "abc"}]), "cannot make its steps.*'abc'"),
        (ScheduleConfig([{"name": "CyclicLR", "base_lr": 0.1, "max_lr": 1.0, "step_size_up": 0}]), "refuses.*zero"),
        (ScheduleConfig([{"name": "OneCycleLR", "max_lr": 1.0, "total_steps": 5}]), "cannot make its steps.*6"),
        (
            ScheduleConfig([{"name": "OneCycleLR", "max_lr": 1.0, "total_steps": 1500, "length": 2000}]),
            "OneCycleLR cannot make its steps.*over after 1500 scheduler steps, and the stage has 2000",
        ),
        (
            ScheduleConfig([{"name": "ChainedScheduler", "schedulers": [{"name": "ExponentialLR", "gamma": "a"}]}]),
            "^scheduler.stages.0.schedulers.0.gamma=a: must be a number",
        ),
    ],
)
def test_bad_schedule_is_one_sentence(config, words):
    optimizer = OptimizerConfig(name="SGD", lr=1.0).build({"model": nn.Linear(1, 1)})
    with pytest.raises(UserError, match=words):
        config.build(optimizer, 10, 10)


def test_clipping_equals_torch():
    ours, theirs = parts()["critic"], parts()["critic"]
    for model in (ours, theirs):
        (model(torch.ones(1, 3)) * 100).sum().backward()
    norm = clip_gradients(list(ours.parameters()), 0.5)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
