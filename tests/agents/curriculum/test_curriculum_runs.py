"""Training under a curriculum: stages, teams of changing size, exact resuming, and what is refused."""

import csv
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from agents.algorithms.ppo import PPO
from agents.tasks.on_policy import OnPolicy
from envs.vmas.env import VmasEnv
from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file, resume
from marl.config import compose
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.launch import build
from marl.networks import MLP
from marl.networks.team import Attention, DeepSets
from marl.optim.optimizer_config import OptimizerConfig
from tests.fixtures.runs import make_run

APPROACH = "tests.fixtures.approach.Approach"
REACH = {"env": {"scenario_kwargs": {"reach": {0: 0.25, 0.5: 1.0}}}}
WAITING = {"figure": "eval/episode_return", "above": [-99.0], "values": [0.25, 1.0]}
WAITS = {"env": {"scenario_kwargs": {"reach": WAITING}}}
TEAMS = {"env": {"scenario_kwargs": {"n_agents": {"draw": [1, 2, 3]}}}}
BOTH = {"env": {"scenario_kwargs": {**REACH["env"]["scenario_kwargs"], **TEAMS["env"]["scenario_kwargs"]}}}


def make(curriculum, network=MLP, frames=240, algo=None, **env) -> OnPolicy:
    torch.manual_seed(0)
    kwargs = {"n_agents": 2, **env.pop("scenario_kwargs", {})}
    factory = partial(VmasEnv, scenario=APPROACH, num_envs=4, max_steps=6, fast="off", scenario_kwargs=kwargs, **env)
    settings = PPO(rollout_steps=10, minibatch_size=20, epochs=2, **{"critic": "local", **(algo or {})})
    body = partial(network, hidden=[8]) if network is MLP else network
    critic = partial(MLP, hidden=[8]) if settings.critic == "local" else None
    return OnPolicy(factory, settings, body, critic, frames=frames, eval_episodes=3, curriculum=curriculum)


class Records(Callback):
    """Keeps the records; stops after `last` iterations as a killed process would."""

    def __init__(self, last=None):
        self.last, self.records = last, []

    def on_iteration(self, trainer, record):
        self.records.append({k: v for k, v in record.items() if "second" not in k and "per" not in k})
        if trainer.iteration == self.last:
            trainer.save("last")
            raise KeyboardInterrupt


def fit(task, folder, last=None, resume=None):
    records = Records(last)
    trainer = Trainer(progress="off", evaluate_every=1)
    trainer.fit(task, folder, optimizer=OptimizerConfig(lr=1e-3), callbacks=[records], resume=resume)
    return trainer, records.records


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_stage_is_another_environment_with_new_episodes_and_evaluations_stay(capsys, tmp_path):
    task = make(REACH)
    first, asked = task.env, task.make_env
    _, records = fit(task, tmp_path)
    assert [each["curriculum/env.scenario_kwargs.reach"] for each in records] == [0.25, 0.25, 0.25, 1.0, 1.0, 1.0]
    assert task.env is not first and task.env.world.simulator.scenario.reach == 1.0
    assert task.make_env is asked and task.eval_env.world.simulator.scenario.reach == 1.0
    assert task.eval_env.world.simulator.scenario.progress.tolist() == [1.0] * 3
    assert task.env.world.simulator.scenario.progress.tolist() == [1.0] * 4  # the last iteration
    assert capsys.readouterr().out.count("curriculum: from iteration 4 on env.scenario_kwargs.reach=1.0") == 1


def test_the_sums_of_episodes_that_were_given_up_begin_again():
    task = make(REACH, algo={"reward_norm": "std"})
    for k in range(3):
        task.collect(k)
    assert task.reward_norm["agents"].carry.any() and task.statistics.lengths.carry.any()
    task._follow(3)
    assert not task.reward_norm["agents"].carry.any() and not task.statistics.lengths.carry.any()
    distance = task.rollout.observed["agents"][-1, :, :, :2].norm(dim=-1)
    torch.testing.assert_close(distance, torch.full((4, 2), 0.7))  # reach * (0.1 + progress), 1 * (0.1 + 3 / 5)


def test_scripted_players_go_along():
    torch.manual_seed(0)
    factory = partial(VmasEnv, scenario="mpe/simple_tag", num_envs=4, max_steps=6, fast="off")
    algo = PPO(rollout_steps=10, minibatch_size=20, critic="local")
    others, node = {"adversary": {"policy": "random"}}, {"env": {"max_steps": {0: 6, 0.5: 3}}}
    task = OnPolicy(factory, algo, partial(MLP, hidden=[8]), frames=80, groups=others, curriculum=node)
    lengths = []
    for k in range(2):
        task.collect(k)
        lengths.append(task.metrics()["episode_length"].item())
        assert task.lineup.players["adversary"].env is task.env
    assert lengths == [6.0, 3.0]


def test_evaluations_of_the_present_stage_where_that_is_asked_for(tmp_path):
    task = make({**REACH, "evaluate": "current"})
    task.evaluate()
    assert task.eval_env.world.simulator.scenario.reach == 0.25
    fit(task, tmp_path)
    assert task.eval_env.world.simulator.scenario.reach == 1.0


@pytest.mark.parametrize(
    ("node", "network", "algo"),
    [
        (REACH, MLP, {"reward_norm": "std", "normalize_observation": True}),
        (WAITS, MLP, {}),
        (BOTH, partial(DeepSets, encoder=[8], hidden=[8]), {"critic": "concat", "value_norm": "popart"}),
    ],
    ids=["progress", "figure", "teams"],
)
def test_resuming_before_at_and_after_a_change_is_bitwise_the_run_that_went_on(node, network, algo, tmp_path):
    whole, records = fit(make(node, network, algo=algo), tmp_path / "whole")
    reach = [each["curriculum/env.scenario_kwargs.reach"] for each in records]
    change = reach.index(1.0)
    assert 0 < change < 5
    for last in (change, change + 1):  # the change comes first of all, or has just been
        folder = tmp_path / str(last)
        with pytest.raises(KeyboardInterrupt):
            fit(make(node, network, algo=algo), folder, last)
        last_file = folder / "checkpoints" / "last.pt"
        resumed, rest = fit(make(node, network, algo=algo), folder, resume=last_file)
        assert rest == records[last:]
        assert same(whole.task.loss, resumed.task.loss)
        first, second = (each.task.env.snapshot() for each in (whole, resumed))
        assert all(torch.equal(first[key].nan_to_num(), value.nan_to_num()) for key, value in second.items())


def test_a_team_that_comes_again_goes_on_where_it_was(tmp_path):
    task = make(TEAMS, algo={"critic": "concat"}, network=partial(Attention, width=8, heads=2), frames=400)
    sizes, ends = [], {}
    for k in range(10):
        task.collect(k)
        size = task.env.spec.groups["agents"].n_agents
        observed = task.rollout.observed["agents"]
        assert observed.shape == (11, 4, size, 6 - 1)
        if size in ends:
            assert torch.equal(observed[0], ends[size])
        ends[size] = observed[-1].clone()
        sizes.append(size)
        for batch in task.batches(k):
            assert torch.isfinite(task.loss(batch)["loss"])
    assert set(sizes) == {1, 2, 3} and len(task.course.arenas) == 3
    task.evaluate()
    assert task.eval_env.spec.groups["agents"].n_agents == 2 == task.spec.groups["agents"].n_agents


def test_what_all_agents_share_reads_teams_of_any_size_too(tmp_path):
    trainer, records = fit(make(TEAMS), tmp_path)
    drawn = {each["curriculum/env.scenario_kwargs.n_agents"] for each in records}
    assert len(drawn) > 1 and trainer.evaluation["episode_return"] < 0


@pytest.mark.parametrize(
    ("node", "algo", "message"),
    [
        ({"env": {"scenario_kwargs": {"wide": {0: False, 0.5: True}}}}, {},
         "curriculum: with env.scenario_kwargs.wide=false observation_size of group agents is 5, and 6 in the full"),
        ({"env": {"scenario_kwargs": {"rech": {0: 1.0}}}}, {}, "cannot be built: .*rech"),
        ({"env": {"max_steps": {0: 5, 0.5: None}}}, {}, "max_steps=null: evaluation needs a time limit"),
        ({"env": {"continuous_actions": {0: True, 0.5: False}}}, {}, "kind of action of group agents is"),
        (TEAMS, {"critic": "concat"}, "curriculum: teams change size, which needs a critic of any number of agents"),
        (TEAMS, {"share_actor": "separate"}, "needs algo.share_actor=shared"),
        (TEAMS, {"agent_ids": True}, "needs algo.agent_ids=false"),
        (TEAMS, {"reward_norm": "std"}, "needs algo.reward_norm=none"),
        (
            {"env": {"max_steps": {"figure": "eval/return", "above": [1], "values": [4, 5]}}}, {},
            "curriculum.env.max_steps.figure='eval/return': evaluation has eval/agents/",
        ),
        ({"env": {"max_steps": {"figure": "return", "above": [1], "values": [4, 5]}}}, {}, None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_collected(node, algo, message):
    if message is None:
        with pytest.raises(UserError, match="curriculum.env.max_steps.figure=return: there is no such figure"):
            make(node, algo=algo).collect(0)
        return
    with pytest.raises(UserError, match=message) as refused:
        make(node, algo=algo)
    assert "\n" not in str(refused.value)


def test_from_a_command_line_and_judged_by_the_full_task_afterwards(tmp_path):
    key = "curriculum.env.scenario_kwargs.package_mass"
    run = make_run(tmp_path / "run", f"{key}={{0: 1, 0.5: 2}}", "curriculum.evaluate=current", "frames=120")
    with (run / "metrics.csv").open() as file:
        assert [row[key.replace("curriculum.", "curriculum/")] for row in csv.DictReader(file)] == ["1.0", "2.0", "2.0"]
    saved = OmegaConf.load(run / "config.yaml").curriculum
    assert saved == {"env": {"scenario_kwargs": {"package_mass": {0: 1, 0.5: 2}}}, "evaluate": "current"}
    _, task = build.rebuild(run)
    assert task.make_env.keywords["scenario_kwargs"]["package_mass"] == 5  # as env=vmas/balance has it
    resumed = compose.check(compose.compose([f"resume={run}", "frames=160"]))
    resume.compare(resumed, checkpoint_file.load(run / "checkpoints" / "last.pt")["config"])
    with pytest.raises(UserError, match="curriculum.*refused, a resumed run keeps these"):
        changed = compose.check(compose.compose([f"resume={run}", "curriculum.evaluate=final"]))
        resume.compare(changed, checkpoint_file.load(run / "checkpoints" / "last.pt")["config"])
