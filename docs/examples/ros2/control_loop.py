"""A team's exported policy in a control loop, with numpy and onnxruntime alone; policy_node.py is its ROS 2 node.

Shapes: A agents of a group, F features, D action dimensions, M numbers of memory. Times are seconds of one clock.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime


@dataclass
class Command:
    """What one step of the loop decided.

    status: "acting"; "stale" = an observation is missing or too old; "invalid" = the policy gave what is no number.
    actions: {agent: [D]} in the policy's units; the safe action unless acting.
    late: whether more than one and a half periods have passed since the step before.
    """

    status: str
    actions: dict[str, np.ndarray] = field(default_factory=dict)
    late: bool = False


class ControlLoop:
    """Observations come in whenever they come; `step` is called at a fixed rate and always answers.

    Args:
        model: policy.onnx of scripts/export.py.
        rate: steps per second; that of the training, 1 / the simulator's time step.
        max_age: seconds after which an observation is stale.
        max_change: of a continuous action per second, in its units; None = no limit.
        agents: those that this process drives; None = all. The others' rows are zeros, so the policy must be one that
            acts on each agent's own observation (an MLP, a GRU or an LSTM).

    Raises:
        ValueError: an agent that the policy does not know, or a policy that needs masks.
    """

    def __init__(
        self,
        model: str,
        rate: float,
        max_age: float,
        max_change: float | None = None,
        agents: Sequence[str] | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # no threads to wake: at batch 1 they cost more than they bring
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        spec = json.loads(self.session.get_modelmeta().custom_metadata_map["policy"])["spec"]["groups"]
        shapes = {each.name: each.shape for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]
        if masked := [name for name in shapes if name.endswith("_action_mask")]:
            raise ValueError(f"this policy needs {', '.join(masked)}, which the loop does not have")
        self.groups = {name: group for name, group in spec.items() if f"{name}_observation" in shapes}
        places = {a: (n, row) for n, g in self.groups.items() for row, a in enumerate(g["agents"])}
        if unknown := [agent for agent in agents or () if agent not in places]:
            raise ValueError(f"the policy does not know {', '.join(unknown)}; it knows {', '.join(places)}")
        self.places = {agent: places[agent] for agent in agents or places}
        self.observations = {
            name: np.zeros((1, len(group["agents"]), group["observation_size"]), np.float32)
            for name, group in self.groups.items()
        }
        remembered = {name: shape[1:] for name, shape in shapes.items() if name.endswith("_memory")}
        self.memories = {name: np.zeros((1, *shape), np.float32) for name, shape in remembered.items()}
        self.period, self.max_age, self.max_change = 1 / rate, max_age, max_change
        self.seen: dict[str, float] = {}
        self.last_step: float | None = None
        self.actions = {agent: self.safe(agent) for agent in self.places}  # what the robots do now

    def reset(self) -> None:
        """An episode begins: nothing is remembered. Actions go on from the last ones, within `max_change`."""
        for memory in self.memories.values():
            memory[:] = 0

    def safe(self, agent: str) -> np.ndarray:
        """The action of an agent that is to stand still, [D]: 0, within its limits. Change it to suit your robot."""
        action = self.groups[self.places[agent][0]]["action"]
        zeros = np.zeros(len(action["low"][0] if action["low"] else ()) + len(action["nvec"]), np.float32)
        return self.limited(agent, zeros)

    def limited(self, agent: str, action: np.ndarray) -> np.ndarray:
        """The action [D] with its continuous numbers, which come first, inside of the agent's range."""
        name, row = self.places[agent]
        bounds = self.groups[name]["action"]
        if bounds["low"]:
            count = len(bounds["low"][row])
            action[:count] = np.clip(action[:count], bounds["low"][row], bounds["high"][row])
        return action

    def observe(self, agent: str, features: Sequence[float], now: float) -> bool:
        """Take an agent's newest observation [F]. What is not finite is as if it had not come: False.

        Raises:
            ValueError: another number of features.
        """
        name, row = self.places[agent]
        values, size = np.asarray(features, np.float32), self.groups[name]["observation_size"]
        if values.shape != (size,):
            raise ValueError(f"{agent}: an observation has {size} features, this one {list(values.shape)}")
        if not np.isfinite(values).all():
            return False
        self.observations[name][0, row] = values
        self.seen[agent] = now
        return True

    def step(self, now: float) -> Command:
        """Actions for this period. Where they are not the policy's the episode begins again with the next that are."""
        late = self.last_step is not None and now - self.last_step > 1.5 * self.period
        self.last_step = now
        if any(now - self.seen.get(agent, -np.inf) > self.max_age for agent in self.places):
            return self.stop("stale", late)
        inputs = {f"{name}_observation": value for name, value in self.observations.items()}
        outputs = dict(zip(self.outputs, self.session.run(None, inputs | self.memories), strict=True))
        chosen = {agent: outputs[f"{name}_action"][0, row].copy() for agent, (name, row) in self.places.items()}
        if not all(np.isfinite(action).all() for action in chosen.values()):
            return self.stop("invalid", late)
        for name in self.memories:
            self.memories[name] = outputs[name.removesuffix("_memory") + "_next_memory"]
        self.actions = {agent: self.limited(agent, self.smooth(agent, action)) for agent, action in chosen.items()}
        return Command("acting", self.actions, late)

    def smooth(self, agent: str, action: np.ndarray) -> np.ndarray:
        """The action [D], its continuous numbers no further from the last ones than a period allows."""
        low, last = self.groups[self.places[agent][0]]["action"]["low"], self.actions[agent]
        if self.max_change is not None and low:
            count, change = len(low[0]), self.max_change * self.period
            action[:count] = np.clip(action[:count], last[:count] - change, last[:count] + change)
        return action

    def stop(self, status: str, late: bool) -> Command:
        """The safe actions, at once."""
        self.reset()
        self.actions = {agent: self.safe(agent) for agent in self.places}
        return Command(status, self.actions, late)


class Watchdog:
    """Says once that the loop has not been heard of for `timeout` seconds; from a thread of its own.

    stop: called then, until the next `feed` not again.
    """

    def __init__(self, timeout: float, stop: Callable[[], None], now: float) -> None:
        self.timeout, self.stop = timeout, stop
        self.fed, self.barked = now, False

    def feed(self, now: float) -> None:
        """The loop has done a step."""
        self.fed, self.barked = now, False

    def check(self, now: float) -> bool:
        """Whether the loop is overdue; the first time `stop` is called."""
        overdue = now - self.fed > self.timeout
        if overdue and not self.barked:
            self.barked = True
            self.stop()
        return overdue
