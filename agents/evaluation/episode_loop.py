"""The one loop that steps policies through environments until their episodes end, or for a number of steps.

Shapes: E environments (one episode each), A agents in a group, F features, D action dimensions, S state features.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.models.actor import Actor
from agents.models.hidden_state import Memories
from agents.players.seats import Seats
from envs.base import Env, Transition
from marl.core.errors import UserError

CHECK_EVERY = 16  # steps between looks at whether all episodes have ended: each look waits for the device


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known before a step. An environment may write over its tensors in the step: clone what is to last.

    Attributes:
        observation: {group: float32 [E, A, F]}.
        state: float32 [E, S], or None where the environment offers none.
        masks: as `Env.masks` returns them; {} where no group has any.
        running: bool [E], where the first episode has not ended yet.
    """

    observation: dict[str, Tensor]
    state: Tensor | None
    masks: Mapping[str, Mapping[str, Tensor]]
    running: Tensor


def episode_steps(
    env: Env, act: Callable[[Moment], dict[str, Tensor]], seed: int, steps: int | None = None
) -> Iterator[tuple[Tensor, Transition]]:
    """Step every environment from a reset with `seed`.

    Args:
        env: the environments; environments whose episode has ended are stepped on with the others.
        act: gives the actions {group: [E, A, D]} in the environment's units.
        seed: of the reset.
        steps: how many; None = until all first episodes have ended, at most the time limit `env.spec.max_steps`.

    Yields:
        Where the first episode was still running before the step, bool [E], and what the step brought.
    """
    observation, state = env.reset(seed)
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    masked = any(group.masks for group in env.spec.groups.values())
    limit = env.spec.max_steps if steps is None else steps
    assert limit is not None, "an environment without a time limit: say `steps`"
    for t in range(limit):
        actions = act(Moment(observation, state, env.masks() if masked else {}, running))
        transition = env.step(actions)
        yield running, transition
        running = running & ~transition.done
        observation, state = transition.observation, transition.state
        if steps is None and t % CHECK_EVERY == CHECK_EVERY - 1 and not running.any():
            break


def require_time_limit(env: Env, purpose: str) -> None:
    """Raises UserError where episodes of `env` need not end; `purpose` is what needs them to."""
    if env.spec.max_steps is None:
        raise UserError(f"env.max_steps=null: {purpose} needs a time limit, a number of steps of at least 1")


class Players:
    """Who acts for each group: actors (`agents.models.actor.Actor`), or functions observation, generator -> action.

    Args:
        actors: by group; `agents.players.seats.Seats` where a group's agents are played by two of them.
        deterministic: actors play their mode instead of samples.
    """

    def __init__(self, actors: Mapping[str, Any], deterministic: bool = False) -> None:
        self.seats = {name: one for name, one in actors.items() if isinstance(one, Seats)}
        self.actors = {name: one.judged if name in self.seats else one for name, one in actors.items()}
        self.deterministic = deterministic
        others = {name: one.others for name, one in self.seats.items()}
        self.others = Players(others, deterministic) if others else None

    def begin(self, n_envs: int, device: torch.device) -> None:
        """New episodes: networks with a memory remember nothing."""
        self.memories, self.device = Memories(self.actors, n_envs, device), device
        if self.others is not None:
            self.others.begin(n_envs, device)

    def forget(self, moved: Transition) -> None:
        """Memories begin again where an episode has ended with this step, an agent's own or the environment's."""
        truncated, device = moved.agent_truncated, self.device
        ended = {name: (flag | truncated[name]).to(device) for name, flag in moved.agent_terminated.items()}
        self.memories.forget(moved.done.to(device), ended)
        if self.others is not None:
            self.others.forget(moved)

    def __call__(
        self, observation: Mapping[str, Tensor], masks: Mapping, generator: torch.Generator | None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{group: [E, A, F]} -> {group: (action in the environment's units, raw action or None)}, both [E, A, D]."""
        chosen = {}
        for name, actor in self.actors.items():
            if isinstance(actor, Actor):
                kinds = masks.get(name, {})
                params = self.memories.params(name, actor, observation[name], kinds.get("action"), kinds.get("alive"))
                raw = actor.choose(params, self.deterministic, generator)[0]
                chosen[name] = actor.head.to_env(raw), raw
            else:
                chosen[name] = actor(observation[name], generator), None
        if self.others is not None:
            for name, (action, _) in self.others(observation, masks, generator).items():
                own = self.seats[name].own.unsqueeze(-1)
                chosen[name] = torch.where(own, chosen[name][0], action), None
        return chosen

    def actions(
        self, observation: Mapping[str, Tensor], masks: Mapping, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """The same, the actions in the environment's units alone."""
        return {name: action for name, (action, _) in self(observation, masks, generator).items()}
