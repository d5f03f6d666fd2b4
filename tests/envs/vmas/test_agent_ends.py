"""Scenarios whose agents end each on its own, come and go and may not choose everything, by kernel and by simulator."""

import shutil

import pytest
import torch

from envs.base import EnvError
from envs.vmas.env import VmasEnv

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")
CASES = {"Arrive": {}, "Visit": {"continuous_actions": False}, "Veil": {"continuous_actions": False}}
GROUP = "agents"


def make(name, fast="off", num_envs=7, max_steps=25, **settings):
    path = f"tests.envs.vmas.ends_cases.{name}"
    settings = CASES.get(name, {}) | settings
    return VmasEnv(path, num_envs=num_envs, max_steps=max_steps, seed=2, fast=fast, pool_every=20, **settings)


def leaves(moved):
    """What a transition holds, by name."""
    out = {"terminated": moved.terminated, "truncated": moved.truncated}
    for kind in ("observation", "next_observation", "reward", "agent_terminated", "agent_truncated"):
        out |= {f"{kind}/{name}": value for name, value in getattr(moved, kind).items()}
    return out


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if value.dtype == torch.bool:
            assert torch.equal(ours[key], value), key
        else:
            torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_what_the_scenario_says(name):
    """Every field against the simulator's own state, read from outside."""
    env = make(name)
    group, scenario = env.spec.groups[GROUP], env.simulator.scenario
    ends = name != "Veil"
    assert group.ends == ends and group.masks == (("action", "alive") if name != "Arrive" else ("alive",))
    seen, differs = torch.zeros(5, dtype=torch.int64), 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        alive = env.masks()[GROUP]["alive"]
        moved = env.step(env.random_action(generator))
        go, after = ~moved.done, env.masks()[GROUP]["alive"]
        done = scenario.done()
        told = torch.stack([scenario.alive(a) for a in env.simulator.agents], 1) if name != "Arrive" else True
        now = (told & ~done) if ends else told
        assert torch.equal(after, now)  # after the auto-reset, and so everywhere
        raw = torch.stack([torch.cat([a.state.pos, a.state.vel], -1) for a in env.simulator.agents], 1)
        assert torch.equal(moved.observation[GROUP], torch.where(now.unsqueeze(-1), raw, 0.0))
        shown = (alive | now) if ends else now
        led = torch.where(shown.unsqueeze(-1), raw, 0.0)
        assert torch.equal(moved.next_observation[GROUP][go], led[go])
        gain = torch.stack([scenario.reward(a) for a in env.simulator.agents], 1)
        assert torch.equal(moved.reward[GROUP][go], torch.where(alive, gain, 0.0)[go])
        assert not moved.reward[GROUP][~alive].any()
        if name == "Visit":
            mask = torch.stack([scenario.action_mask(a) for a in env.simulator.agents], 1)
            assert torch.equal(env.masks()[GROUP]["action"], mask)
            upper = moved.next_observation[GROUP][..., 1:2] > 0  # also where the episode was over and a reset followed
            final = torch.cat([torch.ones_like(upper), upper.expand(-1, -1, 8)], -1)
            assert torch.equal(env.final_masks()[GROUP][alive], final[alive])
            differs += int((final != mask)[alive & moved.done.unsqueeze(-1)].sum())
        if not ends:
            assert not moved.agent_terminated and not moved.agent_truncated
            continue
        terminated, truncated = moved.agent_terminated[GROUP], moved.agent_truncated[GROUP]
        assert torch.equal(terminated[go], (alive & ~now)[go]) and not truncated[go].any()
        assert torch.equal((terminated | truncated)[moved.done], alive[moved.done])  # all that were left end with it
        assert not truncated[moved.terminated].any() and not (terminated & truncated).any()
        where_it_ended = moved.next_observation[GROUP][terminated & go.unsqueeze(-1)]
        assert torch.equal(where_it_ended, raw[terminated & go.unsqueeze(-1)])
        seen += torch.stack(
            [
                terminated.any(),
                truncated.any(),
                moved.terminated.any(),
                moved.truncated.any(),
                (terminated.any(-1) & go).any(),
            ]
        ).long()
    assert (differs > 0) == (name == "Visit")
    assert not ends or (seen > 0)[[0, 1, 3, 4]].all() and (name == "Visit" or seen[2] > 0)


def test_an_agent_that_comes_back_begins_again():
    """Slot 0 is there for 3 steps and away for 3: its episodes end by termination, and it sees zeros in between."""
    env = make("Visit", max_steps=12)
    still = {GROUP: torch.zeros(7, 3, 1, dtype=torch.int64)}
    alive, ended = [], []
    for _ in range(12):
        alive.append(env.masks()[GROUP]["alive"][:, 0].clone())
        moved = env.step(still)
        ended.append((moved.agent_terminated[GROUP][:, 0], moved.agent_truncated[GROUP][:, 0]))
    assert torch.equal(torch.stack(alive)[:, 0], torch.tensor([True] * 3 + [False] * 3 + [True] * 3 + [False] * 3))
    assert [t for t in range(12) if ended[t][0].all()] == [2, 8] and not any(c.any() for _, c in ended)
    assert moved.truncated.all() and env.masks()[GROUP]["alive"][:, 0].all()  # all have begun anew


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_the_simulator(name):
    fast, eager = make(name, "kernel"), make(name)
    assert fast.path == "kernel" and eager.path == "eager"
    one, two = fast.reset(5)[0], eager.reset(5)[0]
    assert one.keys() == two.keys() == {GROUP} and torch.equal(one[GROUP], two[GROUP])
    generator, ended = torch.Generator().manual_seed(0), 0
    for _ in range(130):
        action = eager.random_action(generator)
        same(leaves(fast.step(action)), leaves(moved := eager.step(action)))
        same(fast.masks()[GROUP], eager.masks()[GROUP])
        same(fast.final_masks(), eager.final_masks())
        ended += int(moved.done.sum())
    assert ended > 20 and fast.figures()["kernel_checks"] > 1


def bound(env, steps):
    """A rollout of `steps` in buffers: {name: [T, …]}."""
    E, group = env.num_envs, env.spec.groups[GROUP]
    A, F = group.n_agents, group.observation_size
    observed, led, reward = torch.zeros(steps + 1, E, A, F), torch.zeros(steps, E, A, F), torch.zeros(steps, E, A)
    flags = [torch.zeros(steps, E, dtype=torch.bool) for _ in range(2)]
    ends = tuple(torch.zeros(steps, E, A, dtype=torch.bool) for _ in range(2)) if group.ends else None
    env.bind_rollout({GROUP: observed[1:]}, {GROUP: led}, {GROUP: reward}, *flags, ends={GROUP: ends} if ends else None)
    generator, masks = torch.Generator().manual_seed(1), []
    for t in range(steps):
        env.step_into(t, env.random_action(generator))
        masks.append(env.masks()[GROUP]["alive"])
    out = {"observed": observed[1:], "led": led, "reward": reward, "terminated": flags[0], "truncated": flags[1]}
    out |= {} if ends is None else {"agent_terminated": ends[0], "agent_truncated": ends[1]}
    return out | {"alive": torch.stack(masks)}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_rollouts_and_snapshots_on_both_paths(name):
    fast, eager = make(name, "kernel"), make(name)
    for env in (fast, eager):
        env.reset(3)
        bound(env, 33)
    saved = {env: env.snapshot() for env in (fast, eager)}
    expected = {env: bound(env, 40) for env in (fast, eager)}
    same(expected[fast], expected[eager])
    for env in (fast, eager):
        again = make(name, "kernel" if env is fast else "off")
        for one in (again, env):
            one.restore(saved[env])
            resumed = bound(one, 40)
            assert all(torch.equal(value, resumed[key]) for key, value in expected[env].items())
    other = make(name)
    other.restore(saved[fast])  # a run on a kernel is resumed without one
    same(bound(other, 40), expected[fast])
    with pytest.raises(EnvError, match="it has no agent_masks/agents/(alive|action) of"):
        other.restore({key: value for key, value in saved[fast].items() if "agent_masks" not in key})


def test_scenarios_without_such_methods_say_nothing():
    env = VmasEnv("balance", num_envs=3, fast="off")
    assert env.world.agent_masks is None and env.masks() == {}
    assert env.world.pool.observed.keys() == {GROUP} and not env.spec.groups[GROUP].ends


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        (
            "Unequal",
            {"continuous_actions": False},
            r"action_mask of agent_0 returned torch.bool \[7, 5\]; must be a bool tensor \[7, 9\]",
        ),
        ("Visit", {"continuous_actions": True}, "has an action_mask, and masks are of discrete actions only"),
        ("Strange", {}, r"done of the scenario returned torch.bool \[7, 2\] .* a bool tensor \[7\], or \[7, 3\] where"),
    ],
)
def test_mistakes_are_one_sentence(name, settings, sentence):
    with pytest.raises(EnvError, match=sentence):
        make(name, **settings)
