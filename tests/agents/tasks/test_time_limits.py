"""What a time limit means, `algo.time_limit`: targets of every family by hand, resumed runs, configurations without it.

All episodes below end by their time limit; γ = 0.5 and a reward of 1 per step.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.replayed import bootstrapped
from agents.algorithms.ppo import PPO
from agents.algorithms.pqn import PQN
from agents.algorithms.shac import SHAC
from agents.collection.ends import for_targets
from agents.evaluation.dataset_recording import record
from agents.evaluation.episode_loop import Players
from agents.tasks.behaviour_cloning import Clone
from agents.tasks.off_policy import OffPolicy
from agents.tasks.on_policy import OnPolicy
from agents.tasks.short_horizon import ShortHorizon
from envs.adapters.gymnasium_env import PettingZooEnv
from envs.spec import describe
from envs.vmas.env import VmasEnv
from marl.checkpoints import checkpoint_file, resume
from marl.config import compose
from marl.core.errors import UserError
from marl.data import Episodes
from marl.data.episodes import append
from marl.launch import build
from marl.networks import GRU, MLP
from tests.agents.two_states import TwoStates

MLPS, GRUS = partial(MLP, hidden=[8]), partial(GRU, hidden=5)
# Discounted returns of the seven steps of an episode after which nothing follows.
RETURNS = [1.984375, 1.96875, 1.9375, 1.875, 1.75, 1.5, 1.0]


class Paid(TwoStates):
    """Seven steps of 1 each."""

    def step(self, action):
        moved = super().step(action)
        moved.reward = {name: torch.ones_like(reward) for name, reward in moved.reward.items()}
        return moved


def test_ends_as_targets_take_them():
    terminated, truncated = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    told = for_targets(terminated, truncated, True)
    assert [flags.tolist() for flags in told] == [[True, False, False], [False, True, False]]
    over = for_targets(terminated, truncated, False)
    assert [flags.tolist() for flags in over] == [[True, True, False], [False, False, False]]


ON_POLICY = {
    "ppo": (partial(PPO, critic="local"), MLPS),
    "ppo_concat": (partial(PPO, critic="concat", value_norm="running"), MLPS),
    "ppo_memory": (partial(PPO, chunk_length=7), GRUS),
    "pqn": (PQN, MLPS),
    "pqn_vdn": (partial(PQN, mixer="sum"), MLPS),
}


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("time_limit", ["bootstrap", "end"])
def test_returns_of_rollouts(name, time_limit):
    """With lambda 1 a return is the rewards, and what is said of where the episode was cut off."""
    algo, network = ON_POLICY[name]
    torch.manual_seed(0)
    settings = algo(gamma=0.5, lam=1.0, rollout_steps=14, minibatch_size=None, time_limit=time_limit)
    task = OnPolicy(Paid, settings, network, frames=1000, eval_episodes=2)
    for i in range(2):
        task.collect(i)
        rollout, rows = task.rollout, task.rows["team"]
        found = rows["return"]
        if settings.critic == "concat" and name == "ppo_concat":  # as the critic is taught it
            found = task.loss.critics["team"].denormalize(found)
        expected = torch.tensor(RETURNS * 2).view(14, 1, 1).expand_as(found)
        assert rollout.done[6].all() and rollout.done[13].all() and rollout.done.sum() == 16
        assert task.figures["episode_length"] == 7 and task.figures["episodes"] == 16
        if time_limit == "end":
            torch.testing.assert_close(found, expected)
            assert not rollout.truncated.any()
        else:
            follows = found - expected  # 0.5 ** steps to the end, times the value of where it stopped
            torch.testing.assert_close(follows[:6] * 2, follows[1:7], rtol=1e-3, atol=1e-5)
            assert (follows[6].abs() > 1e-4).all() and rollout.truncated[6].all()


@pytest.mark.parametrize(("time_limit", "cut_off"), [("end", [3.439, 2.71, 1.9, 1.0]), ("bootstrap", None)])
def test_agents_that_are_cut_off_on_their_own(time_limit, cut_off):
    """Agent 1 of three is cut off after four steps, with gamma 0.9; the others are terminated."""
    env = partial(PettingZooEnv, "tests.envs.host_cases.Parting", num_envs=3, max_steps=50, kwargs={"cut": 4})
    settings = PPO(critic="local", gamma=0.9, lam=1.0, rollout_steps=20, minibatch_size=None, time_limit=time_limit)
    torch.manual_seed(0)
    task = OnPolicy(env, settings, MLPS, frames=1000, eval_episodes=2)
    task.collect(0)
    targets = task.rows["agents"]["return"][:5, 0].T
    torch.testing.assert_close(targets[0][:2], torch.tensor([1.9, 1.0]))
    if cut_off:
        torch.testing.assert_close(targets[1][:4], torch.tensor(cut_off))
    else:
        assert (targets[1][:4] - torch.tensor([3.439, 2.71, 1.9, 1.0])).abs().min() > 1e-4


def test_agents_that_act_in_turn():
    """Nim that is cut off after two moves has paid nobody: nothing is worth anything where that is the end."""
    env = partial(PettingZooEnv, "tests.envs.turn_cases.Nim", num_envs=4, max_steps=2, kwargs={"stones": 9})
    found = {}
    for time_limit in ("end", "bootstrap"):
        settings = PPO(gamma=0.5, lam=1.0, rollout_steps=8, minibatch_size=None, time_limit=time_limit)
        torch.manual_seed(0)
        task = OnPolicy(env, settings, MLPS, frames=1000, eval_episodes=2)
        task.collect(0)
        rows = task.rows["agents"]
        found[time_limit] = rows["return"][rows["counts"]]
    assert len(found["end"]) == 32 and found["end"].abs().max() < 1e-6 < 1e-3 < found["bootstrap"].abs().max()


@pytest.mark.parametrize("network", [MLPS, GRUS], ids=["steps", "sequences"])
@pytest.mark.parametrize(
    ("time_limit", "last"), [("end", [1.75, 1.5, 1.0]), ("bootstrap", [1.75 + 1, 1.5 + 2, 1.0 + 4])]
)
def test_targets_of_replayed_steps(network, time_limit, last):
    """Three rewards are summed; a value of 8 stands for what follows."""
    of_sequences = {"chunk_length": 7, "minibatch_size": 14} if network is GRUS else {}
    algo = QLearning(gamma=0.5, rollout_steps=14, n_step=3, time_limit=time_limit, **of_sequences)
    torch.manual_seed(0)
    task = OffPolicy(Paid, algo, network, frames=10_000, eval_episodes=2)
    for i in range(2):
        task.collect(i)
    step, env = torch.arange(14), torch.zeros(14, dtype=torch.int64)
    if network is GRUS:  # two sequences of seven steps, one beside the other
        batch = task.buffer.take_sequences(torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64), 3, 0.5)
        expected = torch.tensor([2.75] * 4 + last).repeat_interleave(2)
    else:
        batch, expected = task.buffer.take(step, env, 3, 0.5), torch.tensor(([2.75] * 4 + last) * 2)
    eight = torch.full((14, 2), 8.0)
    target = bootstrapped(batch["team"]["reward"], eight, batch["terminated"], batch["discount"])
    torch.testing.assert_close(target, expected.unsqueeze(-1).expand(14, 2))


@pytest.mark.parametrize("time_limit", ["bootstrap", "end"])
def test_windows_of_the_simulator(time_limit):
    """A window of ten steps, with an episode's end after seven; the window's own end is bootstrapped in any case."""
    env = partial(VmasEnv, "simple_spread", num_envs=4, max_steps=7, scenario_kwargs={"n_agents": 2})
    algo = SHAC(gamma=0.5, lam=1.0, rollout_steps=10, minibatch_size=None, epochs=1, time_limit=time_limit)
    torch.manual_seed(0)
    task = ShortHorizon(env, algo, MLPS, frames=10_000, eval_episodes=2)
    task.collect(0)
    roll, target = task.rollout, task.loss.targets["agents"].network
    reward = roll.reward["agents"]
    value = {t: target(roll.next["agents"][t]) for t in (6, 9)}
    assert roll.done[6].all() and roll.done.sum() == 4
    first = sum(0.5**t * reward[t] for t in range(7)) + (0.5**7 * value[6] if time_limit == "bootstrap" else 0)
    second = sum(0.5**t * reward[7 + t] for t in range(3)) + 0.5**3 * value[9]
    torch.testing.assert_close(task.objectives["agents"]["objective"], first + second)
    batches = list(task.batches(0))
    taught = batches[1]["agents", "return"].view(10, 4, 2)
    torch.testing.assert_close(taught[6], reward[6] + (0.5 * value[6] if time_limit == "bootstrap" else 0))
    torch.testing.assert_close(taught[9], reward[9] + 0.5 * value[9])


def test_returns_of_recorded_episodes(tmp_path: Path):
    """The teacher's returns, which critics learn beside the clone's actions; recordings tell what was, in any case."""
    env = partial(VmasEnv, "balance", max_steps=6, fast="off", scenario_kwargs={"n_agents": 2})
    recorded = env(num_envs=8, seed=0)
    loss = PPO().make_loss(recorded.spec, MLPS)
    append(tmp_path, record(recorded, Players(loss.actors), 0), {"spec": describe(recorded.spec)})
    data = Episodes(str(tmp_path), validation=0.25)
    truncated = data.steps["next", "truncated"].clone()
    assert truncated.any()
    found = {}
    for time_limit in ("end", "bootstrap"):
        torch.manual_seed(0)
        algo = PPO(gamma=0.5, time_limit=time_limit)
        task = Clone(data, env, algo, MLPS, batch_size=8, eval_episodes=2, epochs=1, critic_coef=1.0)
        task.collect(0)
        found[time_limit] = task.loader.rows["agents", "return"].clone()
    reward = data.steps["next", "agents", "reward"]
    last = data.final["length"].cumsum(0) - 1
    torch.testing.assert_close(found["end"][last], reward[last])
    torch.testing.assert_close(found["end"][last - 1], reward[last - 1] + 0.5 * reward[last])
    assert ((found["bootstrap"][last] != reward[last]).all(-1) == truncated[last]).all()
    assert torch.equal(data.steps["next", "truncated"], truncated)


SMALL = [
    *("env=vmas/balance", "env.num_envs=4", "env.max_steps=5", "env.fast=off", "algo.rollout_steps=4", "logger=null"),
    *("frames=48", "task.eval_episodes=2", "trainer.progress=off", "trainer.evaluate_every=0"),
]
FAMILIES = {
    "mappo": ["algo=mappo", "algo.minibatch_size=8"],
    "masac": ["algo=masac", "algo.updates=2", "algo.minibatch_size=8", "algo.n_step=3", "algo.buffer_frames=32"],
}


def train(folder: Path, *overrides: str) -> dict:
    config = compose.check(compose.compose([*overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    trainer.fit(task, folder, **build.build_setup(config))
    if not (folder / "config.yaml").exists():
        OmegaConf.save(config, folder / "config.yaml")
    return checkpoint_file.load(folder / "checkpoints" / "last.pt")["loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_resume_and_those_without_the_key_bootstrap(family: str, tmp_path: Path):
    how = [*FAMILIES[family], *SMALL]
    weights = {limit: train(tmp_path / limit, *how, f"algo.time_limit={limit}") for limit in ("bootstrap", "end")}
    assert any(not torch.equal(value, weights["end"][name]) for name, value in weights["bootstrap"].items())
    for limit, whole in weights.items():
        folder = tmp_path / f"{limit}_in_parts"
        train(folder, *how, f"algo.time_limit={limit}", "trainer.max_iterations=2")
        path = folder / "config.yaml"
        if limit == "bootstrap":  # a run from before there was the key
            config = OmegaConf.load(path)
            del config.algo["time_limit"]
            OmegaConf.save(config, path)
        resumed = train(folder, f"resume={folder}", "trainer.max_iterations=null")
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(("family", "keeps"), [("mappo", False), ("masac", True)])
def test_what_a_buffer_holds_keeps_its_meaning(family: str, keeps: bool):
    before, after = (compose.compose([*FAMILIES[family], f"algo.time_limit={limit}"]) for limit in ("bootstrap", "end"))
    if not keeps:
        assert resume.compare(after, before) == ["algo.time_limit: bootstrap -> end"]
        return
    with pytest.raises(UserError, match="algo.time_limit: bootstrap -> end: refused"):
        resume.compare(after, before)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="algo.time_limit"):
        compose.check(compose.compose(["algo=mappo", "algo.time_limit=stop"]))
    with pytest.raises(UserError, match="groups.agents.algo.time_limit: all groups share one loop"):
        settings = {"agents": {"algo": {"time_limit": "end"}}}
        OnPolicy(partial(VmasEnv, "balance", num_envs=4, fast="off"), PPO(), MLPS, frames=1000, groups=settings)
