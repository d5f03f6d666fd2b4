"""Which value holds when: by progress, by a figure, drawn; and what is no curriculum."""

import math
from functools import partial

import pytest
import torch

from agents.curriculum.curriculum import Curriculum
from agents.curriculum.stages import read
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError

ENV = partial(VmasEnv, "balance", num_envs=4, max_steps=10, fast="off", scenario_kwargs={"package_mass": 5})


def curriculum(settings: dict, **more) -> Curriculum:
    return Curriculum({"env": settings, **more}, ENV, seed=0)


def test_by_progress_a_value_holds_from_its_share_of_the_run_on():
    (mass,) = read({"scenario_kwargs": {"package_mass": {0: 1, 0.3: 3, 0.6: 5}}}, "env")
    assert mass.key == "env.scenario_kwargs.package_mass" and mass.values == (1, 3, 5) and not mass.drawn
    assert [mass.by_progress(p) for p in (0, 0.29, 0.3, 0.5, 0.6, 1)] == [0, 0, 1, 1, 2, 2]
    course = curriculum({"scenario_kwargs": {"package_mass": {0: 1, 0.3: 3, 0.6: 5}}, "max_steps": {0: 10, "0.5": 20}})
    assert course.places() == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert course.upcoming() == [(0, 0), (1, 0)]
    changed = [course.advance(k / 10, k) for k in range(11)]
    assert [k for k, each in enumerate(changed) if each] == [3, 5, 6]
    assert course.factory((1, 1)).keywords["scenario_kwargs"] == {"package_mass": 3}
    assert course.factory((1, 1)).keywords["max_steps"] == 20 and ENV.keywords["max_steps"] == 10
    assert course.figures() == {"curriculum/env.scenario_kwargs.package_mass": 5.0, "curriculum/env.max_steps": 20.0}
    course.advance(0.0, 0)  # a longer run is less far; what was reached stays
    assert course.place == (2, 1)


def test_by_a_figure_one_stage_at_a_time_and_each_waits_for_a_new_figure():
    node = {"figure": "episode_return", "above": [0.6, 0.8], "values": [1, 3, 5]}
    course = curriculum({"scenario_kwargs": {"package_mass": node}})
    places = []
    for k, value in enumerate([0.5, 0.9, 0.5, math.nan, 0.79, 0.8, 0.1]):
        course.note({"episode_return": torch.tensor(value), "episodes": 3})
        course.advance(k / 7, k)
        places.append(course.place[0])
    assert places == [0, 1, 1, 1, 1, 2, 2]  # 0.6 is reached at 0.9, 0.8 only by what comes after
    course = curriculum({"scenario_kwargs": {"package_mass": {**node, "figure": "eval/x"}}})
    course.note({"x": 0.95}, evaluated=True)
    assert course.advance(0, 0) and not course.advance(0, 1) and course.place == (1,)


def test_a_figure_is_the_mean_over_the_time_in_which_all_episodes_end():
    node = {"figure": "episode_return", "above": [0.6], "values": [1, 3]}
    for over, horizon in ((2, 7), (None, 2)):
        settings = {"package_mass": node if over is None else {**node, "over": over}}
        course = curriculum({"scenario_kwargs": settings})
        course.average_over(horizon)
        places = []
        for value, episodes in ((1.0, 2), (0.5, 6), (math.nan, 0), (0.7, 8)):
            course.note({"episode_return": torch.tensor(value), "episodes": torch.tensor(episodes)})
            course.advance(0, 0)
            places.append(course.place[0])
        # one iteration is too few; (1.0 * 2 + 0.5 * 6) / 8 = 0.625 is enough
        assert places == [0, 1, 1, 1]
        assert len(course.seen["episode_return"]) == 2  # no more is kept


def test_below_falls():
    node = {"figure": "episode_length", "below": [50], "values": [1, 3]}
    course = curriculum({"scenario_kwargs": {"package_mass": node}})
    course.note({"episode_length": 51.0})
    assert not course.advance(0, 0)
    course.note({"episode_length": 50.0})
    assert course.advance(0, 1) and course.told() == "env.scenario_kwargs.package_mass=3"


def test_what_waits_for_one_figure_goes_on_together():
    node = {"figure": "episode_return", "above": [1, 2]}
    settings = {"package_mass": {**node, "values": [1, 3, 5]}, "package_length": {**node, "values": [0.1, 0.2, 0.3]}}
    course = curriculum({"scenario_kwargs": {**settings, "n_agents": {"draw": [2, 3]}}})
    assert course.places() == [(i, i, k) for i in range(3) for k in range(2)]
    assert course.upcoming() == [(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)]
    course.note({"episode_return": 5.0})
    assert course.advance(0, 0) and course.place[:2] == (1, 1)


def test_draws_are_a_function_of_seed_and_iteration_and_about_as_frequent():
    one, two = (curriculum({"scenario_kwargs": {"n_agents": {"draw": [2, 3, 5]}}}) for _ in range(2))
    drawn = [one.place_of(k)[0] for k in range(900)]
    assert drawn[500:] == [two.place_of(k)[0] for k in range(500, 900)]
    assert all(250 < drawn.count(i) < 350 for i in range(3))
    assert one.stage_of(one.place) == () and not one.advance(0.5, 7) and one.place == (drawn[7],)
    assert one.places() == [(0,), (1,), (2,)]
    assert one.full_task.keywords["scenario_kwargs"] == {"package_mass": 5}  # no size of it: the scenario's own


def test_the_full_task_is_env_as_configured_and_what_it_does_not_say_as_in_the_last_stage():
    settings = {"scenario_kwargs": {"package_mass": {0: 1, 0.5: 9}, "package_length": {0: 0.2, 0.5: 0.3}}}
    course = curriculum(settings)
    assert course.full_task.keywords["scenario_kwargs"] == {"package_mass": 5, "package_length": 0.3}
    assert course.judged().keywords == course.full_task.keywords
    assert course.aside() == ["env.scenario_kwargs.package_mass=5, and the last stage has 9"]
    course = curriculum(settings, evaluate="current")
    assert course.judged().keywords["scenario_kwargs"] == {"package_mass": 1, "package_length": 0.2}


def test_its_state_comes_back():
    node = {"figure": "episode_return", "above": [0.6], "values": [1, 3]}
    one, two = (curriculum({"scenario_kwargs": {"package_mass": node}}) for _ in range(2))
    one.note({"episode_return": torch.tensor(0.7)})
    two.load_state_dict(one.state_dict())
    assert one.advance(0, 1) and two.advance(0, 1)
    assert one.state_dict() == two.state_dict() == {
        "index": {"env.scenario_kwargs.package_mass": 1}, "seen": {}, "place": [1]
    }  # fmt: skip


MASS = "curriculum.env.scenario_kwargs.package_mass"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"env": {"scenario_kwargs": {"package_mass": 3}}}, f"{MASS}=3: must be .0: 1, 0.5: 3"),
        ({"env": {"scenario_kwargs": {"package_mass": {0.5: 3}}}}, f"{MASS}=.*shares of the run from 0 to 1"),
        ({"env": {"scenario_kwargs": {"package_mass": {0: 3, 2: 4}}}}, "shares of the run from 0 to 1"),
        ({"env": {"scenario_kwargs": {"package_mass": {"draw": 3}}}}, f"{MASS}.draw=3: must be a list"),
        ({"env": {"scenario_kwargs": {"package_mass": {"draw": [3], "figure": "x"}}}}, "unknown key .*figure"),
        ({"env": {"scenario_kwargs": {"package_mass": {"figure": "x", "values": [1, 2]}}}}, "one of above and below"),
        ({"env": {"scenario_kwargs": {"package_mass": {"figure": "x", "values": [1], "above": [1, 2]}}}}, "0 numbers"),
        ({"env": {"scenario_kwargs": {"package_mass": {"figure": "x", "values": [1, 2], "above": [1], "over": 0}}}},
         "package_mass.over=0: must be at least 1"),
        ({"env": {"num_envs": {0: 4, 0.5: 8}}}, "curriculum.env.num_envs: must stay as it is"),
        ({"env": {"seed": {0: 4, 0.5: 8}}}, "curriculum.env.seed: must stay"),
        ({"env": {"max_step": {0: 4, 0.5: 8}}}, "unknown key 'curriculum.env.max_step'; did you mean 'max_steps'"),
        ({"env": {"max_steps": {0: 4, 0.5: 0}}}, "curriculum.env.max_steps=0: must be at least 1"),
        ({"algo": {"gamma": {0: 0.9}}}, "unknown key 'curriculum.algo'.*allowed are env"),
        ({"evaluate": "now", "env": {"max_steps": {0: 4}}}, "curriculum.evaluate=now: must be final or current"),
        ({"env": {"max_steps": {"draw": list(range(1, 66))}}}, None),
    ],
)  # fmt: skip
def test_what_is_refused(node, message):
    if message is None:
        with pytest.raises(UserError, match="its values make 65 combinations; at most 64"):
            Curriculum(node, ENV, 0).places()
        return
    with pytest.raises(UserError, match=message) as refused:
        Curriculum(node, ENV, 0)
    assert "\n" not in str(refused.value)


def test_nothing_changes_without_one():
    assert Curriculum.of({}, ENV, 0) is None and Curriculum.of(None, ENV, 0) is None
    assert Curriculum.of({"evaluate": "final"}, ENV, 0) is None
    with pytest.raises(UserError, match="functools.partial"):
        Curriculum({"env": {"max_steps": {0: 4}}}, lambda **settings: None, 0)
