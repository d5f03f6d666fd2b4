"""Agents that end each on their own, through rollout, advantages, losses, memories, evaluation, clones and resume."""

from functools import partial

import pytest
import torch
from torch import nn

from agents.algorithms.ppo import PPO
from agents.evaluation.dataset_recording import record
from agents.evaluation.episode_loop import Players
from agents.evaluation.episodes import evaluate
from agents.models.forward import policy_params, values
from agents.tasks.behaviour_cloning import Clone
from agents.tasks.on_policy import OnPolicy
from envs.adapters.gymnasium_env import PettingZooEnv
from envs.spec import describe
from envs.vmas.env import VmasEnv
from marl.data import Episodes
from marl.data.episodes import append
from marl.engine.trainer import Trainer
from marl.networks import GRU, MLP

G = "agents"
PARTING = partial(PettingZooEnv, "tests.envs.host_cases.Parting", num_envs=3, max_steps=50)
SLOTS = {"num_envs": 6, "max_steps": 17, "continuous_actions": False, "fast": "off"}
VISIT = partial(VmasEnv, "tests.envs.vmas.ends_cases.Visit", **SLOTS)
MLPS, GRUS = partial(MLP, hidden=[8]), partial(GRU, hidden=5, encoder=[4])


def task(env, network=MLPS, frames=10**4, **algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 12, "minibatch_size": None, "epochs": 2, "critic": "local", **algo})
    return OnPolicy(env, algo, network, frames=frames, eval_episodes=4)


class Constant(nn.Module):
    """A critic's network that says one number."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((*x.shape[:-1], 1), self.value)


def test_all_ends_where_agents_stay_named(tmp_path):
    """A return of 21,000 where 4 is right: in training's statistics and in evaluations."""
    endless = partial(PettingZooEnv, "tests.envs.host_cases.Endless", max_steps=50, num_envs=3)
    each = task(endless, rollout_steps=21)
    each.collect(0)
    assert each.figures["episode_return"] == 4 and each.figures["episode_length"] == 4
    played = evaluate(endless(num_envs=2), each.loss.actors, seed=1)
    assert (played.returns[G] == 4).all() and (played.lengths == 4).all()


def test_an_agent_cut_off_alone_is_worth_what_lies_beyond():
    """Reward 1 per step, γ = 0.9, cut off after 4 steps: v = 1 / (1 − 0.9) = 10 is the targets' fixpoint (not 2.35)."""
    each = task(partial(PARTING, kwargs={"cut": 4}), gamma=0.9, lam=1.0, rollout_steps=20)
    critic, value = each.loss.critics[G], 0.0
    for i in range(60):
        critic.network = Constant(value)
        each.collect(i)
        rows = each.rows[G]
        value = rows["return"][..., 1][rows["alive"][..., 1]].mean().item()
    assert value == pytest.approx(10.0, abs=1e-2)
    targets = rows["return"][:5, 0].T  # 20 steps are four episodes of 5
    torch.testing.assert_close(targets[1][:4], torch.full((4,), value), rtol=1e-3, atol=1e-3)
    terminated = [1 + 0.9, 1.0], [1 + 0.9 * x for x in (3.439, 2.71, 1.9, 1.0)] + [1.0]
    torch.testing.assert_close(targets[0][:2], torch.tensor(terminated[0]))
    torch.testing.assert_close(targets[2], torch.tensor(terminated[1]))


EVERYTHING = {
    "entropy_coef": 0.01,
    "normalize_advantage": "batch",
    "reward_norm": "std",
    "value_clip": 0.2,
    "normalize_observation": True,
}


SEQUENTIAL = {"update": "sequential", "share_actor": "separate"}
KINDS = [(MLPS, {}), (MLPS, SEQUENTIAL), (GRUS, {"chunk_length": 6, "burn_in": 3})]


@pytest.mark.parametrize(("network", "more"), KINDS)
@pytest.mark.parametrize("value_norm", ["popart", "running"])
def test_nothing_of_the_dead_changes_a_loss(network, more, value_norm):
    """What the rollout holds of dead agents is replaced by nonsense before anything is computed from it."""

    def losses(nonsense):
        each = task(VISIT, network, **EVERYTHING | {"value_norm": value_norm}, **more)
        collect = each.collector.collect

        def collected(generator):
            data, roll = collect(generator), each.rollout
            dead = ~roll.masks[G]["alive"][:-1]
            assert 10 < dead.sum() < dead.numel() / 1.5
            if nonsense:
                for tensor in (roll.observed[G][:-1], roll.action[G], roll.log_prob[G], roll.reward[G]):
                    tensor[dead] = torch.full_like(tensor[dead], 5)
            return data

        each.collector.collect = collected
        each.collect(0)
        each.loss.train()
        out, batches = [], list(each.batches(0))
        for batch in batches:
            loss = each.loss(batch)
            gradients = torch.autograd.grad(loss["loss"], list(each.loss.parameters()), allow_unused=True)
            out += [*loss.values(), *(x for x in gradients if x is not None)]
        return [
            *out,
            each.figures["explained_variance"],
            *each.reward_norm.state_dict().values(),
            *each.loss.state_dict().values(),
        ]

    torch.manual_seed(1)
    expected = losses(False)
    torch.manual_seed(1)
    for a, b in zip(expected, losses(True), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("critic", ["local", "concat"])
def test_who_comes_back_remembers_nothing(share, critic):
    """Collection, values and training see the same memories, and zeros where an agent of a slot comes back."""
    sizes = {"rollout_steps": 24, "chunk_length": 8, "burn_in": 4}
    each = task(VISIT, GRUS, **sizes, share_actor=share, share_critic=share, critic=critic)
    for i in range(2):
        before = {kind: each.collector.memories[kind].now[G].clone() for kind in ("actor", "critic")}
        each.collect(i)
    roll, actor, judge = each.rollout, each.loss.actors[G], each.loss.critics[G]
    alive = roll.masks[G]["alive"][:-1]
    back = alive[1:] & ~alive[:-1]
    assert back.sum() > 8 and (roll.agent_starts[G][1:-1] >= back).all()
    per_agent = critic == "local" or share == "separate"
    assert judge.per_agent == per_agent
    # By hand: one step at a time, the memory of an agent that was dead or ended is zeros.
    memory, params = before["actor"], []
    for t in range(24):
        out, memory = actor.remember(roll.observed[G][t], memory, roll.masks[G]["action"][t])
        params.append(out)
        over = roll.ends[G]["done"][t] | ~alive[t]
        memory = torch.where(over.unsqueeze(-1), 0.0, memory)
        if t and back[t - 1].any():
            fresh, _ = actor.remember(roll.observed[G][t], torch.zeros_like(memory), roll.masks[G]["action"][t])
            torch.testing.assert_close(out[back[t - 1]], fresh[back[t - 1]])
    torch.testing.assert_close(each.collector.memories["actor"].now[G], memory)
    torch.testing.assert_close(roll.params[G][alive], torch.stack(params)[alive])
    # Training's sequences say the same, where no burn-in changes what is remembered (the weights are the same).
    rows = each.sequences.rows(each.rows, roll)[G]
    again = policy_params(actor, rows).unflatten(0, (-1, 8))
    expected, there = each.sequences.cut(torch.stack(params)), rows["alive"]
    torch.testing.assert_close(again[there], expected[there], rtol=1e-4, atol=1e-5)
    # The critic's values likewise, by its own memory: each agent's, or the one of all, which goes by the environment.
    memory, said = before["critic"], []
    for t in range(24):
        out, after = judge.unroll(roll.observed[G][t : t + 1], None, memory)
        over = roll.ends[G]["done"][t] | ~alive[t] if per_agent else roll.starts[t + 1]
        memory = torch.where(over.view(*over.shape, *[1] * (after[0].dim() - over.dim())), 0.0, after[0])
        said.append(out[0])
    said = torch.stack(said)
    torch.testing.assert_close(
        values(judge, rows, None).unflatten(0, (-1, 8))[there], each.sequences.cut(said)[there], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(each.collector.memories["critic"].now[G], memory)


def test_players_of_an_evaluation_remember_nothing_either():
    each = task(VISIT, GRUS, chunk_length=12)
    env, players = VISIT(), Players(each.loss.actors, deterministic=True)
    players.begin(env.num_envs, env.device)
    observation, _ = env.reset(1)
    back = 0
    gone = torch.zeros(6, 3, dtype=torch.bool)
    for _ in range(40):
        alive = env.masks()[G]["alive"]
        back += int((alive & gone).sum())
        moved = env.step(players.actions(observation, env.masks(), None))
        players.forget(moved)
        gone = moved.agent_terminated[G] | moved.agent_truncated[G] | ~alive
        memory = players.memories.now[G]
        assert not memory[gone].any() and memory[~gone].any(-1).all()
        observation = moved.observation
    assert back > 10


def test_torchrls_keys():
    each = task(PARTING, rollout_steps=10)
    each.collect(0)
    data = each.rollout.data["next"]
    for key in ("terminated", "truncated", "done"):
        assert data[G, key].shape == (10, 3, 3, 1) and data[key].shape == (10, 3, 1)
    assert data[G, "terminated"][:5, 0, :, 0].nonzero().tolist() == [[1, 0], [4, 2]]
    assert data[G, "truncated"][:5, 0, :, 0].nonzero().tolist() == [[3, 1]]


@pytest.mark.parametrize("env", [VISIT, partial(PARTING, kwargs={"back": 3})])
def test_resume_is_exact(tmp_path, env):
    make = partial(task, env, GRUS, chunk_length=6, frames=12 * 6 * 4, value_norm="popart", reward_norm="std")
    whole, first, second = make(), make(), make()
    runs = [Trainer(progress="off", checkpoint_every=1, evaluate_every=0, max_iterations=n) for n in (4, 2, 4)]
    runs[0].fit(whole, tmp_path / "a")
    runs[1].fit(first, tmp_path / "b")
    runs[2].fit(second, tmp_path / "b", resume=tmp_path / "b" / "checkpoints" / "last.pt")
    for a, b in zip(whole.loss.state_dict().values(), second.loss.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert runs[0].evaluation == runs[2].evaluation


@pytest.mark.parametrize("memmap", [False, True])
def test_clones_learn_each_agents_own_return(tmp_path, memmap):
    env = PARTING(max_steps=9)
    folder = tmp_path / "data"
    for seed in range(2):
        append(folder, record(env, None, seed), {"spec": describe(env.spec), "policy": {}})
    data = Episodes(str(folder), validation=0.2, memmap=memmap)
    algo = PPO(gamma=0.5, critic="local")
    clone = Clone(data, partial(PARTING, max_steps=9), algo, MLPS, batch_size=4, critic_coef=1.0, eval_episodes=2)
    clone.loss.critics[G].network = Constant(6.0)
    clone._learn_returns()
    returns, alive = (clone.loader.rows[G, key][:5].T for key in ("return", "alive"))
    assert alive.tolist() == [[True] * 2 + [False] * 3, [True] * 4 + [False], [True] * 5]
    assert returns[0, :2].tolist() == [1.5, 1.0] and returns[2].tolist() == [1.9375, 1.875, 1.75, 1.5, 1.0]
    assert returns[1, :4].tolist() == [2.125 + 0.125, 2.5, 3.0, 4.0]  # 1 + 0.5 · 6 where it was cut off
    batch = next(iter(clone.batches(0)))
    expected = clone.loss(batch)
    dead = ~batch[G]["alive"]
    assert dead.any()
    batch[G]["return"][dead] = 1e6
    assert torch.equal(clone.loss(batch)["value_loss"], expected["value_loss"])
