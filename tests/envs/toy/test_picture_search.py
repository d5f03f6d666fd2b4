"""The task of pictures and numbers: its rules step by step, its best returns with and without the picture."""

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs.adapters.to_torchrl import TorchRLEnv
from envs.base import EnvError
from envs.spec import ObservationPart
from envs.toy.picture_search import MOVES, PictureSearchEnv


def read(observation: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(where the targets are, where the agents are), int64 [E, A, 2], of what the agents see."""
    own = observation[..., : size**2]
    assert (own.sum(-1) == 255).all()
    cell = own.argmax(-1)
    place = ((observation[..., -2:] + 1) * (size - 1) / 2).round().long()
    return torch.stack([cell // size, cell % size], -1), place


def test_every_environment_follows_the_rules_by_itself():
    env = PictureSearchEnv(n_agents=3, size=4, max_steps=5, num_envs=6, seed=2, global_state=True)
    generator = torch.Generator().manual_seed(0)
    observation, state = env.reset(3)
    for t in range(1, 21):
        target, place = read(observation["agents"], 4)
        team = observation["agents"][..., 16:32].view(6, 3, 4, 4)
        for e in range(6):
            for a in range(3):
                others = {tuple(target[e, b].tolist()) for b in range(3) if b != a}
                assert {tuple(cell) for cell in (team[e, a] == 255).nonzero().tolist()} == others
        both = torch.cat([place, target], -1).flatten(1)
        torch.testing.assert_close(state, 2 * both / 3 - 1)
        action = env.random_action(generator)
        step = env.step(action)
        after, moved = read(step.next_observation["agents"], 4)
        assert torch.equal(after, target)
        for e in range(6):
            for a in range(3):
                row, column = MOVES[action["agents"][e, a, 0]]
                expected = [min(max(place[e, a, 0] + row, 0), 3), min(max(place[e, a, 1] + column, 0), 3)]
                assert moved[e, a].tolist() == expected
                nearer = (place[e, a] - target[e, a]).abs().sum() - (moved[e, a] - target[e, a]).abs().sum()
                assert step.reward["agents"][e, a].item() == pytest.approx(nearer.item() / 2.5)  # 2 (16 - 1) / (3 * 4)
        assert not step.terminated.any() and step.truncated.tolist() == [t % 5 == 0] * 6
        observation, state = step.observation, step.state


def play(env: PictureSearchEnv, goal) -> float:
    """Mean return of walking towards goal(targets) [E, A, 2], rows first."""
    observation, _ = env.reset(1)
    total = 0.0
    for _ in range(env.spec.max_steps):
        target, place = read(observation["agents"], env.size)
        away = goal(target) - place
        along_rows = torch.where(away[..., 0] < 0, 1, 2)
        along_columns = torch.where(away[..., 1] < 0, 3, 4)
        action = torch.where(away[..., 0] != 0, along_rows, torch.where(away[..., 1] != 0, along_columns, 0))
        step = env.step({"agents": action.unsqueeze(-1)})
        total, observation = total + step.reward["agents"].mean().item(), step.observation
    return total


def test_the_best_returns_with_and_without_the_picture():
    env = PictureSearchEnv(num_envs=4000)
    assert play(env, lambda target: target) == pytest.approx(1.0, abs=0.02)  # 8,000 agents: deviation 0.006
    assert play(env, lambda target: torch.full_like(target, 4)) == pytest.approx(1 - 3 * 64 / (4 * 63), abs=0.02)


def test_its_parts_are_named():
    assert PictureSearchEnv().spec.groups["agents"].parts == (
        ObservationPart("picture", (2, 8, 8), "picture", 255.0),
        ObservationPart("position", (2,)),
    )
    blind = PictureSearchEnv(picture=False).spec.groups["agents"]
    assert blind.parts == (ObservationPart("position", (2,)),) and blind.observation_size == 2


def test_snapshots_repeat_to_the_bit_and_others_are_refused():
    env = PictureSearchEnv(num_envs=5, max_steps=3)
    generator = torch.Generator().manual_seed(0)
    env.step(env.random_action(generator))
    saved, played = env.snapshot(), [env.random_action(generator) for _ in range(7)]
    first = [env.step(action) for action in played]
    env.restore(saved)
    for one, action in zip(first, played, strict=True):
        two = env.step(action)
        assert torch.equal(one.observation["agents"], two.observation["agents"])
        assert torch.equal(one.reward["agents"], two.reward["agents"]) and torch.equal(one.done, two.done)
    with pytest.raises(EnvError, match="another environment"):
        PictureSearchEnv(num_envs=6).restore(saved)


def test_torchrl_takes_it_and_odd_sizes_are_refused():
    check_env_specs(TorchRLEnv(PictureSearchEnv(num_envs=4, global_state=True)))
    with pytest.raises(EnvError, match=r"env\.size=5: must be even"):
        PictureSearchEnv(size=5)
