"""Gradients through an environment's ordinary steps: the same steps, right gradients, cut by resets, kept on disk."""

import numpy as np
import pytest
import torch

from envs.base import EnvError
from envs.kernel import compile_gradient
from envs.kernel.ir.gradient import seeds
from envs.kernel.ir.lowered_step import lower
from envs.kernel.tracing.trace import TRACED, trace
from envs.kernel.verification.differences import evaluate_double
from envs.validation.gradients import against_autograd
from envs.vmas.env import VmasEnv
from envs.vmas.gradients.differentiable_steps import DifferentiableSteps

SPREAD = "mpe/simple_spread"


def make(scenario: str = SPREAD, num_envs: int = 12, **settings) -> tuple[VmasEnv, DifferentiableSteps]:
    env = VmasEnv(scenario, num_envs=num_envs, **settings)
    return env, DifferentiableSteps(env)


def actions_of(env: VmasEnv, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(0.9 * env.random_action(generator)["agents"]).requires_grad_() for _ in range(steps)]


def test_they_are_the_environments_own_steps():
    env, steps = make(max_steps=7, global_state=True)
    other = VmasEnv(SPREAD, num_envs=12, max_steps=7, global_state=True)
    env.reset(seed=3), other.reset(seed=3)
    steps.begin()
    for action in actions_of(env, 20):
        ours, theirs = steps.step({"agents": action}), other.step({"agents": action})
        for name in ("observation", "next_observation", "reward"):
            assert torch.equal(getattr(ours, name)["agents"], getattr(theirs, name)["agents"])
        assert torch.equal(ours.state, theirs.state) and torch.equal(ours.next_state, theirs.next_state)
        assert torch.equal(ours.truncated, theirs.truncated) and ours.reward["agents"].requires_grad


def test_a_window_of_twenty_steps_has_the_gradient_that_differences_have():
    """The program of the step, played for 20 steps in double precision, actions moved both ways."""
    num_steps = 20
    env, steps = make(max_steps=None)
    env.reset(seed=0)
    steps.begin()
    start = steps.state.detach()[:, :12].double().numpy()
    actions = actions_of(env, num_steps)
    total = sum(steps.step({"agents": action}).reward["agents"].sum(-1) for action in actions)
    total.sum().backward()
    lowered = lower(trace(env.world.template(TRACED, 64)))
    named = dict(seeds(lowered))
    fields = [named.get(("gradient", "state", *key)) for key in lowered.fields]
    rewards = [v for name, v in named.items() if name[1] == "reward"]
    rng = np.random.default_rng(0)
    directions = [rng.standard_normal((12, actions[0][0].numel())) for _ in actions]

    def played(distance: float) -> np.ndarray:
        state, total = dict(zip(lowered.fields, start, strict=True)), 0.0
        for action, direction in zip(actions, directions, strict=True):
            moved = action.detach().double().numpy().reshape(12, -1) + distance * direction
            inputs = {("state", *key): row for key, row in state.items()}
            inputs |= {("action", "agents", k): row for k, row in enumerate(moved.T)}
            values = evaluate_double(lowered.program, rewards + [v for v in fields if v is not None], inputs, {})
            total = total + sum(values[: len(rewards)])
            new = iter(values[len(rewards) :])
            state = {key: row if v is None else next(new) for (key, row), v in zip(state.items(), fields, strict=True)}
        return total

    expected = (played(1e-6) - played(-1e-6)) / 2e-6
    ours = sum((a.grad.double().numpy().reshape(12, -1) * d).sum(1) for a, d in zip(actions, directions, strict=True))
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_a_reset_cuts_the_gradient_and_the_true_final_observation_has_it():
    env, steps = make(max_steps=3)
    env.reset(seed=0)
    steps.begin()
    actions = actions_of(env, 5)
    made = [steps.step({"agents": action}) for action in actions]
    assert made[2].truncated.all() and not made[1].truncated.any()

    def reach(value: torch.Tensor) -> list[bool]:
        found = torch.autograd.grad(value.sum(), actions, retain_graph=True, allow_unused=True)
        return [g is not None and bool(g.any()) for g in found]

    assert reach(made[2].next_observation["agents"].square()) == [True, True, True, False, False]
    assert reach(made[2].reward["agents"]) == [True, True, True, False, False]
    assert reach(made[2].observation["agents"].square()) == [False] * 5
    assert reach(made[4].next_observation["agents"].square()) == [False, False, False, True, True]


def test_a_new_window_reaches_no_further_back():
    env, steps = make(max_steps=None)
    env.reset(seed=0)
    steps.begin()
    first, second = actions_of(env, 2)
    steps.step({"agents": first})
    steps.begin()
    steps.step({"agents": second}).reward["agents"].sum().backward()
    assert first.grad is None and second.grad.any()


def test_a_window_is_walked_back_once_unless_it_is_kept():
    env, steps = make(max_steps=None)
    env.reset(seed=0)
    steps.begin()
    actions = actions_of(env, 2)
    first, second = (steps.step({"agents": action}).reward["agents"].sum() for action in actions)
    first.backward(retain_graph=True)
    once = actions[0].grad.clone()
    first.backward()
    torch.testing.assert_close(actions[0].grad, 2 * once)
    for again in (first, second):  # the second step's goes through the first
        with pytest.raises(EnvError, match=r"walked back already: .*once, then begin\(\) before the next") as error:
            again.backward()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("scenario", ["balance", SPREAD, "transport"])
def test_they_agree_with_the_simulators_own_autograd(scenario: str):
    env, steps = make(scenario, num_envs=40, max_steps=100)
    env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        env.step(env.random_action(generator))
    found = against_autograd(env, steps.compilation, env.random_action(generator))
    assert found["autograd_nan"] == 0 and found["autograd"][2] < 1e-4


def test_steps_by_others_are_told():
    env, steps = make(max_steps=None)
    with pytest.raises(EnvError, match=r"call begin\(\) after reset"):
        steps.step(env.random_action())
    env.reset(seed=0)
    steps.begin()
    env.step(env.random_action())
    with pytest.raises(EnvError, match=r"stepped by others since the window's last step: call begin\(\)"):
        steps.step(env.random_action())
    steps.begin()
    steps.step(env.random_action())


def test_a_kernel_is_made_once_and_kept(monkeypatch):
    make()

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(compile_gradient, "differentiate", never)
    _, steps = make()
    assert steps.compilation.facts["astray"] == 0 and steps.compilation.facts["worst"] < 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"continuous_actions": False}, r"'mpe/simple_spread' has no gradients: the actions of 'agents' are choices"),
        ({"fast": "off"}, r"'mpe/simple_spread' has no gradients: it has no kernel, and env.fast=off"),
    ],
)
def test_what_has_no_gradients_says_so_in_one_sentence(settings: dict, words: str):
    with pytest.raises(EnvError, match=words) as error:
        make(**settings)
    assert len(str(error.value).splitlines()) == 1


def test_a_program_that_is_refused_says_why(monkeypatch):
    monkeypatch.setattr(compile_gradient, "LARGEST", 100)
    monkeypatch.setattr(compile_gradient, "_kept", lambda key: None)
    monkeypatch.setattr(compile_gradient.cache, "keep", lambda *_: None)
    with pytest.raises(EnvError, match="its gradients have [0-9]+ operations per environment, more than 100"):
        make()


def test_what_lies_in_a_table_carries_gradients_until_a_reset():
    """An agent that stays in its cell finds in step 2 half of what it left in step 1: its squared height."""
    env = VmasEnv("tests.envs.vmas.gradients.heat_cases.Heat", num_envs=8, max_steps=3)
    steps = DifferentiableSteps(env)
    env.reset(seed=0)
    steps.begin()
    assert [p for p, _, _ in steps.compilation.places.tables] == ["scenario.heat", "gradient of scenario.heat"]
    (group,) = env.spec.groups
    actions = [torch.zeros(8, 1, 2).requires_grad_() for _ in range(5)]
    made, heights = [], []
    for action in actions:
        made.append(steps.step({group: action}))
        heights.append(steps.state[_row(steps, "world._agents.0._state._pos", 1), :8])
    height = heights[0].detach()  # at rest: the same in all steps
    assert made[2].truncated.all()
    torch.testing.assert_close(made[1].reward[group][:, 0], 0.5 * height.square())
    torch.testing.assert_close(made[2].reward[group][:, 0], 0.5 * (0.5 + 1) * height.square())

    def slope(value: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(value.sum(), action, retain_graph=True, allow_unused=True)
        return torch.zeros(8) if found is None else found[:, 0, 1]

    of_height = slope(heights[0], actions[0])
    torch.testing.assert_close(slope(made[1].reward[group], actions[0]), height * of_height)
    assert not slope(made[0].reward[group], actions[0]).any()
    assert slope(made[2].reward[group], actions[1]).any()
    assert not slope(made[4].reward[group], actions[1]).any()


def _row(steps: DifferentiableSteps, path: str, element: int) -> int:
    return steps.env.stepper.kernel.places.fields.index((path, element))


def test_a_scenario_without_gradients_names_its_own_line():
    """road_traffic reads the clock in its step; who built the environment has no part in it."""
    with pytest.raises(EnvError, match=r"'road_traffic' has no gradients: .*reads the clock at road_traffic\.py:\d+;"):
        make("road_traffic", 2, scenario_kwargs={"n_agents": 3})
