"""Behaviour cloning: a clone acts as its teacher, judges its states, learns from DAgger's rounds, and resumes."""

from functools import partial
from pathlib import Path

import pytest
import torch

from agents.algorithms.cloning_loss import discounted
from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.ppo import PPO
from agents.evaluation.dataset_recording import record, to_raw
from agents.evaluation.episode_loop import Players
from agents.evaluation.episode_replays import Replay
from agents.models.actor_critic import build_networks
from agents.policies.policy import Policy
from agents.tasks.behaviour_cloning import Clone
from agents.tasks.on_policy import OnPolicy
from envs.rendering.recording import Recording
from envs.spec import describe
from envs.vmas.env import VmasEnv
from marl.callbacks.base import expect
from marl.checkpoints import transfer
from marl.core.errors import UserError
from marl.core.seeding import seed_global
from marl.data import Episodes
from marl.data.episodes import append
from marl.engine.trainer import Trainer
from marl.networks import LSTM, MLP
from marl.optim.optimizer_config import OptimizerConfig

ENV = partial(VmasEnv, "balance", max_steps=12, fast="off", scenario_kwargs={"n_agents": 3})
NETWORK = partial(MLP, hidden=[16])


def teacher(discrete: bool = False, **algo) -> tuple[dict, VmasEnv]:
    """Actors whose actions are far from uniform, and an environment for 10 episodes."""
    seed_global(1)
    env = ENV(num_envs=10, seed=0, device="cpu", continuous_actions=not discrete)
    actors, _ = build_networks(PPO(**algo), env.spec, partial(MLP, hidden=[8], init="orthogonal", last_gain=2.0))
    return actors, env


def dataset(folder: Path, discrete: bool = False, raw: bool = True, **algo) -> Path:
    """Two shards of ten episodes."""
    actors, env = teacher(discrete, **algo)
    heads = {name: type(actor.head).__name__ for name, actor in actors.items()}
    for seed in (0, 1):
        episodes = record(env, Players(actors), seed)
        if not raw:
            episodes = {name: value for name, value in episodes.items() if not name.endswith("/raw")}
        append(folder, episodes, {"spec": describe(env.spec), "policy": {"heads": heads}})
    return folder


def clone(folder: Path, discrete: bool = False, algo: dict | None = None, memmap: bool = False, **settings) -> Clone:
    seed_global(2)
    data, env = Episodes(str(folder), validation=0.2, memmap=memmap), partial(ENV, continuous_actions=not discrete)
    return Clone(data, env, PPO(**(algo or {})), NETWORK, batch_size=32, eval_episodes=5, seed=3, **settings)


def fit(task: Clone, folder: Path, resume=None, **trainer) -> dict:
    settings = {"evaluate_every": 0, "checkpoint_every": 1, "progress": "off", **trainer}
    config = {"algo": {"critic": "concat"}, "network": {"_target_": "marl.networks.MLP", "hidden": [16]}}
    optimizer = OptimizerConfig(lr=0.01)
    return Trainer(**settings).fit(task, folder, optimizer=optimizer, seed=3, resume=resume, config=config)


def test_the_loss_is_the_likelihood_of_the_teachers_actions(tmp_path):
    task = clone(dataset(tmp_path / "data"), epochs=1)
    batch = next(task.batches(0))
    actor, rows = task.loss.actors["agents"], batch["agents"]
    loc, std = actor.head.loc_std(actor(rows["observation"]))
    log_prob = torch.distributions.Normal(loc, std).log_prob(rows["raw"]).sum(-1)
    figures = task.loss(batch)
    torch.testing.assert_close(figures["loss"], -log_prob.mean())
    torch.testing.assert_close(figures["error"], (loc.tanh() - rows["raw"].tanh()).abs().mean().detach())
    assert task.parts() == {"actor": task.loss.actors}
    assert not any(p.requires_grad for p in task.loss.critics.parameters())


@pytest.mark.parametrize("discrete", [False, True])
def test_a_clone_comes_to_act_as_its_teacher(tmp_path, discrete):
    task = clone(dataset(tmp_path / "data", discrete), discrete, epochs=25)
    before = task.evaluate()
    summary = fit(task, tmp_path / "run")
    after = summary["final"]
    assert after["validation_loss"] < before["validation_loss"] - 0.1
    if discrete:
        assert after["validation_accuracy"] > before["validation_accuracy"] + 0.05
    else:
        assert after["validation_error"] < before["validation_error"]
    assert after["episode_return"]["episodes"] == 5
    loaded = Policy.load(tmp_path / "run")  # as any other agents' run: evaluated, exported, played with
    observed = torch.randn(4, 3, loaded.spec.groups["agents"].observation_size)
    actor = task.loss.actors["agents"]
    assert torch.equal(loaded.act(observed), actor.head.to_env(actor.act(observed, deterministic=True)[0]))


@pytest.mark.parametrize("raw", [True, False])
def test_hybrid_actions_are_cloned_number_by_number_and_choice_by_choice(tmp_path, raw):
    seed_global(1)
    make = partial(VmasEnv, "simple_reference", max_steps=12, fast="off", words="discrete")
    env = make(num_envs=10, seed=0, device="cpu")
    actors, _ = build_networks(PPO(), env.spec, partial(MLP, hidden=[8], init="orthogonal", last_gain=2.0))
    head = actors["agents"].head
    for seed in (0, 1):
        episodes = record(env, Players(actors), seed)
        recovered = to_raw(head, episodes["agents/action"])
        torch.testing.assert_close(recovered[..., 2:], episodes["agents/raw"][..., 2:], rtol=0, atol=0)
        inside = episodes["agents/raw"][..., :2].abs() < 3
        torch.testing.assert_close(
            recovered[..., :2][inside], episodes["agents/raw"][..., :2][inside], rtol=1e-3, atol=1e-3
        )
        if not raw:
            del episodes["agents/raw"]
        append(tmp_path / "data", episodes, {"spec": describe(env.spec), "policy": {"heads": {"agents": head.name}}})
    data = Episodes(str(tmp_path / "data"), validation=0.2, memmap=False)
    task = Clone(data, make, PPO(), NETWORK, batch_size=32, eval_episodes=5, seed=3, epochs=25)
    batch = next(task.batches(0))
    actor, rows = task.loss.actors["agents"], batch["agents"]
    params = actor(rows["observation"])
    loc, std = actor.head.continuous.loc_std(params[..., :4])
    word = torch.distributions.Categorical(logits=params[..., 4:])
    log_prob = torch.distributions.Normal(loc, std).log_prob(rows["raw"][..., :2]).sum(-1)
    figures = task.loss(batch)
    torch.testing.assert_close(figures["loss"], -(log_prob + word.log_prob(rows["raw"][..., 2])).mean())
    miss = (loc.tanh() - rows["raw"][..., :2].tanh()).abs().mean()  # the range is [-1, 1]
    torch.testing.assert_close(figures["error"], miss.detach())
    right = (params[..., 4:].argmax(-1) == rows["raw"][..., 2]).float().mean()
    torch.testing.assert_close(figures["accuracy"], right)
    before = task.evaluate()
    after = fit(task, tmp_path / "run")["final"]
    assert after["validation_loss"] < before["validation_loss"] - 0.1
    assert after["validation_accuracy"] > before["validation_accuracy"] + 0.05


@pytest.mark.parametrize("algo", [DDPG(), QLearning()])
def test_actors_without_a_likelihood_are_cloned_by_squared_error_and_by_value(tmp_path, algo):
    discrete = isinstance(algo, QLearning)
    seed_global(2)
    data = Episodes(str(dataset(tmp_path / "data", discrete)), validation=0.2)
    env = partial(ENV, continuous_actions=not discrete)
    task = Clone(data, env, algo, NETWORK, epochs=20, batch_size=32, eval_episodes=5, seed=3)
    actor, batch = task.loss.actors["agents"], next(task.batches(0))
    rows = batch["agents"]
    params, taken = actor(rows["observation"]), rows["raw"]
    if discrete:
        expected = torch.nn.functional.cross_entropy(params.flatten(0, 1), taken.flatten())
    else:
        unit = actor.head.to_env(taken) / actor.head.half_range - actor.head.centre
        expected = (params.tanh() - unit).square().sum(-1).mean()
    torch.testing.assert_close(task.loss(batch)["loss"], expected)
    fit(task, tmp_path / "clone")
    after = task.loss(batch)["loss"].item()
    assert after < 0.8 * expected.item(), (after, expected)  # what is left is the teacher's own noise


def test_mappo_goes_on_from_a_clone_with_a_critic_that_knows_its_worth(tmp_path):
    task = clone(dataset(tmp_path / "data"), epochs=60, critic_coef=1.0, algo={"critic": "concat", "gamma": 0.9})
    summary = fit(task, tmp_path / "run")
    assert "validation_value_loss" not in summary["final"]
    warm = OnPolicy(partial(ENV, num_envs=6), PPO(critic="concat", minibatch_size=60), NETWORK, frames=600)
    loaded = transfer.load_weights(warm, tmp_path / "run" / "checkpoints" / "last.pt", strict=False)
    assert not loaded.missing and not loaded.mismatched and not loaded.skipped
    observed = torch.randn(4, 3, task.spec.groups["agents"].observation_size)
    assert torch.equal(warm.loss.actors["agents"](observed), task.loss.actors["agents"](observed))
    values, rows = task._values("agents")[task.data.train], task.loader.rows["agents", "return"][task.data.train]
    assert (values - rows).square().mean() < 0.5 * rows.var()  # an untrained critic is no better than the mean


def test_returns_are_discounted_within_episodes_and_bootstrapped_where_cut_off():
    reward, end = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]]), torch.tensor([[100.0], [10.0]])
    terminated = torch.tensor([False, True, False, False, False])
    got = discounted(reward, terminated, end, torch.tensor([2, 3]), 0.5)
    assert got.flatten().tolist() == [2.0, 2.0, 4 + 4 + 4 + 1.25, 8 + 8 + 2.5, 16 + 5.0]


def test_the_raw_action_is_found_again_where_it_was_not_kept(tmp_path):
    actors, env = teacher()
    head = actors["agents"].head
    raw = torch.tensor([-8.0, -2.0, 0.0, 0.3, 3.0, 20.0]).view(6, 1, 1).expand(6, 3, 2)
    recovered = to_raw(head, head.to_env(raw))
    torch.testing.assert_close(recovered[1:5], raw[1:5], atol=1e-4, rtol=1e-4)
    assert recovered.isfinite().all() and torch.allclose(head.to_env(recovered), head.to_env(raw), atol=2e-6)
    with_raw, lost = (clone(dataset(tmp_path / str(raw), raw=raw), epochs=1) for raw in (True, False))
    recorded, recovered = (task.loader.rows["agents", "raw"] for task in (with_raw, lost))
    inside = recorded.abs() < 4  # beyond, float32 cannot tell the squashed actions apart
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(recorded[inside], recovered[inside], atol=1e-3, rtol=1e-3)


def test_normalisation_is_learned_from_the_training_episodes_alone(tmp_path):
    task = clone(dataset(tmp_path / "data"), epochs=1, algo={"normalize_observation": True})
    observed = task.data.steps["agents", "observation"][task.data.train].flatten(0, 1)
    out = task.loss.actors["agents"].inputs(observed.unsqueeze(1).expand(-1, 3, -1))
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(out.shape[-1]), atol=2e-2, rtol=0)


def dagger(folder: Path, source: Path) -> Clone:
    return clone(folder, epochs=4, dagger_every=1, dagger_episodes=3, dagger_teacher=str(source), dagger_labels="mode")


def test_dagger_adds_what_the_teacher_would_have_done_where_the_learner_went(tmp_path):
    policy = clone(dataset(tmp_path / "data"), epochs=1)
    fit(policy, tmp_path / "teacher")
    task = dagger(tmp_path / "data", tmp_path / "teacher")
    first = len(task.data.train)
    task.collect(0)
    assert len(task.loader) == -(-first // 32)
    task.collect(1)
    assert len(task.loader.rows) == first + 3 * 12 and task.metrics() == {"steps": float(first + 36)}
    new, head = task.loader.rows[first:]["agents"], policy.loss.actors["agents"]
    torch.testing.assert_close(new["raw"], head.act(new["observation"], deterministic=True)[0], atol=1e-5, rtol=1e-4)
    assert task.steps_per_iteration == -(-(first + 3 * 36) // 32)


def test_dagger_resumes_to_the_same_bits(tmp_path):
    fit(clone(dataset(tmp_path / "data"), epochs=1), tmp_path / "teacher")
    whole, half, rest = (dagger(tmp_path / "data", tmp_path / "teacher") for _ in range(3))
    seed_global(5)
    fit(whole, tmp_path / "whole")
    seed_global(5)
    fit(half, tmp_path / "half", max_iterations=2)
    fit(rest, tmp_path / "half", resume=tmp_path / "half" / "checkpoints" / "last.pt")
    for name, value in whole.loss.state_dict().items():
        assert torch.equal(value, rest.loss.state_dict()[name]), name


@pytest.mark.parametrize("discrete", [False, True])
def test_names_of_figures_are_known_before_training(tmp_path, discrete):
    task = clone(dataset(tmp_path / "data", discrete), discrete, epochs=1)
    names = task.figure_names()
    for figure in task.evaluate():
        expect(names, figure, "trainer.monitor")
    with pytest.raises(UserError, match="'validation_los': .*did you mean 'validation_loss'"):
        expect(names, "validation_los", "callbacks.early_stopping.monitor")


def test_clones_are_recorded_at_evaluations(tmp_path):
    task, kwargs = clone(dataset(tmp_path / "data"), epochs=1), {"n_agents": 3}
    env = {"_target_": "envs.vmas.env.VmasEnv", "scenario": "balance", "max_steps": 3, "scenario_kwargs": kwargs}
    Trainer(progress="off").fit(task, tmp_path / "run", callbacks=[Replay(thumbnail=0)], config={"env": env})
    (path,) = (tmp_path / "run" / "replays").iterdir()
    assert Recording.load(path).action["agents"].shape == (3, 1, 3, 2)


def test_a_memory_mapped_set_gives_the_same_batches(tmp_path):
    folder = dataset(tmp_path / "data")
    plain, mapped = clone(folder, epochs=1), clone(folder, epochs=1, memmap=True)
    for a, b in zip(plain.batches(0), mapped.batches(0), strict=True):
        assert torch.equal(a["agents", "raw"], b["agents", "raw"])


def test_mistakes_are_one_sentence(tmp_path):
    folder = dataset(tmp_path / "data")
    with pytest.raises(UserError, match=r"task\.batch_size=5000: must be at most 192"):
        Clone(Episodes(str(folder), validation=0.2), ENV, PPO(), NETWORK, batch_size=5000)
    with pytest.raises(UserError, match="env: its agents are not those of .*data"):
        Clone(Episodes(str(folder)), partial(ENV, scenario_kwargs={"n_agents": 4}), PPO(), NETWORK, batch_size=32)
    with pytest.raises(UserError, match="task.dagger_teacher=null: the data don't name their teacher"):
        clone(folder, dagger_every=1)
    with pytest.raises(UserError, match="task.dagger_every=30: no round would come; it must be less than epochs=30"):
        clone(folder, dagger_every=30)
    with pytest.raises(UserError, match="task.critic_coef=0.5: not with task.dagger_every"):
        clone(folder, dagger_every=1, critic_coef=0.5)
    with pytest.raises(UserError, match="network: has a memory, which cloning does not train"):
        Clone(Episodes(str(folder)), ENV, PPO(), partial(LSTM, hidden=8), batch_size=32)


def test_a_teacher_may_have_a_memory():
    seed_global(1)
    env = ENV(num_envs=4, seed=0, device="cpu")
    actors, _ = build_networks(PPO(), env.spec, partial(LSTM, hidden=8))
    player = Players(actors, deterministic=True)
    both = [record(env, player, seed) for seed in (0, 0)]
    assert all(torch.equal(both[0][name], value) for name, value in both[1].items())  # begins without memories
    T, E = 12, 4
    assert both[0]["length"].tolist() == [T] * E
    observed = both[0]["agents/observation"].unflatten(0, (E, T)).transpose(0, 1)
    actor = actors["agents"]
    with torch.no_grad():
        params, _ = actor.unroll(observed, torch.zeros(E, *actor.memory_shape))
    expected = actor.head.mode(params).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(both[0]["agents/raw"], expected, atol=1e-6, rtol=1e-5)
