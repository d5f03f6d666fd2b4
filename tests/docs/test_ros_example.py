"""The control loop and the ROS 2 node of docs/export.md, without ROS: what it does on time, late, blind and stopped."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from agents.deploy.export import export
from agents.policies.policy import Policy
from tests.fixtures.runs import make_run
from tests.fixtures.sources import tree

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "ros2"
AGENTS = [f"agent_{i}" for i in range(4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Policy, str]]:
    pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("ros")
    run = make_run(folder / "gru", "env=vmas/balance", "network=gru", "network.hidden=8")
    policies = {"mlp": Policy.load(ROOT / "docs" / "zoo" / "balance.safetensors"), "gru": Policy.load(run)}
    return {name: (policy, str(export(policy, "onnx", folder / f"{name}_file"))) for name, policy in policies.items()}


@pytest.fixture
def loop_module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("control_loop")
    sys.modules.pop("control_loop", None)


def observation(policy: Policy, step: int) -> torch.Tensor:
    group = policy.spec.groups["agents"]
    return torch.randn(group.n_agents, group.observation_size, generator=torch.Generator().manual_seed(step))


def tell(loop, seen: torch.Tensor, now: float) -> None:
    for agent, features in zip(AGENTS, seen, strict=True):
        assert loop.observe(agent, features.tolist(), now)


def rows(command) -> np.ndarray:
    return np.stack([command.actions[agent] for agent in AGENTS])


def test_it_needs_numpy_and_onnxruntime_alone() -> None:
    imported = [node for node in tree(EXAMPLE / "control_loop.py").body if hasattr(node, "names")]
    names = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert names - {"json", "collections.abc", "dataclasses"} == {"numpy", "onnxruntime"}


def test_it_acts_and_remembers_as_the_policy_does_and_forgets_when_it_was_blind(files, loop_module) -> None:
    policy, model = files["gru"]
    loop, memory = loop_module.ControlLoop(model, rate=10, max_age=0.15), policy.memory()
    for step in range(5):
        seen = observation(policy, step)
        tell(loop, seen, step / 10)
        action, memory = policy.act(seen, memory=memory)
        command = loop.step(step / 10)
        assert command.status == "acting" and np.abs(rows(command) - action.numpy()).max() < 1e-5
    assert loop.step(0.5).status == "acting"  # 0.1 s old: not yet stale
    blind = loop.step(0.6)
    assert blind.status == "stale" and not rows(blind).any()
    tell(loop, observation(policy, 9), 0.7)
    action = policy.act(observation(policy, 9), memory=policy.memory())[0]
    assert np.abs(rows(loop.step(0.7)) - action.numpy()).max() < 1e-5


def test_one_silent_agent_stops_all_unless_it_is_another_process_that_drives_it(files, loop_module) -> None:
    policy, model = files["mlp"]
    seen = observation(policy, 0)
    loop = loop_module.ControlLoop(model, 10, 0.15)
    for agent, features in zip(AGENTS[1:], seen[1:], strict=True):
        loop.observe(agent, features, 0.0)
    assert loop.step(0.0).status == "stale"
    alone = loop_module.ControlLoop(model, 10, 0.15, agents=["agent_2"])
    alone.observe("agent_2", seen[2], 0.0)
    command = alone.step(0.0)
    assert command.status == "acting" and list(command.actions) == ["agent_2"]
    assert np.abs(command.actions["agent_2"] - policy.act(seen)[2].numpy()).max() < 1e-6


def test_limits_hold_late_steps_are_told_and_nonsense_is_left_out(files, loop_module) -> None:
    policy, model = files["mlp"]
    seen = 100 * observation(policy, 0)  # tanh saturates: actions are nearly 1 or -1
    wanted = policy.act(seen).numpy()
    assert np.abs(wanted).max() > 0.9
    loop = loop_module.ControlLoop(model, rate=10, max_age=1.0, max_change=2.0)
    tell(loop, seen, 0.0)
    for step in range(1, 7):  # 0.2 per period at most
        command = loop.step(step / 10)
        assert np.abs(rows(command)).max() <= 1 and not command.late
        np.testing.assert_allclose(rows(command), np.clip(wanted, -0.2 * step, 0.2 * step), atol=1e-5)
    assert loop.step(0.76).late
    assert not loop.observe("agent_0", [float("nan")] * seen.shape[1], 0.8)
    with pytest.raises(ValueError, match=r"agent_0: an observation has 16 features, this one \[3\]"):
        loop.observe("agent_0", [1.0, 2.0, 3.0], 0.8)
    with pytest.raises(ValueError, match="the policy does not know agent_9; it knows agent_0, agent_1"):
        loop_module.ControlLoop(model, 10, 0.1, agents=["agent_9"])
    loop.session = SimpleNamespace(run=lambda outputs, inputs: [np.full((1, 4, 2), np.nan, np.float32)])
    command = loop.step(0.8)
    assert command.status == "invalid" and not rows(command).any()


def test_the_watchdog_barks_once_until_it_is_fed(loop_module) -> None:
    barks = []
    dog = loop_module.Watchdog(0.3, lambda: barks.append(1), now=0.0)
    assert not dog.check(0.3) and dog.check(0.31) and dog.check(5.0) and barks == [1]
    dog.feed(5.0)
    assert not dog.check(5.2) and dog.check(5.4) and barks == [1, 1]


class StubNode:
    """What rclpy's Node offers to this example; keeps what is asked of it."""

    parameters: dict = {}

    def __init__(self, name: str) -> None:
        self.sent, self.callbacks, self.lines = {}, {}, []

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(publish=lambda message: self.sent.setdefault(topic, []).append(message.data))

    def create_subscription(self, kind, topic, callback, qos):
        self.callbacks[topic] = callback

    def create_service(self, kind, name, callback):
        self.callbacks[name] = callback

    def create_timer(self, period, callback):
        self.period, self.callbacks["timer"] = period, callback

    def get_logger(self):
        return SimpleNamespace(info=self.lines.append, warning=self.lines.append, error=self.lines.append)


def test_the_node_hands_messages_through(files, loop_module, monkeypatch) -> None:
    policy, model = files["mlp"]
    message = type("Float32MultiArray", (), {"__init__": lambda self, data=(): setattr(self, "data", data)})
    stubs = {
        "rclpy": {},
        "rclpy.node": {"Node": StubNode},
        "rclpy.qos": {"qos_profile_sensor_data": 10},
        "rclpy.signals": {"SignalHandlerOptions": SimpleNamespace(NO=0)},
        "std_msgs": {},
        "std_msgs.msg": {"Float32MultiArray": message},
        "std_srvs": {},
        "std_srvs.srv": {"Empty": SimpleNamespace(Request=object, Response=object)},
    }
    for name, content in stubs.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(StubNode, "parameters", {"model": model, "rate": 20.0})
    monkeypatch.delitem(sys.modules, "policy_node", raising=False)
    node = importlib.import_module("policy_node").PolicyNode()
    clock = [100.0]
    monkeypatch.setattr(sys.modules["policy_node"].time, "monotonic", lambda: clock[0])
    assert node.period == 1 / 20 and node.loop.max_age == 0.1
    node.callbacks["timer"]()
    assert node.sent["agent_3/action"] == [[0.0, 0.0]]  # nothing was seen yet
    seen = observation(policy, 0)
    for agent, features in zip(AGENTS, seen, strict=True):
        node.callbacks[f"{agent}/observation"](message(data=features.tolist()))
    node.callbacks["timer"]()
    np.testing.assert_allclose(node.sent["agent_3/action"][1], policy.act(seen)[3].numpy(), atol=1e-6)
    node.callbacks["agent_3/observation"](message(data=[1.0]))
    assert node.lines == ["stale -> acting", "agent_3: an observation has 16 features, this one [1]"]
    assert node.callbacks["~/reset"](None, "response") == "response"
    clock[0] += 1.0  # the timer hangs
    assert node.watchdog.check(clock[0]) and node.sent["agent_3/action"][2] == [0.0, 0.0]
