"""Groups with policies of their own: settings per group, frozen, scripted and random groups, past versions."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from vmas.scenarios.transport import HeuristicPolicy

from agents.algorithms.ppo import PPO
from agents.players.self_play import Pool
from agents.policies.group_settings import GroupSettings
from agents.policies.policy import Policy
from agents.tasks.on_policy import OnPolicy
from envs.vmas.env import VmasEnv
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.networks import GRU, MLP
from marl.optim.optimizer_config import OptimizerConfig
from tests.fixtures.runs import make_run

TAG = partial(VmasEnv, "mpe/simple_tag", num_envs=8, max_steps=8, fast="off")
PLAYERS = '''"""A user's opponents."""
import torch

def upwards(env, group):
    """Everyone runs up."""
    return lambda observation, generator: torch.tensor([0.0, 1.0]).expand(*observation.shape[:2], 2)
'''


def make(groups, env=TAG, frames=80 * 4, network=None, **algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 10, "minibatch_size": 40, "epochs": 2, **algo})
    return OnPolicy(env, algo, network or partial(MLP, hidden=[8]), frames=frames, eval_episodes=4, groups=groups)


def fit(task, folder, iterations=None, resume=None):
    trainer = Trainer(progress="off", evaluate_every=0, checkpoint_every=1, max_iterations=iterations)
    return trainer.fit(task, folder, optimizer=OptimizerConfig(lr=1e-3), resume=resume)


def weights(task):
    return torch.cat([p.detach().flatten() for p in task.loss.parameters()])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    size = ["env.num_envs=4", "network.hidden=[8]"]
    return make_run(tmp_path_factory.mktemp("runs") / "tag", "env=vmas/mpe/simple_tag", *size)


def test_a_group_that_is_not_named_learns_as_before():
    plain, named = make(None), make({"agent": {}, "adversary": {"algo": {"clip": 0.2}}})
    for task in (plain, named):
        task.collect(0)
    batches = [next(iter(task.batches(0))) for task in (plain, named)]
    assert torch.equal(plain.loss(batches[0])["loss"], named.loss(batches[1])["loss"])


def test_settings_of_one_group_change_that_group_alone():
    groups = {"adversary": {"algo": {"clip": 0.01, "entropy_coef": 0.5, "critic": "local", "gamma": 0.5}}}
    plain, other = make(None), make(groups)
    assert other.loss.critics["adversary"].kind == "local" and other.loss.critics["agent"].kind == "concat"
    task = make({"adversary": {"algo": {"clip": 0.01, "entropy_coef": 0.5, "gamma": 0.5}}})
    for each in (plain, task):
        each.collect(0)
        each.loss.load_state_dict(plain.loss.state_dict())
    for key, same in (("agent", True), ("adversary", False)):
        assert torch.equal(plain.rows[key]["advantage"], task.rows[key]["advantage"]) == same
    batch = next(iter(plain.batches(0)))
    for actor in plain.loss.actors.values():  # a policy that has moved, so that the clip matters
        for p in actor.parameters():
            p.data += 0.05 * torch.randn_like(p)
    task.loss.load_state_dict(plain.loss.state_dict())
    one, two = plain.loss(batch), task.loss(batch)
    assert torch.equal(one["agent/policy_loss"], two["agent/policy_loss"])
    assert not torch.equal(one["adversary/policy_loss"], two["adversary/policy_loss"])
    assert "adversary/entropy" in two and "agent/entropy" not in two and "entropy" not in one
    torch.testing.assert_close(two["entropy"], two["adversary/entropy"])
    total = sum(two[f"{g}/policy_loss"] + two[f"{g}/value_loss"] for g in ("agent", "adversary"))
    torch.testing.assert_close(two["loss"].detach(), total - 0.5 * two["adversary/entropy"])


@pytest.mark.parametrize("policy", ["random", "still", "simple_tag", "saved", "dotted"])
def test_who_does_not_learn_plays_and_is_not_in_the_optimiser(policy, run, tmp_path, monkeypatch):
    (tmp_path / "players.py").write_text(PLAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    policy = {"saved": str(run), "dotted": "players.upwards"}.get(policy, policy)
    task = make({"adversary": {"policy": policy}})
    assert list(task.loss.actors) == list(task.loss.critics) == ["agent"]
    names = {id(p) for p in task.loss.parameters()}
    optimizer = OptimizerConfig().build(task.parts())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == names
    actions = []
    inner = task.env.step
    monkeypatch.setattr(task.env, "step", lambda action: actions.append(action["adversary"].clone()) or inner(action))
    task.collect(0)
    acted = torch.stack(actions)
    if policy == "still":
        assert acted.abs().sum() == 0
    elif policy == "players.upwards":
        assert (acted == torch.tensor([0.0, 1.0])).all()
    elif policy == str(run):
        frozen = Policy.load(run).actors["adversary"]
        generator = torch.Generator()
        generator.set_state(make({"adversary": {"policy": policy}}).lineup.generator.get_state())
        expected = frozen.head.to_env(frozen.act(task.rollout.observed["adversary"][0], generator=generator)[0])
        torch.testing.assert_close(acted[0], expected)
        assert not any(p.requires_grad for p in task.lineup.players["adversary"].parameters())
    else:
        assert acted.std() > 0.1
    summary = fit(task, tmp_path / "run")
    figures = task.evaluate()
    assert summary["frames"] == 320 and figures["episode_return"] == figures["agent/episode_return"]
    assert "adversary/episode_return" in figures


def test_a_frozen_group_is_loaded_and_its_weights_stay(run, tmp_path):
    before = {k: v.clone() for k, v in Policy.load(run).state_dict().items()}
    task = make({"agent": {"policy": str(run / "checkpoints" / "last.pt")}})
    fit(task, tmp_path)
    after = task.lineup.players["agent"].state_dict()
    assert all(torch.equal(after[k], before[f"actors.agent.{k}"]) for k in after)


def test_a_saved_policy_that_was_replaced_meanwhile_ends_a_resume(run, tmp_path):
    policy = tmp_path / "policy.safetensors"
    Policy.load(run).save(policy)
    groups = {"agent": {"policy": str(policy)}}
    fit(make(groups), tmp_path / "run", iterations=1)
    saved = checkpoint_file.load(tmp_path / "run" / "checkpoints" / "last.pt")
    fit(make(groups), tmp_path / "same", resume=saved)
    other = Policy.load(run)
    with torch.no_grad():
        next(other.actors["agent"].parameters()).view(-1)[0] += 1e-3
    other.save(policy)
    with pytest.raises(UserError, match=r"groups.agent.policy=.*safetensors: holds another policy than when this run"):
        fit(make(groups), tmp_path / "other", resume=saved)
    del saved["processes"][0]["task"]["saved_players"]  # a checkpoint of before
    fit(make(groups), tmp_path / "old", resume=saved)


def test_in_the_environments_of_the_past_a_group_does_not_learn():
    algo = {"minibatch_size": None, "entropy_coef": 0.1, "normalize_advantage": "batch"}
    task = make({"adversary": {"past": 0.25}, "agent": {"past": 0.5}}, **algo)
    with pytest.raises(UserError, match="past versions are kept in a run directory"):
        task.collect(0)
    task.lineup.draw_versions = lambda iteration: None
    for pool in task.lineup.pools.values():
        pool.act = lambda observation, generator, mask: torch.zeros(*observation.shape[:2], 2)
    actions, inner = [], task.env.step
    task.env.step = lambda action: actions.append({k: v.clone() for k, v in action.items()}) or inner(action)
    task.collect(0)
    still = {name: (torch.stack([a[name] for a in actions]) == 0).all(-1).all(-1).all(0) for name in actions[0]}
    assert still["adversary"].tolist() == [True] * 2 + [False] * 6
    assert still["agent"].tolist() == [False] * 2 + [True] * 4 + [False] * 2
    batch = next(iter(task.batches(0)))
    torch.manual_seed(1)  # the entropy of a squashed Gaussian is drawn
    out = task.loss(batch)
    out["loss"].backward()
    got = [p.grad.clone() for p in task.loss.parameters()]
    task.loss.zero_grad()
    for name, rows in (("adversary", slice(0, 2)), ("agent", slice(2, 6))):  # whatever is there changes nothing
        own = task.rows[name]
        assert not own["own"][:, rows].any() and own["own"].sum() == own["own"].numel() - own["own"][:, rows].numel()
        spoilt = batch[name]["action"].unflatten(0, (10, 8))
        spoilt[:, rows] += 3.0
        for key in ("advantage", "return", "log_prob"):
            batch[name][key].unflatten(0, (10, 8))[:, rows] *= 17.0
        alone = own["advantage"][own["own"]]  # normalised over what counts
        torch.testing.assert_close(alone.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.manual_seed(1)
    again = task.loss(batch)
    again["loss"].backward()
    torch.testing.assert_close(again["loss"], out["loss"])
    for a, p in zip(got, task.loss.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, atol=1e-6, rtol=1e-4)


SELF_PLAY = {
    "both": {"adversary": {"past": 0.25, "every": 1, "at_once": 2}, "agent": {"past": 0.25, "every": 2, "size": 2}},
    "random": {"adversary": {"policy": "random"}},
}


@pytest.mark.parametrize("groups", SELF_PLAY.values(), ids=SELF_PLAY)
def test_it_resumes_to_the_same_bits(groups, tmp_path):
    whole = make(groups)
    fit(whole, tmp_path / "whole")
    fit(make(groups), tmp_path / "parts", iterations=2)
    last = tmp_path / "parts" / "checkpoints" / "last.pt"
    saved = checkpoint_file.load(last)
    rest = make(groups)
    fit(rest, tmp_path / "parts", resume=saved)
    assert torch.equal(weights(whole), weights(rest))
    files = [sorted(p.relative_to(d) for p in d.rglob("pool/*/*")) for d in (tmp_path / "whole", tmp_path / "parts")]
    assert files[0] == files[1] and len(files[0]) == (5 + 3 if "agent" in groups else 0)


def test_versions_are_those_of_their_iteration(tmp_path):
    task = make({"adversary": {"past": 0.25, "every": 2}})
    actor = {k: v.clone() for k, v in task.loss.actors["adversary"].state_dict().items()}
    fit(task, tmp_path)
    folder = tmp_path / "pool" / "adversary"
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:06d}.safetensors" for i in (0, 2, 4)]
    first = checkpoint_file.load_weights(folder / "000000.safetensors")
    assert all(torch.equal(first[k], actor[k]) for k in actor)
    last = checkpoint_file.load_weights(folder / "000004.safetensors")
    assert all(torch.equal(last[k], v) for k, v in task.loss.actors["adversary"].state_dict().items())
    pool = task.lineup.pools["adversary"]
    (folder / "000002.safetensors").unlink()
    pool.drawn = lambda iteration: [2] * 4
    with pytest.raises(UserError, match="000002.safetensors does not exist"):
        pool.load(4)


def test_draws_depend_on_seed_and_iteration_and_stay_in_the_pool():
    actor = make(None).loss.actors["agent"]
    pool = Pool("agent", GroupSettings(past=0.5, every=5, size=4, at_once=3), actor, seed=1)
    assert [pool.versions(i) for i in (0, 4, 5, 16)] == [[0], [0], [0, 5], [0, 5, 10, 15]]
    assert pool.versions(100) == [0, 35, 65, 100] and Pool("a", GroupSettings(size=1), actor, 0).versions(57) == [50]
    draws = [tuple(pool.drawn(i)) for i in range(100, 160)]
    assert draws == [tuple(pool.drawn(i)) for i in range(100, 160)] and len(set(draws)) > 20
    assert draws != [tuple(Pool("agent", pool.settings, actor, seed=2).drawn(i)) for i in range(100, 160)]
    recent = Pool("agent", GroupSettings(past=0.5, every=5, size=4, at_once=400, draw="recent"), actor, seed=1)
    counts = [recent.drawn(100).count(v) for v in recent.versions(100)]
    assert counts == sorted(counts) and counts[-1] > 2.5 * counts[0]


FOOTBALL = [
    "env=vmas/football",
    "env.scenario_kwargs.n_blue_agents=2",
    "env.scenario_kwargs.n_red_agents=2",
    "env.scenario_kwargs.ai_red_agents=false",
    "network.hidden=[8]",
]


def test_a_team_against_its_own_past(tmp_path):
    run = make_run(
        tmp_path / "run", *FOOTBALL, "groups.agent_red.policy=pool", "groups.agent_red.of=agent_blue",
        "groups.agent_red.every=1",
    )  # fmt: skip
    assert len(list((run / "pool" / "agent_red").iterdir())) == 3
    assert "actors.agent_red" not in str(list(checkpoint_file.load(run / "checkpoints" / "last.pt")["loss"]))
    policy = Policy.load(run)
    assert list(policy.actors) == ["agent_blue"] and list(policy.everyone()[0]) == ["agent_blue", "agent_red"]
    x = {name: torch.randn(2, 2, policy.spec.groups["agent_blue"].observation_size) for name in policy.everyone()[0]}
    acted = policy.act(x)
    assert torch.equal(acted["agent_red"], policy.act({"agent_blue": x["agent_red"]})["agent_blue"])
    summary = json.loads((run / "summary.json").read_text())
    assert "agent_red/episode_return" in summary["final"]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"prey": {}}, "groups.prey: no such group.*there are adversary, agent"),
        ({"agent": {"polcy": "random"}}, "unknown key 'groups.agent.polcy'; did you mean 'policy'"),
        ({"agent": "random"}, "groups.agent=random: must be settings, such as groups.agent.policy=random"),
        ({"agent": {"policy": "randm"}}, "groups.agent.policy=randm: no such policy .there are learn, pool, random"),
        ({"agent": {"policy": "runs/none"}}, "no checkpoint at runs/none"),
        ({"agent": {"policy": "no.where"}}, "groups.agent.policy=no.where: no module 'no'"),
        ({"agent": {"policy": "heuristic"}}, "heuristic: mpe/simple_tag has no policy of its own for agent"),
        ({"agent": {"policy": "random"}, "adversary": {"policy": "still"}}, "groups: none learns"),
        ({"agent": {"policy": "random", "past": 0.2}}, "groups.agent.past: is of groups that learn"),
        ({"agent": {"policy": "pool"}}, r"groups.agent.of=None: must be a group that learns \(adversary\)"),
        ({"agent": {"policy": "pool", "of": "adversary"}}, r"groups.agent.policy=pool: its sizes .* differ from"),
        ({"agent": {"of": "adversary"}}, "groups.agent.of=adversary: is read with groups.agent.policy=pool"),
        ({"agent": {"past": 1.0}}, "groups.agent.past=1.0: must be less than 1"),
        ({"agent": {"past": 0.01}}, "groups.agent.past=0.01: of env.num_envs=8 that are 0 environments; between 1 and"),
        ({"agent": {"past": 0.6}, "adversary": {"past": 0.6}}, "past of adversary, agent must add up to at most 1"),
        ({"agent": {"eval_policy": "pool"}}, "groups.agent.eval_policy=pool: must be random, still"),
        (
            {"agent": {"eval_policy": "randm"}},
            "groups.agent.eval_policy=randm: no such policy .there are random",
        ),
        ({"agent": {"eval_policy": "heuristic"}}, "heuristic: mpe/simple_tag has no policy of its own for agent"),
        ({"adversary": {"eval_against": "no.where"}}, "groups.adversary.eval_against=no.where: no module 'no'"),
        ({"agent": {"algo": {"clipp": 0.1}}}, "unknown key 'groups.agent.algo.clipp'; did you mean 'clip'"),
        ({"agent": {"algo": {"clip": 2}}}, "groups.agent.algo.clip=2: must be less than 1"),
        ({"agent": {"algo": {"epochs": 2}}}, "groups.agent.algo.epochs: all groups share one loop; set algo.epochs"),
    ],
)
def test_mistakes_are_rejected(groups, sentence):
    with pytest.raises(UserError, match=sentence):
        make(groups)


def test_saved_policies_of_other_sizes_are_refused(run):
    with pytest.raises(UserError, match="sizes .* differ from the group's"):
        make({"agent": {"policy": str(run), "of": "adversary"}})
    with pytest.raises(UserError, match="groups.agent.of=prey: .* has policies of adversary, agent"):
        make({"agent": {"policy": str(run), "of": "prey"}})
    with pytest.raises(UserError, match="groups.adversary.eval_policy=.*: sizes .* differ from the group's"):
        make({"adversary": {"policy": "random", "eval_policy": str(run), "of": "agent"}})
    with pytest.raises(UserError, match="groups.agent.past: needs algo.update=joint"):
        make({"agent": {"past": 0.25}}, update="sequential", share_actor="separate")


def test_networks_with_a_memory_learn_against_players_and_are_no_players(tmp_path):
    gru = partial(GRU, hidden=8)
    task = make({"adversary": {"policy": "random"}}, network=gru)
    fit(task, tmp_path)
    assert task.loss.recurrent and torch.isfinite(torch.tensor(task.evaluate()["episode_return"]))
    with pytest.raises(UserError, match="groups.adversary: past versions and saved policies play without a memory"):
        make({"adversary": {"past": 0.25}}, network=gru)


def test_vmas_own_policy_plays_beside_learners(tmp_path):
    teams = {"learners": ["agent_0", "agent_1"], "scripted": ["agent_2"]}
    three = {"scenario_kwargs": {"n_agents": 3}, "groups": teams}
    env = partial(VmasEnv, "transport", num_envs=8, max_steps=8, fast="off", **three)
    task = make({"scripted": {"policy": "heuristic"}}, env=env)
    fit(task, tmp_path)
    observation = task.rollout.observed["scripted"][3]
    expected = HeuristicPolicy(continuous_action=True).compute_action(observation[:, 0], u_range=1.0)
    acted = task.lineup.players["scripted"](observation, torch.Generator())
    torch.testing.assert_close(acted[:, 0], expected)
    assert list(task.loss.actors) == ["learners"]
