"""A run whose agents have hybrid actions: saved, resumed, explained, played with, and set against others."""

import json
from pathlib import Path

import pytest
import torch

from agents.analysis.attribution import attribute, observations
from agents.analysis.past_versions import load
from agents.deploy.live_session import Session
from agents.evaluation.dataset_recording import metadata
from agents.evaluation.episode_replays import settings_of
from agents.players.lineup import frozen
from agents.policies.policy import Policy
from envs.vmas.env import VmasEnv
from marl.checkpoints.resume import resumed
from marl.config import compose
from marl.core.errors import UserError
from tests.fixtures.runs import make_run

TALK = ["env=vmas/mpe/simple_reference", "env.words=discrete", "env.global_state=true"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "hybrid", *TALK)


def test_a_saved_policy_is_the_same(run: Path, tmp_path: Path) -> None:
    policy = Policy.load(run)
    policy.save(tmp_path / "policy.safetensors")
    again = Policy.load(tmp_path / "policy.safetensors")
    action = again.spec.groups["agents"].action
    assert (action.kind, action.n_continuous, action.nvec) == ("hybrid", 2, (10,))
    observation = torch.randn(6, 2, 21)
    acted = again.act(observation)
    assert acted.dtype == torch.float32 and torch.equal(acted, policy.act(observation))
    mask = torch.zeros(6, 2, 10, dtype=torch.bool)
    mask[..., 4] = True
    masked = again.act({"agents": observation}, masks={"agents": {"action": mask}})["agents"]
    assert torch.equal(masked[..., :2], acted[..., :2]) and (masked[..., 2] == 4).all()


def test_a_resumed_run_keeps_its_words(run: Path) -> None:
    config = compose.check(compose.compose([f"resume={run}", "env.words=continuous"]))
    with pytest.raises(UserError, match="env.words: discrete -> continuous: refused, a resumed run keeps"):
        resumed(config, run)


def test_numbers_and_choices_are_explained_apart(run: Path) -> None:
    task = load(str(run))
    seen = observations(task, 40, 0, "agents")
    actor = task.loss.actors["agents"]
    names, shares, error = attribute(actor, seen, 1)
    assert names == ["action 0", "action 1", "log-probability"] and shares.shape == (3, 21) and error < 0.05
    # The sum of a row's shares is what the output differs from that at the mean observation, here for the choice.
    raw = actor.act(seen, True)[0].detach()
    at_mean = actor.head.choice_log_prob(actor(seen.mean(0, keepdim=True)).expand(len(seen), -1, -1), raw)
    change = (actor.head.choice_log_prob(actor(seen), raw) - at_mean)[:, 1]
    assert shares[2].sum() >= change.mean().abs() - 0.01


def test_a_person_may_move_an_agent_and_choose_its_word(run: Path) -> None:
    policy = Policy.load(run)
    session = Session(policy, settings_of(policy.metadata["env"]))
    session.command({"do": "act", "name": "agent_0", "action": [5.0, -0.5, 7]})
    assert session.taken["agent_0"] == [1.0, -0.5, 7]  # clamped; the word as it is
    session.command({"do": "step"})
    agent = session.simulator.agents[0]
    assert agent.state.c[0].tolist() == [0] * 7 + [1, 0, 0] and agent.action.u[0, 1] == -0.5
    for wrong in ([0.0, 0.0, 10], [0.0, 0.0, 1.5], [0.0, 0.0]):
        with pytest.raises(UserError, match="not understood"):
            session.command({"do": "act", "name": "agent_0", "action": wrong})
    json.dumps(session.hello(), allow_nan=False)


def test_saved_policies_of_other_words_do_not_fit(run: Path) -> None:
    env = VmasEnv("simple_reference", num_envs=2, words="discrete", fast="off")
    assert frozen(str(run), "agents", "agents", env).head.n_continuous == 2
    other = VmasEnv("simple_reference", num_envs=2, fast="off")
    with pytest.raises(UserError, match=r"sizes \(2, 21, 'hybrid', \(2, 10\)\) differ from the group's .*'continuous'"):
        frozen(str(run), "agents", "agents", other)


def test_data_sets_say_both_parts() -> None:
    env = VmasEnv("simple_reference", num_envs=2, words="discrete", fast="off")
    space = metadata("name", env.spec, {}, "it", "text")["action_space"]["agents"]
    box, choices = space["spaces"]
    assert (space["type"], space["dtype"]) == ("Tuple", "float32")
    assert (box["type"], box["shape"], box["low"]) == ("Box", [2, 2], [[-1, -1], [-1, -1]])
    assert (choices["type"], choices["nvec"]) == ("MultiDiscrete", [[10], [10]])
