"""The memory task: its rules step by step, the best return and that of those who forget, both kinds of ends."""

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs.adapters.to_torchrl import TorchRLEnv
from envs.base import EnvError
from envs.toy.cue_memory import MemoryEnv


def random_actions(env: MemoryEnv, seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield env.random_action(generator)


def test_every_environment_follows_the_rules_by_itself():
    """What is seen tells the whole story: cue, nothing, question, end; a plain loop per environment follows it."""
    env = MemoryEnv(n_agents=3, n_cues=4, min_delay=1, max_delay=4, max_steps=5, num_envs=7, seed=2, global_state=True)
    observation, state = env.reset(5)
    cues = [None] * 7  # the cues that each environment's agents were shown
    lengths, ends = [0] * 7, {"terminated": set(), "truncated": set()}
    for _, action in zip(range(60), random_actions(env, 0), strict=False):
        observed = observation["agents"]
        for e in range(7):
            if lengths[e] == 0:
                cues[e] = observed[e, :, :4].argmax(-1)
                assert (observed[e, :, :4].sum(-1) == 1).all() and (observed[e, :, 4] == 0).all()
            else:
                assert (observed[e, :, :4] == 0).all()
            assert torch.equal(state[e, :12].view(3, 4).argmax(-1), cues[e]) and state[e, 12] == observed[e, 0, 4]
        now = observed[:, 0, 4] == 1
        step = env.step(action)
        for e in range(7):
            lengths[e] += 1
            right = (action["agents"][e, :, 0] == cues[e]).float()
            assert torch.equal(step.reward["agents"][e], right if now[e] else torch.zeros(3))
            assert step.terminated[e] == now[e] and step.truncated[e] == (lengths[e] == 5 and not now[e])
            if step.done[e]:
                ends["terminated" if now[e] else "truncated"].add(lengths[e])
                lengths[e] = 0
            else:
                assert torch.equal(step.observation["agents"][e], step.next_observation["agents"][e])
        cut = step.truncated  # delay 4: the true final observation is the question that no agent had time for
        assert (step.next_observation["agents"][cut][..., 4] == 1).all()
        observation, state = step.observation, step.state
    assert ends == {"terminated": {3, 4, 5}, "truncated": {5}}


def play(env: MemoryEnv, choose, steps: int = 300) -> torch.Tensor:
    """Mean return of the episodes of `choose(observation, remembered) -> action [E, A]`."""
    observation, _ = env.reset(1)
    remembered = torch.zeros(env.num_envs, env.spec.groups["agents"].n_agents, dtype=torch.int64)
    total, ended = 0.0, 0
    for _ in range(steps):
        cue = observation["agents"][..., :-1]
        remembered = torch.where(cue.any(-1), cue.argmax(-1), remembered)
        step = env.step({"agents": choose(observation["agents"], remembered).unsqueeze(-1)})
        total, ended = total + step.reward["agents"].mean(-1).sum(), ended + step.done.sum()
        observation = step.observation
    return total / ended


def test_the_best_return_is_one_and_without_memory_it_is_chance():
    env = MemoryEnv(num_envs=200)
    assert play(env, lambda observed, remembered: remembered) == 1.0
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for choose in (lambda x, _: x[..., :-1].argmax(-1), lambda x, _: (x @ weights).argmax(-1)):
        assert play(env, choose) == pytest.approx(0.25, abs=0.02)  # some 6,000 episodes: deviation 0.004
    assert env.spec.max_steps == 12 and not env.step({"agents": torch.zeros(200, 2, 1).long()}).truncated.any()


def test_snapshots_repeat_to_the_bit_and_others_are_refused():
    env, actions = MemoryEnv(num_envs=5, min_delay=0, max_delay=3), random_actions(MemoryEnv(num_envs=5), 1)
    for _ in range(4):
        env.step(next(actions))
    saved, played = env.snapshot(), [next(actions) for _ in range(9)]
    first = [env.step(action) for action in played]
    env.restore(saved)
    for one, action in zip(first, played, strict=True):
        two = env.step(action)
        assert torch.equal(one.observation["agents"], two.observation["agents"]) and torch.equal(one.done, two.done)
        assert torch.equal(one.reward["agents"], two.reward["agents"])
    with pytest.raises(EnvError, match="another environment"):
        MemoryEnv(num_envs=6).restore(saved)
    assert not torch.equal(MemoryEnv(seed=1).reset()[0]["agents"], MemoryEnv(seed=2).reset()[0]["agents"])


def test_torchrl_takes_it_and_impossible_delays_are_refused():
    check_env_specs(TorchRLEnv(MemoryEnv(num_envs=4, global_state=True)))
    with pytest.raises(EnvError, match=r"env\.min_delay=4: must be at most env\.max_delay=3"):
        MemoryEnv(min_delay=4, max_delay=3)
