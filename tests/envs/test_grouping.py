"""Groups: teams, splitting, padding, and what a padded agent does."""

from functools import partial

import pytest
import torch

from envs.base import EnvError
from envs.grouping import assign, flatten, prefix_of
from envs.spec import ActionSpec
from envs.vmas.env import VmasEnv as AnyVmasEnv

VmasEnv = partial(AnyVmasEnv, fast="off")  # the eager path; tests/envs/kernel holds the kernels to it

SPEAKERS = {"scenario": "simple_speaker_listener", "num_envs": 4, "max_steps": 5}
TOGETHER = {"team": ["speaker", "listener_0"]}


def groups(**settings) -> dict[str, tuple[str, ...]]:
    env = VmasEnv(**{"num_envs": 3, "pool_size": 4, **settings})
    return {name: group.agents for name, group in env.spec.groups.items()}


def test_one_group_per_name_prefix():
    assert groups(scenario="balance") == {"agents": ("agent_0", "agent_1", "agent_2")}
    assert groups(scenario="simple_tag") == {
        "adversary": ("adversary_0", "adversary_1", "adversary_2"),
        "agent": ("agent_0",),
    }
    short = {"n_blue_agents": 2, "n_red_agents": 2, "ai_red_agents": False}
    assert groups(scenario="football", scenario_kwargs=short) == {
        "agent_blue": ("agent_blue_0", "agent_blue_1"),
        "agent_red": ("agent_red_0", "agent_red_1"),
    }
    assert groups(scenario="football", scenario_kwargs={"n_blue_agents": 2}) == {
        "agents": ("agent_blue_0", "agent_blue_1")
    }
    assert [prefix_of(n) for n in ("agent 0", "agent_blue_12", "bob", "7")] == ["agent", "agent_blue", "bob", "agent"]


def test_agents_of_different_sizes_are_split():
    split = VmasEnv(**SPEAKERS, groups=TOGETHER)
    assert {n: (g.agents, g.observation_size, g.action.size) for n, g in split.spec.groups.items()} == {
        "team_0": (("speaker_0",), 3, 5),
        "team_1": (("listener_0",), 11, 2),
    }
    by_prefix = VmasEnv(**SPEAKERS)
    assert set(by_prefix.spec.groups) == {"speaker", "listener"}


def test_padding_with_zeros_and_a_mask():
    split, padded = VmasEnv(**SPEAKERS), VmasEnv(**SPEAKERS, groups=TOGETHER, heterogeneous="pad")
    team = padded.spec.groups["team"]
    assert team.observation_size == 11 and team.action.size == 5
    assert team.action.mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert team.action.low[0].tolist() == [-1, -1, 0, 0, 0] and (team.action.high > team.action.low).all()
    ours, theirs = padded.reset(0)[0]["team"], split.reset(0)[0]
    assert torch.equal(ours[:, 0, :3], theirs["speaker"][:, 0]) and (ours[:, 0, 3:] == 0).all()
    assert torch.equal(ours[:, 1], theirs["listener"][:, 0])
    for seed in range(7):
        action = padded.random_action(torch.Generator().manual_seed(seed))["team"]
        a, b = padded.step({"team": action}), split.step({"speaker": action[:, :1], "listener": action[:, 1:, :2]})
        assert torch.equal(a.observation["team"][:, 1], b.observation["listener"][:, 0])
        assert torch.equal(a.reward["team"], torch.cat([b.reward["speaker"], b.reward["listener"]], 1))


@pytest.mark.parametrize("multi", [False, True])
def test_choices_beyond_a_padded_agents_own_wrap_around(multi):
    kinds = {"continuous_actions": False, "multi_discrete": multi}
    split = VmasEnv(**SPEAKERS, **kinds)
    padded = VmasEnv(**SPEAKERS, **kinds, groups=TOGETHER, heterogeneous="pad")
    spec = padded.spec.groups["team"].action
    assert spec.nvec == ((3, 3, 3) if multi else (27,)) and (spec.mask is None) == (not multi)
    split.reset(0), padded.reset(0)
    action = padded.random_action(torch.Generator().manual_seed(1))["team"]
    listener = action[:, 1:, :2] if multi else action[:, 1:] % 9
    a, b = padded.step({"team": action}), split.step({"speaker": action[:, :1], "listener": listener})
    assert torch.equal(a.observation["team"][:, 1], b.observation["listener"][:, 0])


def test_goals_of_the_whole_batch_change_with_the_episode():
    env = VmasEnv("simple_speaker_listener", num_envs=3, max_steps=4, pool_every=100)
    assert "world._agents.0.goal_b" in env.shared_draws
    env.reset(0)
    seen = set()
    for _ in range(12):
        episode = []
        for _ in range(4):
            landmark = env.simulator.agents[0].goal_b
            episode.append(landmark.name)
            moved = env.step(env.random_action())
            color = moved.next_observation["speaker"][:, 0]
            assert torch.equal(color, landmark.color.expand(3, 3))  # what is said is what is wanted
        assert moved.truncated.all() and len(set(episode)) == 1
        new = env.simulator.agents[0].goal_b.color
        assert torch.equal(moved.observation["speaker"][:, 0], new.expand(3, 3))
        seen.add(episode[0])
    assert len(seen) == 3


def test_dict_observations_are_joined_in_the_order_of_their_keys():
    a, b = torch.rand(2, 3), torch.rand(2, 2, 2)
    assert torch.equal(flatten({"z": a, "b": {"y": b, "x": a}}), torch.cat([a, b.flatten(1), a], 1))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"heterogeneous": "merge"}, "'split' or 'pad'"),
        ({"groups": {"team": ["speaker"]}}, "'listener_0' is in none"),
        ({"groups": {"a": ["speaker", "listener"], "b": ["listener_0"]}}, "exactly one group"),
        ({"groups": {"a": ["speaker", "listener"], "b": ["nobody"]}}, "matches none"),
    ],
)
def test_wrong_groups_are_refused_in_one_sentence(settings, words):
    with pytest.raises(EnvError, match=words) as caught:
        VmasEnv(**{**SPEAKERS, **settings})
    assert "\n" not in str(caught.value)


def test_unlike_kinds_of_actions_cannot_be_padded():
    class Named:
        def __init__(self, name):
            self.name = name

    kinds = [ActionSpec("continuous", torch.zeros(1, 1), torch.ones(1, 1)), ActionSpec("discrete", nvec=(3,))]
    agents = [Named("agent_0"), Named("agent_1")]
    assert sorted(assign(agents, [2, 2], kinds, "split").values()) == [[0], [1]]
    with pytest.raises(EnvError, match="env.heterogeneous=pad: .*unlike kinds .continuous of agent_0 and"):
        assign(agents, [2, 2], kinds, "pad")
