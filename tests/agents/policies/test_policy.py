"""Saved policies: they act as the trained actors did, without the simulator, and go through files unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.evaluation.episode_replays import record_policy
from agents.policies.policy import Policy
from agents.tasks.on_policy import OnPolicy
from envs.spec import describe, spec_of
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from tests.agents.masked_env import Doors
from tests.fixtures.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tag", "env=vmas/mpe/simple_tag", "algo.share_actor=separate")


def task_of(run: Path) -> OnPolicy:
    config = compose.check(compose.saved(run, [f"init_from={run}"]))
    return build.build_task(config)


def test_it_acts_as_the_trained_actors_do(run: Path) -> None:
    policy, task = Policy.load(run), task_of(run)
    observation, _ = task.env.reset(3)
    assert set(policy.actors) == {"adversary", "agent"}
    for deterministic in (True, False):
        draws = [torch.Generator().manual_seed(1) for _ in range(2)]
        mine = policy.act(observation, deterministic, draws[0])
        for name, actor in task.loss.actors.items():
            expected = actor.head.to_env(actor.act(observation[name], deterministic, draws[1])[0])
            assert torch.equal(mine[name], expected)
    values = policy.values(observation)
    for name, critic in task.loss.critics.items():
        assert torch.equal(values[name], critic.denormalize(critic(observation[name])))
    assert policy.metadata["run"]["evaluation"]["episodes"] == 3


TOOLKIT = [
    "algo.normalize_observation=true",
    "algo.agent_ids=true",
    "algo.value_norm=popart",
    "algo.critic=agent_state",
    "env.global_state=true",
    "env=vmas/navigation",
]


def test_everything_that_shapes_the_networks_is_rebuilt(tmp_path: Path) -> None:
    """Each setting of the architecture changes the weights' names or the function: saved, it must come back."""
    run = make_run(tmp_path / "run", *TOOLKIT)
    policy, task = Policy.load(run), task_of(run)
    task.loss.load_state_dict(checkpoint_file.load(run / "checkpoints" / "last.pt")["loss"])
    observation, state = task.env.reset(3)
    actor, critic = task.loss.actors["agents"], task.loss.critics["agents"]
    assert not torch.equal(actor.inputs.norm.scale, torch.ones_like(actor.inputs.norm.scale))
    assert torch.equal(policy.act(observation)["agents"], actor.head.to_env(actor.act(observation["agents"], True)[0]))
    expected = critic.denormalize(critic(observation["agents"], state))
    assert torch.equal(policy.values(observation, state)["agents"], expected)
    policy.save(tmp_path / "policy.safetensors")
    again = Policy.load(tmp_path / "policy.safetensors")
    assert torch.equal(again.values(observation, state)["agents"], expected)
    recorded = record_policy(policy, max_steps=3)
    assert recorded.lengths == [3]


def test_masks_of_actions_reach_the_policy() -> None:
    env = Doors(num_envs=50, seed=1)
    description = {"spec": describe(env.spec), "algo": {}, "network": {"_target_": "marl.networks.MLP"}}
    policy = Policy(description)
    assert describe(policy.spec) == describe(env.spec)
    observation, _ = env.reset(1)
    for deterministic in (True, False):
        env.step(policy.act(observation, deterministic, masks=env.masks()))  # the environment checks every choice
    with pytest.raises(AssertionError, match="not open"):
        for _ in range(20):
            env.step(policy.act(observation, False))


def test_a_policy_file_is_the_same_policy(run: Path, tmp_path: Path) -> None:
    policy = Policy.load(run, "best")
    policy.save(tmp_path / "policy.safetensors")
    again = Policy.load(tmp_path / "policy.safetensors")
    assert again.metadata == policy.metadata and not list(tmp_path.glob(".*"))
    observation = {n: torch.randn(7, g.n_agents, g.observation_size) for n, g in policy.spec.groups.items()}
    for name, action in policy.act(observation).items():
        assert torch.equal(again.act(observation)[name], action)
    assert Policy.load(tmp_path).metadata == policy.metadata  # its folder will do


def test_specs_survive_the_description(run: Path) -> None:
    spec = task_of(run).env.spec
    assert describe(spec_of(describe(spec))) == describe(spec)


ALONE = """
import sys, torch
from agents.policies.policy import Policy
policy = Policy.load(sys.argv[1])
policy.act({n: torch.zeros(1, g.n_agents, g.observation_size) for n, g in policy.spec.groups.items()})
names = ("hydra", "omegaconf", "vmas", "torchrl", "agents.algorithms.ppo", "agents.tasks.on_policy",
         "marl.engine.trainer")
wrong = [m for m in names if m in sys.modules]
assert not wrong, wrong
"""


def test_neither_training_code_nor_hydra_nor_a_simulator_is_needed(run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_rejected_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        Policy.load(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="can't be read as a policy"):
        Policy.load(tmp_path / "x.safetensors")
    policy = Policy.load(run)
    with pytest.raises(UserError, match="has the groups adversary, agent; give a dict"):
        policy.act(torch.zeros(1, 3, 16))
    with pytest.raises(UserError, match=r"observation of adversary: shape \(2, 3, 5\)"):
        policy.act({"adversary": torch.zeros(2, 3, 5), "agent": torch.zeros(2, 1, 14)})
    for target in ("os.system", "subprocess.Popen", "torch.optim.Adam"):
        with pytest.raises(UserError, match="network._target_=.*(Python's own|must be a class of the kind)"):
            Policy({**policy.metadata, "network": {"_target_": target}})
    state = checkpoint_file.load(run / "checkpoints" / "last.pt")
    del state["processes"][0]["task"]["spec"]
    checkpoint_file.save(tmp_path / "old.pt", state)
    with pytest.raises(UserError, match="earlier version"):
        Policy.load(tmp_path / "old.pt")
    state["config"]["algo"] = None
    checkpoint_file.save(tmp_path / "digits.pt", state)
    with pytest.raises(UserError, match="no agents"):
        Policy.load(tmp_path / "digits.pt")


def test_weights_beside_their_checkpoint_and_policy_files_are_taken_everywhere(run: Path, tmp_path: Path) -> None:
    best = Policy.load(run, "best").state_dict()
    beside = Policy.load(run / "checkpoints" / "best.safetensors").state_dict()
    assert best.keys() == beside.keys() and all(torch.equal(best[name], beside[name]) for name in best)
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((run / "checkpoints" / "best.safetensors").read_bytes())
    with pytest.raises(UserError, match="lone.safetensors holds weights only, and no lone.pt"):
        Policy.load(lone)
    Policy.load(run).save(tmp_path / "policy.safetensors")
    weights = checkpoint_file.load_weights(tmp_path / "policy.safetensors")  # as init_from reads it
    assert weights.keys() == best.keys()
    damaged = bytearray((tmp_path / "policy.safetensors").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "policy.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        Policy.load(tmp_path / "policy.safetensors")
