"""Recording data sets: episodes of any policy as the tensors that `marl.data.episodes` keeps.

Shapes: T time, E environments (one episode each), A agents in a group, F features, D action dimensions, S steps of all
episodes together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agents.actor import Actor
from agents.memory import Memories
from envs.base import Env
from envs.spec import ActionSpec, EnvSpec
from marl.errors import UserError

CHECK_EVERY = 16  # steps between looks at whether all episodes have ended: each look waits for the device

class Acting:
    """What `record` asks for, of actors (`agents.actor.Actor`) or of functions observation, generator -> action."""

    def __init__(self, actors: Mapping[str, Any], deterministic: bool = False) -> None:
        self.actors, self.deterministic = actors, deterministic

    def begin(self, n_envs: int, device: torch.device) -> None:
        """New episodes: networks with a memory remember nothing."""
        self.memories = Memories(self.actors, n_envs, device)

    def __call__(
        self, observation: Mapping[str, Tensor], masks: Mapping, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{group: [E, A, F]} -> {group: (action in the environment's units, raw action or None)}, both [E, A, D]."""
        chosen = {}
        for name, actor in self.actors.items():
            if isinstance(actor, Actor):
                params = self.memories.params(name, actor, observation[name], masks.get(name, {}).get("action"))
                raw = actor.choose(params, self.deterministic, generator)[0]
                chosen[name] = actor.head.to_env(raw), raw
            else:
                chosen[name] = actor(observation[name], generator), None
        return chosen


@torch.no_grad()
def record(
    env: Env, teacher: Acting | None, seed: int, driver: Acting | None = None, beta: float = 0.0
) -> dict[str, Tensor]:
    """One episode in every environment, from a reset with `seed`; equal arguments give equal episodes.

    Args:
        env: its number of environments is that of the episodes.
        teacher: whose actions are kept; None = uniformly random ones.
        driver: who moves the agents instead, while the teacher's answers are kept (DAgger, Ross et al. 2011).
        beta: probability, for each episode and step apart, that the teacher moves the agents all the same.

    Returns:
        The tensors of a shard, on the CPU.

    Raises:
        UserError: the environment has no time limit, so that episodes need not end.
    """
    if env.spec.max_steps is None:
        raise UserError("env.max_steps=null: recording needs a time limit, a number of steps of at least 1")
    generator = torch.Generator(env.device).manual_seed(seed)
    observation, state = env.reset(seed)
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    for player in filter(None, (teacher, driver)):
        player.begin(env.num_envs, env.device)
    kept: dict[str, list[Tensor]] = {}
    final: dict[str, Tensor] = {}

    def keep(**tensors: Tensor | None) -> None:
        for name, value in tensors.items():
            if value is not None:
                kept.setdefault(name, []).append(value.clone())

    masked = any(group.masks for group in env.spec.groups.values())
    for t in range(env.spec.max_steps):
        masks = env.masks() if masked else {}
        if teacher is None:
            told = {name: (action, None) for name, action in env.random_action(generator).items()}
        else:
            told = teacher(observation, masks, generator)
        moves = {name: action for name, (action, _) in told.items()}
        if driver is not None:
            own = {name: action for name, (action, _) in driver(observation, masks, generator).items()}
            by_teacher = torch.rand(env.num_envs, generator=generator, device=env.device) < beta
            moves = {name: torch.where(by_teacher.view(-1, 1, 1), moves[name], own[name]) for name in own}
        for name, (action, raw) in told.items():
            mask = masks.get(name, {})
            own = {"observation": observation[name], "action": action, "raw": raw}
            own |= {"action_mask": mask.get("action"), "alive": mask.get("alive")}
            keep(**{f"{name}/{key}": value for key, value in own.items()})
        keep(state=state, running=running)
        step = env.step(moves)
        keep(**{f"{name}/reward": value for name, value in step.reward.items()})
        keep(terminated=step.terminated, truncated=step.truncated)
        ends = {f"{name}/final_observation": value for name, value in step.next_observation.items()}
        ends |= {} if step.next_state is None else {"final_state": step.next_state}
        now = running & step.done
        for name, value in ends.items():
            at = now.view(-1, *[1] * (value.dim() - 1))
            final[name] = torch.where(at, value, final.get(name, torch.zeros_like(value)))
        running = running & ~step.done
        observation, state = step.observation, step.state
        if t % CHECK_EVERY == CHECK_EVERY - 1 and not running.any():
            break
    within = torch.stack(kept.pop("running")).T  # [E, T]
    flat = {name: torch.stack(values, 1)[within] for name, values in kept.items()}
    flat |= {"length": within.sum(1), **final}
    return {name: value.cpu() for name, value in flat.items()}


def to_raw(head: nn.Module, action: Tensor) -> Tensor:
    """The raw action of a policy head that gives `action` [..., A, D] (the environment's units).

    The inverse of `head.to_env`. A squashed Gaussian's is finite only inside of its bounds, so actions are moved
    1e-6 of the range inwards; clipped Gaussians and categoricals take the action as it is.
    """
    if not hasattr(head, "half_range"):
        return action.to(head.raw_dtype)
    half = torch.where(head.half_range > 0, head.half_range, 1.0)
    return ((action - head.centre) / half).clamp(-1 + 1e-6, 1 - 1e-6).atanh()


def metadata(name: str, spec: EnvSpec, env: Mapping[str, Any], algorithm: str, description: str) -> dict[str, Any]:
    """What a data set says of itself, under the names that Minari's metadata have; the totals come with the shards."""
    return {
        "dataset_id": name,
        "algorithm_name": algorithm,
        "description": description,
        "data_format": "safetensors",
        "env_spec": {key: value for key, value in env.items() if not key.startswith("_")},
        "observation_space": {
            group.name: {"type": "Box", "dtype": "float32", "shape": [group.n_agents, group.observation_size]}
            for group in spec.groups.values()
        },
        "action_space": {group.name: _space(group.action, group.n_agents) for group in spec.groups.values()},
    }


def _space(action: ActionSpec, agents: int) -> dict[str, Any]:
    if action.kind != "continuous":
        return {"type": "MultiDiscrete", "dtype": "int64", "nvec": [list(action.nvec)] * agents}
    bounds = {"low": action.low.tolist(), "high": action.high.tolist()}
    return {"type": "Box", "dtype": "float32", "shape": [agents, action.size], **bounds}
