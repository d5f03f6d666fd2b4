"""Names of observations and actions on pages: those that a reader of the scenario would give; nothing is changed."""

import pytest
import torch

from envs.rendering.feature_labels import action_labels, observation_labels
from envs.rendering.live_world import single

XY = ("x", "y")
OWN = ["x", "y", "velocity x", "velocity y"]


def world(scenario: str, **settings):
    return single({"scenario": scenario, "max_steps": 9, **settings}, num_envs=1, pool_size=2).world


def test_navigation_sees_its_goal_and_its_rays() -> None:
    names = observation_labels(world("navigation", scenario_kwargs={"n_agents": 3}))
    assert names == {"agents": [[*OWN, "goal x", "goal y", *(f"lidar {i}" for i in range(12))]] * 3}
    several = world("navigation", scenario_kwargs={"n_agents": 2, "observe_all_goals": True, "collisions": False})
    both = [f"goal {i} {axis}" for i in (0, 1) for axis in XY]
    assert observation_labels(several)["agents"] == [[*OWN, *both]] * 2


def test_everybody_is_named_as_the_agent_sees_them() -> None:
    first, _, last = observation_labels(world("mpe/simple_tag"))["adversary"]
    assert first == [*OWN[2:], *OWN[:2], *(f"{thing} {axis}" for thing in ("landmark 0", "landmark 1", "adversary_1",
                     "adversary_2", "agent_0") for axis in XY), "agent_0 velocity x", "agent_0 velocity y"]  # fmt: skip
    assert last[8:12] == ["adversary_0 x", "adversary_0 y", "adversary_1 x", "adversary_1 y"]


def test_what_is_seen_from_here_and_what_is_seen_as_it_is_are_told_apart() -> None:
    teams = {"n_blue_agents": 2, "n_red_agents": 2, "ai_red_agents": False}
    names = observation_labels(world("football", scenario_kwargs=teams))["agent_red"][0]
    assert names[2:10] == [f"Ball {what}{axis}" for what in ("relative ", "relative velocity ", "", "velocity ")
                           for axis in XY]  # fmt: skip
    balance = observation_labels(world("balance"))["agents"][0]
    assert balance[4:10] == [f"{thing} {axis}" for thing in ("package", "line", "package from goal") for axis in XY]


def test_parts_that_the_scenario_names_keep_their_names() -> None:
    names = observation_labels(world("tests.fixtures.scouts.Watchers"))
    rows = [row for rows in names.values() for row in rows]
    parts = [
        part.name for group in world("tests.fixtures.scouts.Watchers").spec.groups.values() for part in group.parts
    ]
    assert parts and all(any(name.startswith(part.replace(".", " ").replace("_", " ")) for name in rows[0])
                         for part in parts)  # fmt: skip


def test_what_depends_on_much_keeps_its_index_and_time_has_its_name() -> None:
    names = observation_labels(world("dispersion", observe_time=True))["agents"][0]
    assert names[:8] == [*OWN, "food_0 x", "food_0 y", "6", "food_1 x"] and names[-1] == "remaining time"


@pytest.mark.parametrize("scenario", ["navigation", "debug/asym_joint"])  # rays; noise on observations
def test_the_world_stays_as_it_was(scenario: str) -> None:
    named, plain = world(scenario), world(scenario)
    before = {path: slot.value for path, slot in named.pool.main.tensors.items()}
    outside = torch.get_rng_state()
    assert observation_labels(named)["agents"][0][:2] == ["x", "y"]
    assert torch.equal(torch.get_rng_state(), outside)
    named.pool.main.refresh()
    for path, slot in named.pool.main.tensors.items():
        assert torch.equal(slot.value, before[path]), path
    assert all(
        "measure" not in vars(sensor) for agent in named.simulator.world.agents for sensor in agent.sensors or ()
    )
    seen, expected = named.reset(), plain.reset()  # the streams went on in the same way
    assert all(torch.equal(seen[key], expected[key]) for key in expected)


def test_actions_are_named_after_what_they_do() -> None:
    assert action_labels(world("balance"))["agents"][0] == ["force x", "force y"]
    names = action_labels(world("debug/diff_drive"))
    assert names == {"diff_drive": [["speed", "turn rate"]], "holo_rot": [["force x", "force y", "torque"]]}
    assert action_labels(world("balance", continuous_actions=False))["agents"][0] == ["choice"]
    talkers = action_labels(world("mpe/simple_reference"))["agents"][0]
    assert talkers == ["force x", "force y", *(f"word {i}" for i in range(10))]
