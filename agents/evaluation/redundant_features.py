"""What observations repeat of the global state, so that a critic that reads both need not read it twice.

The feature-pruned agent-specific state of Yu et al. 2022 (arXiv 2103.01955, section 5.2).
Shapes: N samples, A agents in a group, F features of an observation, S features of the global state.
"""

from dataclasses import replace

import torch
from torch import Tensor

from agents.evaluation.episode_loop import Moment, episode_steps
from envs.base import Env
from envs.spec import EnvSpec

STEPS = 20  # of random play; velocities, say, are all the same until something moves


@torch.no_grad()
def repeated(observation: Tensor, state: Tensor) -> tuple[int, ...]:
    """Features that every agent's observation repeats: of each agent, some feature of the state is always the same.

    observation float32 [N, A, F], state float32 [N, S]. The state's feature may be another for each agent.
    """
    same = torch.stack([(x.unsqueeze(-1) == state.unsqueeze(-2)).all(0).any(-1) for x in observation.unbind(1)])
    return tuple(same.all(0).nonzero().flatten().tolist())


def find_repeated(env: Env, seed: int) -> EnvSpec:
    """`env.spec` with `GroupSpec.in_state`, seen in `STEPS` steps of random play. `env` is one of its own for this."""
    generator = torch.Generator(env.device).manual_seed(seed)
    observations: dict[str, list[Tensor]] = {name: [] for name in env.spec.groups}
    states: list[Tensor] = []

    def act(now: Moment) -> dict[str, Tensor]:
        if not states:
            see(now.observation, now.state)
        return env.random_action(generator)

    def see(observation: dict[str, Tensor], state: Tensor) -> None:
        states.append(state)
        for name, value in observation.items():
            observations[name].append(value)

    for _, transition in episode_steps(env, act, seed, STEPS):
        see(transition.next_observation, transition.next_state)
    groups = {
        name: replace(group, in_state=repeated(torch.cat(observations[name]), torch.cat(states)))
        for name, group in env.spec.groups.items()
    }
    return replace(env.spec, groups=groups)
