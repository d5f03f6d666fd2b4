"""Faults of a user's scenario: named with the scenario, the method, the agent and the step; numbers by environment."""

from functools import partial

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.tasks.on_policy import OnPolicy
from envs.base import EnvError
from envs.vmas.env import VmasEnv
from marl.core.errors import Diverged
from marl.engine.trainer import Trainer
from marl.networks import MLP

SOURCE = '''
"""Countdown with a fault of choice, from its third step on."""

import torch
from countdown_scenario import Countdown


class Faulty(Countdown):
    def make_world(self, batch_dim, device, **kwargs):
        self.fault, self.calls = kwargs.pop("fault", "none"), 0
        return super().make_world(batch_dim, device, longest=50, shortest=40, **kwargs)

    def reward(self, agent):
        value = super().reward(agent)
        self.calls += agent is self.world.agents[0]
        if self.calls >= 3 and agent is self.world.agents[1]:
            if self.fault == "raise":
                return value / {}["nothing"]
            if self.fault == "assertion":
                assert value is None, "none today"
            if self.fault == "reward float":
                return 1.0
            if self.fault == "reward shape":
                return value[:1]
            if self.fault == "reward nan":
                value = value.clone()
                value[2] = float("nan")
        return value

    def observation(self, agent):
        seen = super().observation(agent)
        if self.fault == "observation dtype":
            return seen.long()
        if self.calls >= 3 and self.fault == "observation shape":
            return seen[:1]
        return seen

    def info(self, agent):
        faulty_info = {"text info": {"x": "hello"}, "float info": {"x": 3.0}}.get(self.fault)
        return faulty_info or super().info(agent)

    def done(self):
        return super().done().float() if self.fault == "done dtype" else super().done()
'''


@pytest.fixture(scope="module")
def faulty(own_scenario, tmp_path_factory):
    import sys

    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty_countdown.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    yield "faulty_countdown.Faulty"
    sys.path.remove(str(folder))


def make(scenario: str, fault: str = "none") -> VmasEnv:
    return VmasEnv(scenario, num_envs=4, max_steps=50, fast="off", pool_size=5, scenario_kwargs={"fault": fault})


def play(env: VmasEnv, steps: int = 6) -> None:
    for _ in range(steps):
        env.step(env.random_action(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", r"raised KeyError {} in .*faulty_countdown.py:\d+ \(reward\): 'nothing'"),
        ("assertion", r"raised AssertionError {} in .*faulty_countdown.py:\d+ \(reward\): none today"),
        ("reward float", r"reward of agent_1 returned no tensor {} must be a tensor \[E\], one number per environment"),
        ("text info", r"info of agent_0 returned str 'hello' {} must be a dict of tensors"),
        ("float info", r"info of agent_0 returned float 3.0 {} must be a dict of tensors"),
        ("reward shape", r"reward of agent_1 returned torch.float32 \[1\] {} must be a tensor \[4\]"),
        ("observation shape", r"observation of agent_0 returned torch.float32 \[1, 3\] {} "),
        ("observation dtype", r"observation of agent_0 returned torch.int64 \[4, 3\] {} .*float tensor \[4, F\]"),
        ("done dtype", r"done of the scenario returned torch.float32 \[4\] {} must be a bool tensor \[4\]"),
    ],
)
def test_faults_are_one_sentence(faulty, fault, words):
    env = make(faulty)
    env.reset(0)
    play(env, 4)
    env.simulator.scenario.fault = fault
    with pytest.raises(EnvError, match=words.format("at step 5 of its environments[,;]")) as error:
        play(env)
    assert "faulty_countdown.Faulty" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["raise", "done dtype"])
def test_faults_show_before_anything_starts(faulty, fault):
    with pytest.raises(EnvError, match="faulty_countdown.Faulty.*when it was tried out"):
        make(faulty, fault)


def test_a_number_that_is_not_finite_is_traced_to_its_environment_and_step(faulty, tmp_path):
    kwargs = {"fault": "reward nan"}
    env = partial(VmasEnv, faulty, num_envs=4, max_steps=50, fast="off", pool_size=5, scenario_kwargs=kwargs)
    algo = PPO(rollout_steps=8, minibatch_size=16, epochs=1)
    task = OnPolicy(env, algo, partial(MLP, hidden=[8]), frames=320, eval_episodes=2)
    message = r"iteration 1: loss is nan \(reward of agent_1 is nan in environment 2, step \d"
    with pytest.raises(Diverged, match=message):
        Trainer(progress="off").fit(task, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*.pt"))
