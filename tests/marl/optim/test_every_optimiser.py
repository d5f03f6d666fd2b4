"""All that torch.optim and lr_scheduler hold, by name: what a new version of torch adds is tried here by itself."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from marl.config import compose, conf_tree
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.launch import build
from marl.networks import Linear
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from tests.marl.runs import make_task


def subclasses(module, base) -> list[str]:
    names = [name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, base)]
    return sorted(name for name in names if not name.endswith(base.__name__))


OPTIMISERS = subclasses(torch.optim, torch.optim.Optimizer)
SCHEDULERS = subclasses(lr_scheduler, lr_scheduler.LRScheduler)
NEEDS = {  # the arguments that have no default
    "ChainedScheduler": {"schedulers": [{"name": "ConstantLR"}, {"name": "ExponentialLR", "gamma": 0.9}]},
    "CosineAnnealingLR": {"T_max": "total"},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 2, "cycle_momentum": False},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": "marl.optim.lr_schedule.inverse_square_root"},
    "MultiplicativeLR": {"lr_lambda": "marl.optim.lr_schedule.inverse_square_root"},
    "MultiStepLR": {"milestones": [2, 4]},
    "OneCycleLR": {"max_lr": 1.0, "total_steps": "total"},
    "SequentialLR": {
        "schedulers": [{"name": "ConstantLR"}, {"name": "StepLR", "step_size": 1}],
        "milestones": [3],
    },
    "StepLR": {"step_size": 2},
}


def test_the_lists_are_of_this_torch():
    assert {"Adam", "LBFGS", "Muon", "SGD"} <= set(OPTIMISERS) and len(OPTIMISERS) >= 14
    assert {"LambdaLR", "ReduceLROnPlateau", "SequentialLR"} <= set(SCHEDULERS) and len(SCHEDULERS) >= 15


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_of_torch_trains_and_resumes(name, tmp_path):
    if name == "SparseAdam":
        with pytest.raises(UserError, match="sparse gradients only"):
            OptimizerConfig(name=name).build({"model": nn.Linear(1, 1)})
        return
    lr = {"LBFGS": 1.0, "Adadelta": 1.0, "SGD": 0.05, "ASGD": 0.05}.get(name, 0.01)
    config = OptimizerConfig(name=name, lr=lr, kwargs={"max_iter": 5} if name == "LBFGS" else {})
    batch_size = 160 if name == "LBFGS" else 64  # it searches along a line, which noise misleads
    whole, half, rest = (make_task(epochs=8, batch_size=batch_size) for _ in range(3))
    before = whole.evaluate()["loss"]
    settings = {"progress": "off", "evaluate_every": 0, "checkpoint_every": 0}
    summary = Trainer(**settings).fit(whole, tmp_path / "whole", optimizer=config)
    assert summary["final"]["loss"] < 0.8 * before
    Trainer(**settings, max_iterations=4).fit(half, tmp_path / "half", optimizer=config)
    last = tmp_path / "half" / "checkpoints" / "last.pt"
    Trainer(**settings).fit(rest, tmp_path / "rest", optimizer=config, resume=last)
    for a, b in zip(whole.loss.parameters(), rest.loss.parameters(), strict=True):
        assert torch.equal(a, b)


def test_settings_that_lbfgs_cannot_go_with(tmp_path):
    for settings, words in (({"lr_per_part": {"model": 1.0}}, "one learning rate"), ({}, "non_finite=skip")):
        with pytest.raises(UserError, match=f"LBFGS.*{words}"):
            config = OptimizerConfig(name="LBFGS", **settings)
            Trainer(non_finite="skip").fit(make_task(), tmp_path, optimizer=config)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_changes_the_rate(name):
    optimizer = OptimizerConfig(name="SGD", lr=1.0).build({"model": nn.Linear(1, 1)})
    schedule = ScheduleConfig([{"name": name, **NEEDS.get(name, {})}]).build(optimizer, iterations=8, steps=80)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step("iteration")
        if name == "ReduceLROnPlateau":
            for _ in range(12):
                schedule.observe({"loss": 1.0}, "loss")
    assert len(set(rates)) > 1
    again = ScheduleConfig([{"name": name, **NEEDS.get(name, {})}])
    other = again.build(OptimizerConfig(name="SGD", lr=1.0).build({"model": nn.Linear(1, 1)}), 8, 80)
    other.load_state_dict(schedule.state_dict())
    if name != "ReduceLROnPlateau":
        assert other.scheduler.get_last_lr() == schedule.scheduler.get_last_lr()


@pytest.mark.parametrize("name", ["ChainedScheduler", "LambdaLR"])
def test_a_longer_run_replays_its_schedule(name):
    config = ScheduleConfig([{"name": name, **NEEDS[name]}])
    optimizers = [OptimizerConfig(name="SGD", lr=1.0).build({"model": nn.Linear(1, 1)}) for _ in range(2)]
    first, second = (config.build(optimizer, 8, 80) for optimizer in optimizers)
    for _ in range(5):
        optimizers[0].step()
        first.step("iteration")
    groups = second.replay(first.state_dict())
    assert groups[0]["lr"] == pytest.approx(optimizers[0].param_groups[0]["lr"]) and groups[0]["lr"] < 1


def test_a_function_that_is_not_there_is_one_sentence():
    optimizer = OptimizerConfig(name="SGD").build({"model": nn.Linear(1, 1)})
    config = ScheduleConfig([{"name": "LambdaLR", "lr_lambda": "marl.optim.lr_schedule.inverse_square_rot"}])
    with pytest.raises(UserError, match="lr_lambda=.*did you mean 'inverse_square_root'"):
        config.build(optimizer, 8, 8)


@pytest.mark.parametrize("name", conf_tree.group_options("scheduler"))
def test_every_schedule_of_the_configuration_builds(name):
    config = compose.check(compose.compose([f"scheduler={name}"]))
    schedule = build.part(config["scheduler"])
    optimizer = build.part(config["optimizer"]).build({"model": Linear(2, 1)})
    plan = schedule.build(optimizer, 20, 200, "max")
    optimizer.step()
    plan.step(plan.interval)


def test_plateau_follows_any_logged_figure_and_the_trainers_direction(tmp_path):
    stage = {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.5, "threshold": 1e9, "mode": None}
    stage["threshold_mode"] = "abs"  # nothing is an improvement
    task, optimizer = make_task(epochs=4), OptimizerConfig(lr=0.01)
    trainer = Trainer(progress="off", evaluate_every=2)
    trainer.fit(task, tmp_path / "a", optimizer=optimizer, schedule=ScheduleConfig([stage]))
    assert trainer.schedule.scheduler.mode == "min"
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 2)  # 2 evaluations, the first one counts
    stage["mode"] = "min"
    schedule = ScheduleConfig([stage], monitor="grad_norm")
    trainer = Trainer(progress="off", evaluate_every=2)
    trainer.fit(make_task(epochs=4), tmp_path / "b", optimizer=optimizer, schedule=schedule)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 8)  # 4 iterations
    with pytest.raises(UserError, match="scheduler.monitor='nothing'.*grad_norm"):
        other = ScheduleConfig([stage], monitor="nothing")
        trainer.fit(make_task(epochs=4), tmp_path / "c", optimizer=optimizer, schedule=other)
    with pytest.raises(UserError, match=r"scheduler.stages.0.mode=null: say max or min .*scheduler.stages.0.mode=min"):
        ScheduleConfig([{**stage, "mode": None}], monitor="loss").build(trainer.optimizer, 4, 4)


def test_the_plateau_of_the_documentation_builds():
    page = (conf_tree.CONF.parent / "docs" / "guides" / "toolkit.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| ReduceLROnPlateau"))
    config = compose.check(compose.compose(["algo=mappo", *row.split("`")[1].split()]))
    optimizer = build.part(config["optimizer"]).build({"model": nn.Linear(1, 1)})
    assert build.part(config["scheduler"]).build(optimizer, 4, 4, "max").scheduler.mode == "min"


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR", "SWALR"])
def test_rates_that_a_scheduler_sets_keep_the_ratio_of_the_parts(name):
    settings = {**NEEDS, "SWALR": {"swa_lr": 0.5, "anneal_epochs": 4}}[name]
    config = OptimizerConfig(name="SGD", lr=1.0, lr_per_part={"critic": 0.01})
    optimizer = config.build({"actor": nn.Linear(1, 1), "critic": nn.Linear(1, 1)})
    schedule = ScheduleConfig([{"name": name, **settings}], warmup=2).build(optimizer, iterations=10, steps=80)
    rates = []
    for _ in range(10):
        rates.append([{group["name"]: group["lr"] for group in optimizer.param_groups}[n] for n in ("actor", "critic")])
        optimizer.step()
        schedule.step("iteration")
    assert all(critic == pytest.approx(0.01 * actor) for actor, critic in rates)
    assert len({actor for actor, _ in rates}) > 2


def test_a_list_of_rates_is_taken_as_it_is():
    optimizer = OptimizerConfig("SGD", lr_per_part={"b": 0.1}).build({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    ScheduleConfig([{"name": "OneCycleLR", "max_lr": [0.2, 0.3], "total_steps": 9}]).build(optimizer, 9, 9)
    assert [group["max_lr"] for group in optimizer.param_groups] == [0.2, 0.3]


@pytest.mark.parametrize(
    ("stages", "moves"),
    [
        ([{"name": "CosineAnnealingLR", "T_max": "total"}], False),
        ([{"name": "OneCycleLR", "max_lr": 1.0, "total_steps": "total"}], True),
        ([{"name": "OneCycleLR", "max_lr": 1.0, "total_steps": "total", "cycle_momentum": False}], False),
        ([{"name": "ConstantLR", "length": 3}, {"name": "OneCycleLR", "max_lr": 1.0, "total_steps": "total"}], True),
    ],
)
def test_a_schedule_says_whether_it_moves_betas(stages, moves):
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=0.1)
    assert ScheduleConfig(stages).build(optimizer, 9, 9).moves_betas == moves
    assert not ScheduleConfig().build(optimizer, 9, 9).moves_betas
