"""VmasEnv keeps the contract: shapes, auto-reset, true final observations, truncation, action kinds."""

from functools import partial

import pytest
import torch
from torch.distributions import Distribution

from envs.base import Env, EnvError
from envs.vmas.env import VmasEnv as AnyVmasEnv

VmasEnv = partial(AnyVmasEnv, fast="off")  # the eager path; tests/envs/kernel holds the kernels to it


def play(env: AnyVmasEnv, steps: int, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(env.random_action(generator)) for _ in range(steps)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"continuous_actions": False},
        {"continuous_actions": False, "multi_discrete": True},
        {"scenario": "simple_world_comm", "global_state": True},
        {"scenario": "simple_world_comm", "continuous_actions": False},
        {"scenario": "simple_world_comm", "continuous_actions": False, "multi_discrete": True},
        {"scenario": "football", "scenario_kwargs": {"n_blue_agents": 2, "n_red_agents": 2, "ai_red_agents": False}},
        {"scenario": "football", "scenario_kwargs": {"n_blue_agents": 2, "n_red_agents": 2, "dict_obs": True}},
    ],
    ids=lambda s: ",".join(str(v) for v in s.values()),
)
def test_shapes_and_types_are_those_of_the_spec(settings):
    env = VmasEnv(**{"num_envs": 5, "max_steps": 3, **settings})
    assert isinstance(env, Env)
    observation, state = env.reset(0)
    moved = play(env, 4)[-1]
    assert set(observation) == set(env.spec.groups) == set(moved.reward)
    for name, group in env.spec.groups.items():
        shape = (5, group.n_agents, group.observation_size)
        for observed in (observation[name], moved.observation[name], moved.next_observation[name]):
            assert observed.shape == shape and observed.dtype == torch.float32 and observed.isfinite().all()
        assert moved.reward[name].shape == shape[:2] and moved.reward[name].dtype == torch.float32
        action = env.random_action()[name]
        assert action.shape == (5, group.n_agents, group.action.size)
        assert action.is_floating_point() == (group.action.kind == "continuous")
        for value in moved.info[name].values():
            assert value.shape[:2] == shape[:2]
    assert moved.terminated.dtype == moved.truncated.dtype == torch.bool and moved.terminated.shape == (5,)
    if settings.get("global_state"):
        assert state.shape == moved.state.shape == moved.next_state.shape == (5, env.spec.state_size)
        assert env.spec.state_size == 6 * len(env.simulator.world.entities)
    else:
        assert state is moved.state is moved.next_state is env.spec.state_size is None


def test_random_actions_fill_their_ranges():
    env = VmasEnv("simple_world_comm", num_envs=400, max_steps=None)
    group = env.spec.groups["lead_adversary"].action
    action = env.random_action(torch.Generator().manual_seed(0))["lead_adversary"]
    assert (action >= group.low).all() and (action <= group.high).all()
    assert torch.allclose(action.amin(0), group.low, atol=0.05)
    assert torch.allclose(action.amax(0), group.high, atol=0.05)
    assert group.low[0].tolist() == [-1, -1, 0, 0, 0, 0] and group.high[0].tolist() == [1] * 6


def test_a_pool_as_large_as_the_batch_has_one_state_more(own_scenario):
    """An evaluation has a batch of another size than training has, which may be the pool's."""
    same, more = (VmasEnv(own_scenario, num_envs=5, max_steps=None, pool_size=size) for size in (5, 6))
    assert (same.reset(1)[0]["agents"] == more.reset(1)[0]["agents"]).all()
    for one, other in zip(play(same, 20), play(more, 20), strict=True):
        assert torch.equal(one.observation["agents"], other.observation["agents"])


def test_environments_restart_on_their_own(own_scenario):
    env = VmasEnv(own_scenario, num_envs=5, max_steps=None, pool_size=66)
    observation, _ = env.reset(1)
    before, ended = observation["agents"][:, 0], 0
    for moved in play(env, 40):
        after, true = moved.observation["agents"][:, 0], moved.next_observation["agents"][:, 0]
        count, limit, label = true.unbind(-1)
        assert torch.equal(count, before[:, 0] + 1)  # the true next observation, also of an environment that ends
        assert torch.equal(limit, before[:, 1]) and torch.equal(label, before[:, 2])
        assert torch.equal(moved.terminated, count >= limit) and not moved.truncated.any()
        assert torch.equal(after[~moved.done], true[~moved.done])  # the others go on
        fresh = env.world.pool.fresh.tensors["scenario.label"].value
        for row in after[moved.done]:
            assert row[0] == 0 and row[2] in fresh  # restarted in a state that a reset made
        restarted = after[moved.done, 2].tolist()
        assert len(set(restarted)) == len(restarted)  # no two at once in the same state
        ended += int(moved.done.sum())
        before = after
    assert ended > 20


def test_time_limit_truncates_and_termination_wins(own_scenario):
    kwargs = {"shortest": 3, "longest": 5}
    env = VmasEnv(own_scenario, num_envs=64, max_steps=4, scenario_kwargs=kwargs)
    observation, _ = env.reset(0)
    limit = observation["agents"][:, 0, 1]
    first = play(env, 4)
    assert torch.equal(first[2].terminated, limit == 3) and not first[2].truncated.any()
    survived = limit > 3
    assert torch.equal(first[3].terminated & survived, limit == 4)  # task and time end together: terminated
    assert torch.equal(first[3].truncated & survived, limit == 5)
    assert not (first[3].terminated & first[3].truncated).any()
    final = first[3].next_observation["agents"][:, 0, 0]
    assert (final[first[3].truncated] == 4).all()
    assert (first[3].observation["agents"][:, 0, 0][first[3].done] == 0).all()


def test_the_pool_changes_every_pool_every_steps(own_scenario):
    env = VmasEnv(own_scenario, num_envs=5, max_steps=None, pool_every=4)
    env.reset(0)
    labels = []
    for _ in range(9):
        play(env, 1)
        labels.append(env.world.pool.fresh.tensors["scenario.label"].value.clone())
    assert torch.equal(labels[0], labels[2]) and torch.equal(labels[3], labels[6])
    assert not torch.equal(labels[2], labels[3]) and not torch.equal(labels[6], labels[7])
    env.refresh_pool()
    assert not torch.equal(labels[8], env.world.pool.fresh.tensors["scenario.label"].value)


def test_tensors_of_the_pool_are_the_same_read_one_by_one_or_by_a_walk():
    pool = VmasEnv("simple_spread", num_envs=5).world.pool
    pool.refresh()
    one_by_one = {path: pool.read_fresh(path) for path in pool._fresh.tensors}
    pool._walked = False
    assert one_by_one.keys() == pool.fresh.tensors.keys()
    assert all(slot.value is one_by_one[path] for path, slot in pool.fresh.tensors.items())


def test_constants_are_not_state_and_shared_tensors_stay_shared(own_scenario):
    env = VmasEnv(own_scenario, num_envs=5, max_steps=None)
    env.reset(0)
    play(env, 10)
    assert env.world.pool.axes["scenario.table"] is None and env.world.pool.axes["scenario.count"] == 0
    scenario = env.simulator.scenario
    assert scenario.alias is scenario.count
    assert scenario.table.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_infos_are_stacked_and_nested_ones_joined_by_dots(own_scenario):
    moved = play(VmasEnv(own_scenario, num_envs=5), 1)[0]
    info = moved.info["agents"]
    assert set(info) == {"count", "both", "own.limit"} and info["both"].shape == (5, 2, 2)
    assert torch.equal(info["count"], moved.next_observation["agents"][..., 0])


def test_actions_are_clamped_and_checked():
    env = VmasEnv("balance", num_envs=4)
    env.reset(0)
    saved = env.snapshot()
    big = env.step({"agents": torch.full((4, 3, 2), 9.0)})
    env.restore(saved)
    assert torch.equal(
        big.next_observation["agents"], env.step({"agents": torch.ones(4, 3, 2)}).next_observation["agents"]
    )
    for wrong in (
        {},
        {"agent": torch.zeros(4, 3, 2)},
        {"agents": torch.zeros(4, 3)},
        {"agents": torch.full((4, 3, 2), float("nan"))},
    ):
        with pytest.raises(EnvError):
            env.step(wrong)
    with pytest.raises(EnvError, match="choices"):
        discrete = VmasEnv("balance", num_envs=4, continuous_actions=False)
        discrete.step({"agents": torch.full((4, 3, 1), 9)})


@pytest.mark.parametrize("multi", [False, True])
def test_discrete_actions_push_where_vmas_says(multi):
    env = VmasEnv("mpe/simple", num_envs=9, continuous_actions=False, multi_discrete=multi)
    assert env.spec.groups["agents"].action.nvec == ((3, 3) if multi else (9,))
    env.reset(0)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    action = pairs[:, None] if multi else torch.arange(9)[:, None, None]
    env.step({"agents": action})
    push = torch.tensor([0.0, -1.0, 1.0])  # VMAS: choice 0 rests, 1 is down, 2 is up
    assert torch.equal(env.simulator.agents[0].state.vel.sign(), push[pairs])


def test_one_collision_elsewhere_changes_nobody_elses_reward():
    """VMAS's world.collides is an any over the batch; here a near miss costs the same whichever others touch."""

    def near_miss(apart: float) -> torch.Tensor:
        env = VmasEnv("navigation", num_envs=2, max_steps=None, scenario_kwargs={"n_agents": 2})
        env.reset(0)
        a, b = env.simulator.agents
        for agent, x in ((a, 0.0), (b, 0.203)):  # radii 0.1: within the penalty's distance, not touching
            agent.state.pos = torch.tensor([[x, 0.0], [x if x == 0 else apart, 0.0]])
            agent.state.vel = torch.zeros(2, 2)
        return env.step({"agents": torch.zeros(2, 2, 2)}).info["agents"]["agent_collisions"]

    alone, beside = near_miss(0.9), near_miss(0.198)
    assert torch.equal(alone[0], beside[0]) and (alone[0] == -1).all()
    assert (alone[1] == 0).all() and (beside[1] == -1).all()


def test_refreshing_the_pool_leaves_threads_and_checks_as_they_were(monkeypatch):
    env, settings, threads = VmasEnv("balance", num_envs=4, seed=0), [], torch.get_num_threads()
    checks = Distribution._validate_args  # other libraries switch them off
    env.reset(0)

    def reset():
        settings.append((torch.get_num_threads(), Distribution._validate_args))
        raise RuntimeError("a reset fails")

    monkeypatch.setattr(env.world.pool.fresh_simulator, "reset", reset)
    try:
        torch.set_num_threads(2)
        Distribution.set_default_validate_args(True)
        with pytest.raises(RuntimeError, match="a reset fails"):
            env.refresh_pool()
        assert settings == [(1, False)]
        assert torch.get_num_threads() == 2 and Distribution._validate_args
    finally:
        torch.set_num_threads(threads)
        Distribution.set_default_validate_args(checks)


@pytest.mark.parametrize("fast", ["off", "kernel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_carry_no_gradients_and_keep_no_graph_of_the_actions(fast, dtype):
    env = VmasEnv("transport", num_envs=4, max_steps=3, pool_every=3, fast=fast, seed=0)
    twin = VmasEnv("transport", num_envs=4, max_steps=3, pool_every=3, fast=fast, seed=0)
    into = {name: torch.empty(7, 4, g.n_agents, g.observation_size) for name, g in env.spec.groups.items()}
    reward = {name: torch.empty(7, 4, g.n_agents) for name, g in env.spec.groups.items()}
    flags = [torch.empty(7, 4, dtype=torch.bool) for _ in range(2)]
    twin.bind_rollout(into, {name: value.clone() for name, value in into.items()}, reward, *flags)
    env.reset(0), twin.reset(0)
    generator = torch.Generator().manual_seed(0)
    for t in range(7):  # over the ends of episodes and new pools of resets
        action = {name: value.to(dtype).requires_grad_() for name, value in env.random_action(generator).items()}
        step = env.step(action)
        twin.step_into(t, action)
        found = [*step.observation.values(), *step.next_observation.values(), *step.reward.values()]
        assert not any(value.requires_grad for value in [*found, *into.values(), *reward.values()])
        if fast == "kernel":
            assert not any(value.requires_grad for value in env.stepper.kernel._kept.values())
        for name in into:
            assert torch.equal(step.observation[name], into[name][t])
            assert torch.equal(step.reward[name], reward[name][t])


@pytest.mark.parametrize("default", ["device", "dtype"])
@pytest.mark.parametrize("scenario", ["transport", "debug/goal"])
def test_what_torch_makes_by_default_moves_no_step(scenario, default):
    env, twin = (VmasEnv(scenario, num_envs=4, max_steps=3, fast="kernel", seed=0) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for each in (env, twin):
        each.reset(0)
        each.step(each.random_action(torch.Generator().manual_seed(1)))
    for _ in range(7):
        action = env.random_action(generator)
        expected = twin.step(action)
        try:
            torch.set_default_dtype(torch.float64 if default == "dtype" else torch.float32)
            with torch.device("meta" if default == "device" else "cpu"):
                found = env.step(action)
        finally:
            torch.set_default_dtype(torch.float32)
        for name in env.spec.groups:
            assert torch.equal(found.observation[name], expected.observation[name])
            assert torch.equal(found.reward[name], expected.reward[name])
            assert found.reward[name].dtype == torch.float32
        assert torch.equal(found.truncated, expected.truncated)


def test_actions_of_another_device_are_refused_before_anything_changes():
    env, twin = (VmasEnv("transport", num_envs=4, max_steps=3, pool_every=2, fast="kernel", seed=0) for _ in range(2))
    env.reset(0), twin.reset(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):  # every second step begins with new resets
        action = env.random_action(generator)
        with pytest.raises(EnvError, match="the actions of 'agents' lie on meta, and the environment on cpu"):
            env.step({name: value.to("meta") for name, value in action.items()})
        assert torch.equal(env.step(action).observation["agents"], twin.step(action).observation["agents"])
