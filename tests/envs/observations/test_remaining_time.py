"""The share of an episode that remains: by hand, in every environment that has a time limit, on every path."""

from functools import partial
from pathlib import Path

import gymnasium
import pytest
import torch
from omegaconf import OmegaConf

from agents.deploy.live_session import Session
from agents.evaluation.dataset_recording import record
from agents.evaluation.episode_loop import Players
from agents.players import scripted
from agents.policies.policy import Policy
from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.adapters.vector_env import VectorEnv
from envs.base import EnvError
from envs.observation_parts import feature_names
from envs.remaining_time import NAME, without_time
from envs.rendering.live_world import program, world
from envs.rendering.recording import record as film
from envs.spec import describe, spec_of
from envs.vmas.env import VmasEnv
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from tests.envs.vector_cases import make

VMAS = {
    "balance": {"scenario": "balance"},
    "tag": {"scenario": "mpe/simple_tag"},  # two groups
    "padded": {"scenario": "mpe/simple_speaker_listener", "heterogeneous": "pad", "fast": "off"},
    "ends": {"scenario": "tests.envs.vmas.ends_cases.Visit", "fast": "off", "continuous_actions": False},
    "dictionary": {"scenario": "tests.fixtures.scouts.Watchers", "fast": "off"},
}


def shares(steps, limit):
    return (1 - torch.as_tensor(steps, dtype=torch.float32) / limit).tolist()


@pytest.mark.parametrize("name", VMAS)
def test_vmas_counts_from_one_down_to_nothing(name):
    settings = {"max_steps": 4, "global_state": True, **VMAS[name]}
    env, plain = (VmasEnv(**settings, num_envs=5, seed=1, observe_time=on) for on in (True, False))
    (seen, state), (before, _) = env.reset(3), plain.reset(3)
    assert env.spec.state_size == plain.spec.state_size + 1 and (state[:, -1] == 1).all()
    assert all((value[..., -1] == 1).all() for value in seen.values())
    for name, group in env.spec.groups.items():
        assert group.observation_size == plain.spec.groups[name].observation_size + 1
        assert feature_names(group)[-1] == NAME and len(feature_names(group)) == group.observation_size
        assert torch.equal(without_time(group, seen[name]), before[name])
        assert without_time(plain.spec.groups[name], before[name]) is before[name]
    age, generator = torch.zeros(5), torch.Generator().manual_seed(0)
    for _ in range(11):
        action = env.random_action(generator)
        moved, other = env.step(action), plain.step(action)
        age += 1
        alive = env.masks()
        for name, value in moved.next_observation.items():
            there = value.abs().sum(-1) > 0 if name in alive else torch.ones(value.shape[:2], dtype=torch.bool)
            expected = (1 - age / 4).unsqueeze(-1).expand_as(value[..., -1])
            assert torch.equal(value[..., -1][there], expected[there])
            assert torch.equal(value[..., :-1], other.next_observation[name])
        assert torch.equal(moved.next_state[:, -1], 1 - age / 4) and torch.equal(moved.done, other.done)
        age[moved.done] = 0
        for name, value in moved.observation.items():
            there = alive[name]["alive"] if name in alive else torch.ones(value.shape[:2], dtype=torch.bool)
            expected = (1 - age / 4).unsqueeze(-1).expand_as(value[..., -1]) * there
            assert torch.equal(value[..., -1], expected) and torch.equal(value[..., :-1], other.observation[name])
        assert torch.equal(moved.state[:, -1], 1 - age / 4)


@pytest.mark.parametrize("limit", [7, 100])
def test_a_kernel_says_bitwise_the_same(limit):
    common = {"scenario": "simple_spread", "max_steps": limit, "global_state": True, "observe_time": True}
    kernel, eager = (VmasEnv(**common, num_envs=9, seed=2, fast=fast) for fast in ("kernel", "off"))
    assert kernel.path == "kernel"
    kernel.reset(4), eager.reset(4)
    generator = torch.Generator().manual_seed(0)
    for t in range(limit + 3):
        action = eager.random_action(generator)
        one, two = kernel.step(action), eager.step(action)
        for which in ("observation", "next_observation"):
            ours, theirs = (getattr(moved, which)["agents"][..., -1] for moved in (one, two))
            assert torch.equal(ours, theirs)
        assert torch.equal(one.state[:, -1], two.state[:, -1])
        assert torch.equal(one.next_state[:, -1], two.next_state[:, -1])
        assert one.next_state[0, -1].item() == shares(t % limit + 1, limit)
    saved = kernel.snapshot()
    expected = kernel.step(action).observation["agents"]
    kernel.restore(saved)
    assert torch.equal(kernel.step(action).observation["agents"], expected)


def test_the_browser_s_simulator_says_it(javascript):
    settings = {"scenario": "simple_spread", "max_steps": 5, "observe_time": True}
    live = program(settings)
    page = world(live, settings, seeds=2)
    assert page["groups"]["agents"]["names"][0][-1] == "remaining time" and page["groups"]["agents"]["F"] == 15
    assert [start["o"]["agents"][14::15] for start in page["starts"]] == [[1.0, 1.0, 1.0]] * 2
    offset = sum(
        size
        for key, size in live.places.outputs[: [k for k, _ in live.places.outputs].index(("observation", "agents"))]
    )
    found = javascript(
        f"""
        const program = {live.source}, o = new Float32Array(program.rows), out = [];
        const s = Float32Array.from(start), a = {{[program.actions.agents.key]: new Float32Array(6)}};
        for (let t = 0; t < 5; t++) {{ program.step(s, a, [], [], o); out.push(o[{offset} + 14], o[{offset} + 29]); }}
        return out;""",
        start=torch.tensor(page["starts"][0]["s"]).numpy(),
    )
    assert found == pytest.approx([share for t in range(1, 6) for share in shares([t, t], 5)], abs=1e-7)


def test_gymnasium_counts_every_copy_by_itself():
    env = GymnasiumEnv("CartPole-v1", num_envs=4, max_steps=12, observe_time=True, seed=0)
    assert env.spec.groups["agents"].observation_size == 5
    assert feature_names(env.spec.groups["agents"])[-1] == NAME
    check_counts(env, 12)
    assert GymnasiumEnv("CartPole-v1", num_envs=1, observe_time=True).spec.max_steps == 500  # its own


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_vectorised_environments_count_too(mode):
    gymnasium.register("Countdown-v0", vector_entry_point=make)
    try:
        env = VectorEnv("Countdown-v0", 4, 5, seed=0, kwargs={"mode": mode}, observe_time=True)
    finally:
        del gymnasium.registry["Countdown-v0"]
    check_counts(env, 5)


def check_counts(env, limit):
    """Plays on, counting by hand; snapshots go on with the count."""
    seen, age = env.reset(1)[0]["agents"], torch.zeros(env.num_envs)
    assert (seen[..., -1] == 1).all()
    generator = torch.Generator().manual_seed(0)
    for t in range(40):
        waiting = ~env.masks()["agents"]["alive"][:, 0] if "alive" in env.spec.groups["agents"].masks else age < 0
        assert seen[..., -1][:, 0].tolist() == torch.where(waiting, 0.0, 1 - age / limit).tolist()
        if t == 17:
            saved, action = env.snapshot(), env.random_action(torch.Generator().manual_seed(2))
            expected = env.step(action).observation["agents"]
            env.restore(saved)
            moved = env.step(action)
            assert torch.equal(moved.observation["agents"], expected)
        else:
            moved = env.step(env.random_action(generator))
        age += (~waiting).float()
        led = moved.next_observation["agents"][:, 0, -1]
        assert torch.equal(led[~waiting], (1 - age / limit)[~waiting])
        age[moved.done] = 0
        seen = moved.observation["agents"]


def test_the_dead_of_a_pettingzoo_environment_see_zeros():
    env = PettingZooEnv("tests.envs.host_cases.Parting", num_envs=2, max_steps=50, observe_time=True, kwargs={"cut": 4})
    env.reset(0)
    alive = env.masks()["agents"]["alive"]
    for t in range(1, 5):
        moved = env.step({"agents": torch.zeros(2, 3, 1, dtype=torch.int64)})
        led = moved.next_observation["agents"][..., -1]
        assert torch.equal(led, (1 - t / 50) * alive.float())
        alive = env.masks()["agents"]["alive"]
        assert torch.equal(moved.observation["agents"][..., -1], (1 - t / 50) * alive.float())
    assert not alive.all()


@pytest.mark.parametrize(
    "build",
    [
        partial(VmasEnv, "balance", max_steps=None, fast="off"),
        partial(PettingZooEnv, "tests.envs.host_cases.Parting", max_steps=None),
    ],
)
def test_without_a_limit_nothing_remains(build):
    with pytest.raises(EnvError, match="env.observe_time=true: without a time limit no share .* set env.max_steps"):
        build(num_envs=2, observe_time=True)


def test_environments_that_know_nothing_of_it_refuse_the_key():
    with pytest.raises(UserError, match="observe_time"):
        compose.check(compose.compose(["env=memory", "+env.observe_time=true"]))


@pytest.mark.parametrize(
    ("scenario", "group", "name"), [("simple_tag", "adversary", "simple_tag"), ("balance", "agents", "heuristic")]
)
def test_scripted_players_read_the_rest(scenario, group, name):
    timed, plain = (VmasEnv(scenario, num_envs=3, fast="off", seed=0, observe_time=on) for on in (True, False))
    seen, without = timed.reset(0)[0][group], plain.reset(0)[0][group]
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(
        scripted.make(name, timed, group)(seen, draws[0]), scripted.make(name, plain, group)(without, draws[1])
    )


def test_specs_recordings_runs_and_live_worlds_know_it(tmp_path: Path):
    how = ["env=vmas/balance", "env.observe_time=true", "env.num_envs=4", "env.max_steps=5", "env.fast=off"]
    more = ["algo.normalize_observation=true", "algo.critic=state", "env.global_state=true", "logger=null"]
    sizes = ["algo.rollout_steps=10", "algo.minibatch_size=20", "frames=80", "task.eval_episodes=2"]
    config = compose.check(compose.compose([*how, *more, *sizes, "trainer.progress=off"]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    trainer.fit(task, tmp_path, **build.build_setup(config))
    OmegaConf.save(config, tmp_path / "config.yaml")
    policy = Policy.load(tmp_path)
    group = policy.spec.groups["agents"]
    assert feature_names(group)[-1] == NAME and describe(spec_of(describe(policy.spec))) == describe(policy.spec)
    mean = task.loss.actors["agents"].inputs.norm.mean
    assert mean[-1].item() == pytest.approx(0.6, abs=1e-5)  # of 1, 0.8, …, 0.2: its statistics, too
    episodes = record(task.make_env(seed=0, device="cpu", num_envs=2), Players(task.loss.actors), 0)
    assert set(episodes["agents/observation"][..., -1].flatten().tolist()) == set(shares(range(5), 5))
    settings = {"scenario": "balance", "max_steps": 5, "observe_time": True, "global_state": True}
    settings["scenario_kwargs"] = {"n_agents": 4}
    session = Session(policy, settings)
    session.step()
    assert session.observation["agents"][0, 0, -1].item() == shares(1, 5)
    assert session.hello()["groups"]["agents"]["names"][0][-1] == "remaining time"
    filmed = film(settings, lambda seen: (policy.act({"agents": seen["agents"]}), {}))
    assert filmed.settings["observe_time"] and filmed.lengths == [5]
