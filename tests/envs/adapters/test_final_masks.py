"""What is allowed at true final observations, as environments of others tell it; VMAS's are in test_agent_ends.py."""

import gymnasium
import pytest
import torch

from agents.collection.rollout_buffer import RolloutBuffer
from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.adapters.torchrl_env import FromTorchRL
from envs.adapters.vector_env import VectorEnv
from envs.base import Env
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from tests.envs.vector_cases import Countdown, make

G = "agents"


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Countdown-v0", entry_point=Countdown, vector_entry_point=make)
    yield
    del gymnasium.registry["Countdown-v0"]


def expect_countdown(env: Env) -> None:
    """Where the number n is seen choice n % 3 is open, also where an episode was cut off."""
    assert env.final_masks()[G].shape == (4, 1, 3)
    generator, cut = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        waits = ~env.masks()[G].get("alive", torch.ones(4, 1, dtype=torch.bool))
        moved = env.step(env.random_action(generator))
        number = moved.next_observation[G][..., 0].long() % 3
        expected = torch.nn.functional.one_hot(number, 3).bool()
        assert torch.equal(env.final_masks()[G][~waits], expected[~waits])
        different = (env.masks()[G]["action"] != env.final_masks()[G]).any()
        cut += int(different and moved.truncated.any())
    assert cut > 0


@pytest.mark.parametrize("masks", ["observation", "info"])
def test_gymnasiums(masks: str) -> None:
    expect_countdown(GymnasiumEnv("Countdown-v0", num_envs=4, max_steps=2, kwargs={"masks": masks}))


@pytest.mark.parametrize("masks", ["observation", "info"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_vectorised_ones(mode: str, masks: str) -> None:
    expect_countdown(VectorEnv("Countdown-v0", 4, 2, kwargs={"mode": mode, "masks": masks}))


@pytest.mark.parametrize("limit", [3, 100])
def test_torchrls(limit: int) -> None:
    env = FromTorchRL("tests.envs.torchrl_cases.Counted", 3, max_steps=limit)
    assert env.final_masks()[G].shape == (3, 2, 4)
    ends = 0
    for _ in range(20):
        moved = env.step(env.random_action())
        time = moved.next_observation[G][..., 1].long()  # "more" comes first, then "place"
        assert torch.equal(env.final_masks()[G], torch.nn.functional.one_hot(time % 4, 4).bool())
        ends += int(moved.done.sum())
        assert moved.done.any() == (not torch.equal(env.masks()[G]["action"], env.final_masks()[G]))
    assert ends >= 12


def test_environments_without_masks_tell_nothing() -> None:
    assert GymnasiumEnv("CartPole-v1", num_envs=2).final_masks() == {}
    assert VectorEnv("CartPole-v1", 2).final_masks() == {}
    assert PettingZooEnv("tests.envs.host_cases.Doors", num_envs=2, heterogeneous="pad",
                         kwargs={"masks": "none"}).final_masks() == {}  # fmt: skip


def test_where_nothing_is_allowed_all_is() -> None:
    action = ActionSpec("multi_discrete", nvec=(2, 3))
    spec = EnvSpec({"team": GroupSpec("team", ("a",), 1, action, ("action",))}, None, 5)
    rollout = RolloutBuffer(spec, 1, "cpu", 2, {}, final_masks=("team",))
    rollout.write_final_masks(1, {"team": torch.tensor([[[False, False, True, False, True]]])})
    assert rollout.next_masks["team"][1].tolist() == [[[True, True, True, False, True]]]
