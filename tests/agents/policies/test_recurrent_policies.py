"""Policies with a memory: saved, evaluated, exported, recorded and served, they remember as they did in training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agents.deploy.export import export
from agents.deploy.live_session import Session
from agents.deploy.web_weights import plain
from agents.evaluation.episode_replays import record_policy, settings_of
from agents.policies.policy import Policy, forget
from envs.base import STATE
from marl.config import compose
from marl.core.errors import UserError
from marl.core.seeding import derive
from marl.launch import build
from tests.fixtures.runs import make_run

RUNS = {
    "lstm": ["env=vmas/mpe/simple_tag", "network=lstm", "network.hidden=6", "network.layers=2", "algo.burn_in=2"],
    "gru": [
        "env=vmas/balance",
        "network=gru",
        "network.hidden=8",
        "network.encoder=[12]",
        "algo.share_actor=separate",
        "algo.critic=state",
        "env.global_state=true",
        "env.continuous_actions=false",
    ],
    "qmix": [  # from replayed sequences
        *("algo=qmix", "algo.updates=3", "algo.buffer_frames=160", "env=vmas/balance", "env.continuous_actions=false"),
        *("network=gru", "network.hidden=8"),
    ],
}
STEPS = 7


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder / name, "algo.chunk_length=5", *overrides) for name, overrides in RUNS.items()}


def sequence(policy: Policy, batch: int) -> list[dict[str, torch.Tensor]]:
    """Observations of several steps."""
    draw, groups = torch.Generator().manual_seed(0), policy.spec.groups.items()
    return [
        {n: 2 * torch.randn(batch, g.n_agents, g.observation_size, generator=draw) for n, g in groups}
        for _ in range(STEPS)
    ]


def ends(batch: int) -> list[torch.Tensor]:
    """After which steps episodes end: a third of the rows each after the second and the fourth."""
    row = torch.arange(batch)
    return [(row % 3 == 0) & (t == 1) | (row % 3 == 1) & (t == 3) for t in range(STEPS)]


@pytest.mark.parametrize("name", RUNS)
def test_act_takes_and_gives_the_memory(runs, name: str, tmp_path: Path) -> None:
    """A row whose episode has ended acts as in a batch of its own from there; files hold the same policy."""
    policy = Policy.load(runs[name])
    policy.save(tmp_path / "policy.safetensors")
    again, observations, done = Policy.load(tmp_path / "policy.safetensors"), sequence(policy, 3), ends(3)
    memory, other, acted = policy.memory(3), again.memory(3), []
    assert set(memory) == set(policy.actors) and not any(m.any() for m in memory.values())
    for observation, over in zip(observations, done, strict=True):
        actions, memory = policy.act(observation, memory=memory)
        same, other = again.act(observation, memory=other)
        assert all(torch.equal(actions[n], same[n]) and torch.equal(memory[n], other[n]) for n in actions)
        acted.append(actions)
        memory, other = forget(memory, over), forget(other, over)
    for row, first in enumerate((2, 4, 0)):  # the step at which the last episode of each row began
        memory = policy.memory(1)
        for t in range(first, STEPS):
            alone, memory = policy.act({n: o[row : row + 1] for n, o in observations[t].items()}, memory=memory)
            for group, action in alone.items():
                torch.testing.assert_close(action[0], acted[t][group][row], rtol=0, atol=1e-5)
    for group, actor in policy.actors.items():  # the same observation after nothing at all is another matter
        now, fresh = observations[-1][group][:1], policy.memory(1)[group]
        assert not torch.allclose(actor.remember(now, memory[group])[0], actor.remember(now, fresh)[0], atol=1e-4)


def test_a_policy_with_a_memory_is_not_asked_without_it(runs) -> None:
    policy = Policy.load(runs["gru"])
    observation = sequence(policy, 2)[0]
    with pytest.raises(UserError, match=r"this policy remembers what agents saw; give memory=policy\.memory\(E\)"):
        policy.act(observation)
    with pytest.raises(UserError, match=r"give memory=policy\.critic_memory\(E\)"):
        policy.values(observation, torch.zeros(2, policy.spec.state_size))
    action, memory = policy.act(observation["agents"], memory=policy.memory(2))  # the short form for one group
    assert action.shape[:2] == observation["agents"].shape[:2] and set(memory) == {"agents"}
    with pytest.raises(UserError, match="GRU can't run in a page"):
        plain(policy)


@pytest.mark.parametrize("name", RUNS)
def test_an_evaluation_is_what_stepping_by_hand_gives(runs, name: str) -> None:
    task = build.build_task(compose.check(compose.saved(runs[name], [f"init_from={runs[name]}"])))
    policy, played = Policy.load(runs[name]), task.run_episodes(episodes=4, seed=5)
    env = task.eval_env
    observation, _ = env.reset(derive(5, "evaluation"))
    total = {n: np.zeros((4, g.n_agents)) for n, g in env.spec.groups.items()}
    running, memory = torch.ones(4, dtype=torch.bool), policy.memory(4)
    for _ in range(env.spec.max_steps):
        actions, memory = policy.act(observation, memory=memory)
        step = env.step(actions)
        for group, reward in step.reward.items():
            total[group] += (reward * running.unsqueeze(-1)).numpy()
        running &= ~step.done
        observation, memory = step.observation, forget(memory, step.done)
    for group, returns in played.returns.items():
        np.testing.assert_allclose(returns, total[group], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", RUNS)
def test_exported_policies_carry_their_memory(runs, name: str, format: str, tmp_path: Path) -> None:
    policy = Policy.load(runs[name])
    file = export(policy, format, tmp_path)
    groups = list(policy.actors)
    if format == "onnx":
        session = pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'").InferenceSession(str(file))
        names = [i.name for i in session.get_inputs()]
        assert names == [f"{g}_observation" for g in groups] + [f"{g}_memory" for g in groups]
        outputs = [o.name for o in session.get_outputs()]
        assert outputs == [f"{g}_action" for g in groups] + [f"{g}_next_memory" for g in groups]

        def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
            outputs = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
            return [torch.from_numpy(x) for x in outputs]
    else:
        run = torch.export.load(file).module()
    for batch in (64, 1):
        memory = policy.memory(batch)
        carried = list(memory.values())
        for observation, over in zip(sequence(policy, batch), ends(batch), strict=True):
            actions, memory = policy.act(observation, memory=memory)
            results = run(*observation.values(), *carried)
            for expected, got in zip([*actions.values(), *memory.values()], results, strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
            memory = forget(memory, over)
            carried = list(forget(dict(zip(groups, results[len(groups) :], strict=True)), over).values())
    card = (tmp_path / "README.md").read_text()
    assert all(f"| `{g}_memory` | float32 [B, " in card and f"`{g}_next_memory`" in card for g in groups)


@pytest.mark.parametrize("name", RUNS)
def test_recordings_hold_what_the_policy_did_and_thought(runs, name: str) -> None:
    policy = Policy.load(runs[name])
    recorded = record_policy(policy, episodes=2, max_steps=6)
    acting, judging = policy.memory(2), policy.critic_memory(2)
    for t in range(6):
        observation = {g: o[t] for g, o in recorded.observation.items()}
        actions, acting = policy.act(observation, memory=acting)
        for group in observation:
            torch.testing.assert_close(recorded.action[group][t], actions[group], rtol=0, atol=1e-5)
        if name == "lstm":  # the other's critic reads a global state, which a recording does not keep
            values, judging = policy.values(observation, memory=judging)
            for group in observation:
                torch.testing.assert_close(recorded.value[group][t], values[group], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_served_world_remembers_steps_and_not_drags(runs, name: str) -> None:
    policy = Policy.load(runs[name])
    session = Session(policy, settings_of(policy.metadata["env"]))
    entity = next(iter(session.entities))
    for again in range(2):
        acting, judging = policy.memory(1), policy.critic_memory(1)
        for t in range(4):
            for _ in range(2):  # looking twice at one step
                session.command({"do": "drag", "name": entity, "x": 0.1 * t, "y": 0.2})
            expected, acting = policy.act(session.observation, memory=acting)
            values, judging = policy.values(session.observation, session.observation[STATE], judging)
            for group in policy.actors:
                assert torch.equal(session.wanted[group], expected[group])
            for group in policy.critics:
                assert torch.equal(session.values[group], values[group])
            session.command({"do": "step"})
        session.command({"do": "reset", "seed": again})
