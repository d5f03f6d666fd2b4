"""Disturbances and opponents: what they do to observations and actions of a real environment."""

import pytest
import torch

from agents.evaluation.episodes import evaluate
from agents.players.perturbation import Disturbance
from agents.players.scripted import NAMES, SimpleTag, make
from envs.adapters.gymnasium_env import GymnasiumEnv
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError

E = 64


@pytest.fixture(scope="module")
def tag() -> VmasEnv:
    """Three hunters, one prey, without kernels."""
    return VmasEnv("mpe/simple_tag", num_envs=E, max_steps=25, fast="off")


def players(env: VmasEnv, name: str) -> dict:
    return {group: make(name, env, group) for group in env.spec.groups}


def test_no_disturbance_changes_nothing(tag: VmasEnv) -> None:
    plain, disturbed = (evaluate(tag, players(tag, "random"), 3, disturbance=d) for d in (None, Disturbance()))
    assert all((plain.returns[name] == values).all() for name, values in disturbed.returns.items())


def test_observations_and_actions_get_noise_of_the_size_that_was_asked_for(tag: VmasEnv) -> None:
    at_work = Disturbance(observation_noise=0.3, action_noise=0.2).begin(tag, 0)
    noise = at_work.observation(torch.zeros(E, 3, 500))
    assert noise.std().item() == pytest.approx(0.3, rel=0.03) and abs(noise.mean().item()) < 0.01
    spec = tag.spec.groups["adversary"].action
    actions = torch.stack([at_work.action("adversary", torch.zeros(E, 3, 2)) for _ in range(200)])
    half = ((spec.high - spec.low) / 2).mean().item()
    assert actions.std().item() == pytest.approx(0.2 * half, rel=0.05)
    wild = Disturbance(action_noise=50).begin(tag, 0).action("adversary", torch.zeros(E, 3, 2))
    assert (wild >= spec.low).all() and (wild <= spec.high).all()


def test_frozen_agents_do_nothing_and_others_act(tag: VmasEnv) -> None:
    at_work = Disturbance(frozen=2).begin(tag, 1)
    acted = torch.cat([at_work.action(n, torch.ones(E, g.n_agents, 2)) for n, g in tag.spec.groups.items()], 1)
    assert (acted.sum(-1) == 0).sum(1).tolist() == [2] * E
    assert len({tuple(row.tolist()) for row in acted.sum(-1) == 0}) > 3  # not the same ones everywhere
    with pytest.raises(UserError, match="frozen=5: there are 4 agents"):
        Disturbance(frozen=5).begin(tag, 0)


def test_hybrid_actions_get_both_kinds_of_noise() -> None:
    env = VmasEnv("simple_reference", num_envs=500, max_steps=5, fast="off", words="discrete")
    chosen = torch.zeros(500, 2, 3)
    chosen[..., 2] = 3
    action = Disturbance(action_noise=0.4).begin(env, 0).action("agents", chosen)
    changed = (action[..., 2] != 3).float().mean().item()
    assert changed == pytest.approx(0.4 * 0.9, abs=0.05)  # of ten words one is the chosen
    assert torch.equal(action[..., 2], action[..., 2].round()) and action[..., 2].max() <= 9
    # Half the range is 1. Of a Gaussian of deviation 0.4 a hundredth is cut off.
    assert action[..., :2].std().item() == pytest.approx(0.4, abs=0.03) and action[..., :2].abs().max() <= 1
    still = Disturbance(frozen=2).begin(env, 0).action("agents", chosen)
    assert (still == 0).all()
    with pytest.raises(UserError, match="discrete actions need a probability"):
        Disturbance(action_noise=2).begin(env, 0)


def test_noise_on_actions_without_bounds_is_in_their_own_units() -> None:
    env = GymnasiumEnv("tests.envs.joint_cases:Endless-v0", num_envs=500)
    at_work = Disturbance(action_noise=0.2).begin(env, 0)
    action = at_work.action("agents", torch.tensor([100.0, 100.0, -100.0, 0.5]).expand(500, 1, 4))
    assert action.isfinite().all()
    # without a range 0.2; of the last, whose range is 1, 0.2 times one half
    assert action[..., :3].std(0).flatten().tolist() == pytest.approx([0.2, 0.2, 0.2], abs=0.03)
    assert action[..., 3].std().item() == pytest.approx(0.1, abs=0.01)
    still = Disturbance(frozen=1).begin(env, 0).action("agents", action)
    assert still.flatten(1).unique(dim=0).tolist() == [[0, 2, -1, 0]]  # what is nearest to 0


def test_discrete_actions_are_replaced_with_the_probability_asked_for() -> None:
    env = VmasEnv("balance", num_envs=500, max_steps=5, fast="off", continuous_actions=False)
    group = next(iter(env.spec.groups))
    chosen = torch.full((500, env.spec.groups[group].n_agents, 1), 3)
    changed = (Disturbance(action_noise=0.4).begin(env, 0).action(group, chosen) != 3).float().mean().item()
    choices = env.spec.groups[group].action.nvec[0]
    assert changed == pytest.approx(0.4 * (1 - 1 / choices), abs=0.05)
    assert (Disturbance(frozen=chosen.shape[1]).begin(env, 0).action(group, chosen) == 0).all()
    with pytest.raises(UserError, match="discrete actions need a probability"):
        Disturbance(action_noise=2).begin(env, 0)


def test_the_scripted_hunters_catch_more_and_the_scripted_prey_is_caught_less(tag: VmasEnv) -> None:
    def caught(hunter: str, prey: str) -> float:
        sides = {"adversary": make(hunter, tag, "adversary"), "agent": make(prey, tag, "agent")}
        return evaluate(tag, sides, 0).returns["adversary"].mean()

    assert caught("simple_tag", "still") > caught("random", "still") + 5
    assert caught("simple_tag", "simple_tag") < caught("simple_tag", "still") - 5
    assert caught("simple_tag", "still") == caught("simple_tag", "still")


def test_opponents_fit_their_environment(tag: VmasEnv) -> None:
    generator = torch.Generator().manual_seed(0)
    observation, _ = tag.reset(0)
    for name in [name for name in NAMES if name != "heuristic"]:  # VMAS brings none for this scenario
        for group, player in players(tag, name).items():
            action, spec = player(observation[group], generator), tag.spec.groups[group]
            assert action.shape == (E, spec.n_agents, spec.action.size)
            assert (action >= spec.action.low).all() and (action <= spec.action.high).all()
    assert isinstance(make("agents.players.scripted.SimpleTag", tag, "agent"), SimpleTag)
    with pytest.raises(UserError, match="no opponent 'clever'"):
        make("clever", tag, "agent")
    with pytest.raises(UserError, match="heuristic: mpe/simple_tag has no policy of its own for agent"):
        make("heuristic", tag, "agent")
    with pytest.raises(UserError, match="SimpleTag plays mpe/simple_tag"):
        make("simple_tag", VmasEnv("balance", num_envs=4, fast="off"), "agents")
