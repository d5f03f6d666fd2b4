"""A step as a function of state, parameters and actions: values, gradients, what is refused by name."""

import pytest
import torch

from envs.base import EnvError
from envs.vmas.env import VmasEnv
from envs.vmas.gradients.step_function import StepFunction

GOAL, PLACE = "world._landmarks.0._state._pos", "world._agents.0._state._pos"


@pytest.fixture(scope="module")
def env() -> VmasEnv:
    return VmasEnv("debug/goal", num_envs=6, max_steps=None)


def test_it_gives_what_the_environment_gives(env: VmasEnv):
    function = StepFunction(env)
    env.reset(seed=0)
    state, action = function.state(), env.random_action(torch.Generator().manual_seed(0))
    _, ours = function(state, action)
    _, again = function(state, action)  # the environment stayed where it was
    theirs = env.step(action)
    for name in ("next_observation", "reward"):
        assert torch.equal(getattr(ours, name)["agents"], getattr(theirs, name)["agents"])
        assert torch.equal(getattr(again, name)["agents"], getattr(theirs, name)["agents"])


def test_a_goals_place_and_a_bodys_have_gradients(env: VmasEnv):
    """debug/goal observes where the agent is and how far from the goal: d(own place)/d(start) is 1 in one step."""
    function = StepFunction(env, [GOAL])
    env.reset(seed=0)
    start = function.state()
    place, goal = function.get(start, PLACE).clone().requires_grad_(), torch.tensor([0.5, -0.5], requires_grad=True)
    state = function.put(function.put(start, PLACE, place), GOAL, goal)
    assert torch.equal(function.get(state, GOAL), goal.expand(6, 2)) and torch.equal(function.get(state, PLACE), place)
    moved, _ = function(state, {"agents": torch.zeros(6, 1, 2)})
    function.get(moved, PLACE).sum().backward()
    assert place.grad.tolist() == [[1.0, 1.0]] * 6 and not goal.grad.any()
    placed = function.put(start, GOAL, goal)
    after, _ = function(placed, {"agents": torch.zeros(6, 1, 2)})
    distance = (function.get(after, GOAL) - place.detach()).square().sum()
    (slope,) = torch.autograd.grad(distance, goal)
    torch.testing.assert_close(slope, (2 * (goal - place)).sum(0).detach())


def test_an_episode_that_is_over_runs_on():
    places = []
    for max_steps in (2, None):
        env = VmasEnv("debug/goal", num_envs=3, max_steps=max_steps)
        function = StepFunction(env)
        env.reset(seed=0)
        state = function.state()
        for _ in range(5):
            state, transition = function(state, {"agents": torch.full((3, 1, 2), 0.5)})
        assert transition.done.all() == (max_steps == 2)
        places.append(function.get(state, PLACE))
    assert torch.equal(*places)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("world._agents.0._mass", "'world._agents.0._mass' is a plain number.*keep it in a tensor"),
        ("world._agents.0._state._poss", "is no parameter of 'debug/goal': did you mean world._agents.0._state._pos"),
        ("steps_", "is no parameter of 'debug/goal'"),
    ],
)
def test_other_parameters_are_refused_by_name(env: VmasEnv, path: str, words: str):
    with pytest.raises(EnvError, match=words):
        StepFunction(env, [path])


def test_a_state_without_a_path_says_so(env: VmasEnv):
    function = StepFunction(env)
    with pytest.raises(EnvError, match="holds no 'place': name it in `parameters`"):
        function.get(function.state(), "place")


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 6, 2)])
def test_numbers_of_another_shape_are_refused(shape: tuple[int, ...]):
    env = VmasEnv("debug/goal", num_envs=6, max_steps=None)
    function, path = StepFunction(env, ["world._landmarks.0._state._pos"]), "world._landmarks.0._state._pos"
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"_pos' takes numbers of shape \[6, 2\] or \[2\], not"):
        function.put(function.state(), path, torch.zeros(shape))
