"""Collection of windows that gradients pass through: rewards as functions of the actors' weights, by the simulator.

Shapes: T time, E environments, A agents in a group, F features, S global state features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.collection.collector import Collector, Others
from agents.collection.rollout_buffer import RolloutBuffer
from agents.models.actor import Actor
from agents.models.critic import Critic
from envs.base import Env, Transition
from envs.vmas.gradients.differentiable_steps import DifferentiableSteps
from marl.engine.spans import span


@dataclass
class Window:
    """What a rollout brought, with gradients of everything that the actors did in it.

    Attributes:
        reward: {group: T times float32 [E, A]}.
        params: {group: T times [E, A, n_features]}, the policies' parameters.
        final: {t: ({group: float32 [E, A, F]}, float32 [E, S] or None)}: the true next observations of the steps in
            which some episode was cut off (on a GPU: may have been), if such go on in the targets, and of the last one.
    """

    reward: dict[str, list[Tensor]]
    params: dict[str, list[Tensor]]
    final: dict[int, tuple[dict[str, Tensor], Tensor | None]] = field(default_factory=dict)


class DifferentiableCollector(Collector):
    """Plays T steps per rollout as `Collector`, and keeps them as a graph for one backward pass in `window`.

    The graph begins at the window's first observation; episodes that end cut it
    (`envs.vmas.gradients.differentiable_steps`). Actions are reparameterised: the noise is held fixed. The rollout's
    buffers hold the same numbers without gradients.

    Args:
        env, actors, rollout, critics, others: as for `Collector`; others get no gradients.

    Raises:
        EnvError: the environment has no gradients.
    """

    def __init__(
        self,
        env: Env,
        actors: Mapping[str, Actor],
        rollout: RolloutBuffer,
        critics: Mapping[str, Critic] | None = None,
        others: Others | None = None,
    ) -> None:
        self.steps = DifferentiableSteps(env)
        super().__init__(env, actors, rollout, critics, others)
        self._window: Window | None = None

    def take_window(self) -> Window:
        """The latest rollout's graph, handed out once, so that its memory is free after its backward pass."""
        window, self._window = self._window, None
        return window

    def collect(self, generator: torch.Generator | None = None) -> TensorDict:
        """Play T steps; returns the buffer's `data`, overwritten, and leaves the graph for `take_window`."""
        rollout = self.rollout
        rollout.carry_over()
        noise = {}
        for name, actor in self.actors.items():
            shape = (rollout.steps, self.env.num_envs, self.env.spec.groups[name].n_agents)
            noise[name] = actor.head.noise(shape, self.env.device, generator).unbind()
        self.steps.begin()
        window = Window({name: [] for name in self.actors}, {name: [] for name in self.actors})
        observation = {name: rollout.observed[name][0].clone() for name in self.actors}
        with torch.enable_grad():
            for t in range(rollout.steps):
                transition = self._step(t, observation, {name: each[t] for name, each in noise.items()}, window)
                observation = transition.observation
        with torch.no_grad():
            for name, actor in self.actors.items():
                rollout.log_prob[name].copy_(actor.head.log_prob(rollout.params[name], rollout.action[name]))
        rollout.finish()
        self._window = window
        return rollout.data

    def _step(
        self, t: int, observation: Mapping[str, Tensor], noise: Mapping[str, Tensor], window: Window
    ) -> Transition:
        rollout, actions = self.rollout, {}
        for name, actor in self.actors.items():
            params = actor(observation[name])
            raw = actor.head.draw(params, noise[name])
            actions[name] = actor.head.to_env(raw)
            rollout.params[name][t].copy_(params.detach())
            rollout.action[name][t].copy_(raw.detach())
            window.params[name].append(params)
        if self.others is not None:
            self.others(actions, {name: value[t] for name, value in rollout.observed.items()}, {})
        with span("simulation"):
            transition = self.steps.step(actions)
        for name, rewards in window.reward.items():
            rewards.append(transition.reward[name])
        self._store(t, transition)
        if t == rollout.steps - 1 or (rollout.bootstraps and self._may_be_cut(transition.truncated)):
            window.final[t] = transition.next_observation, transition.next_state
        return transition

    @staticmethod
    def _may_be_cut(truncated: Tensor) -> bool:
        """Whether some episode was cut off, bool [E]; a GPU is not waited for, so that there it may always be."""
        return truncated.is_cuda or bool(truncated.any())

    @torch.no_grad()
    def _store(self, t: int, transition: Transition) -> None:
        rollout = self.rollout
        for name, observed in rollout.observed.items():
            observed[t + 1].copy_(transition.observation[name])
            rollout.next[name][t].copy_(transition.next_observation[name])
            rollout.reward[name][t].copy_(transition.reward[name])
        rollout.terminated[t].copy_(transition.terminated)
        rollout.truncated[t].copy_(transition.truncated)
        if rollout.states is not None:
            rollout.states[t + 1].copy_(transition.state)
            rollout.next_states[t].copy_(transition.next_state)
        if rollout.info is not None:
            rollout.info.write(t, transition.info)
