"""Recording data sets: episodes of any policy as the tensors that `marl.data.episodes` keeps.

Shapes: T time, E environments (one episode each), A agents in a group, F features, D action dimensions, S steps of all
episodes together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agents.evaluation.episode_loop import Moment, Players, episode_steps, require_time_limit
from agents.models.policy_heads.exploring import Deterministic
from agents.models.policy_heads.hybrid import Hybrid
from envs.base import Env
from envs.spec import ActionSpec, EnvSpec


@torch.no_grad()
def record(
    env: Env, teacher: Players | None, seed: int, driver: Players | None = None, beta: float = 0.0
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
    require_time_limit(env, "recording")
    generator = torch.Generator(env.device).manual_seed(seed)
    for players in filter(None, (teacher, driver)):
        players.begin(env.num_envs, env.device)
    columns: dict[str, list[Tensor]] = {}
    final: dict[str, Tensor] = {}

    def keep(**tensors: Tensor | None) -> None:
        for name, value in tensors.items():
            if value is not None:
                columns.setdefault(name, []).append(value.clone())

    def act(now: Moment) -> dict[str, Tensor]:
        if teacher is None:
            chosen = {name: (action, None) for name, action in env.random_action(generator).items()}
        else:
            chosen = teacher(now.observation, now.masks, generator)
        moves = {name: action for name, (action, _) in chosen.items()}
        if driver is not None:
            driven = driver.actions(now.observation, now.masks, generator)
            by_teacher = torch.rand(env.num_envs, generator=generator, device=env.device) < beta
            moves = {name: torch.where(by_teacher.view(-1, 1, 1), moves[name], driven[name]) for name in driven}
        for name, (action, raw) in chosen.items():
            mask = now.masks.get(name, {})
            row = {"observation": now.observation[name], "action": action, "raw": raw}
            acts = [mask[kind] for kind in ("alive", "turn") if kind in mask]  # whose action is one to learn from
            row |= {"action_mask": mask.get("action"), "alive": torch.stack(acts).all(0) if acts else None}
            keep(**{f"{name}/{key}": value for key, value in row.items()})
        keep(state=now.state, running=now.running)
        return moves

    for running, transition in episode_steps(env, act, seed):
        keep(**{f"{name}/reward": value for name, value in transition.reward.items()})
        keep(terminated=transition.terminated, truncated=transition.truncated)
        for players in filter(None, (teacher, driver)):
            players.forget(transition)
        for name, terminated in transition.agent_terminated.items():
            rows = {"terminated": terminated, "truncated": transition.agent_truncated[name]}
            rows["next_observation"] = transition.next_observation[name]
            keep(**{f"{name}/{key}": value for key, value in rows.items()})
        ends = {f"{name}/final_observation": value for name, value in transition.next_observation.items()}
        ends |= {} if transition.next_state is None else {"final_state": transition.next_state}
        ended = running & transition.done
        for name, value in ends.items():
            at = ended.view(-1, *[1] * (value.dim() - 1))
            final[name] = torch.where(at, value, final.get(name, torch.zeros_like(value)))
    within = torch.stack(columns.pop("running")).T  # [E, T]
    flat = {name: torch.stack(values, 1)[within] for name, values in columns.items()}
    flat |= {"length": within.sum(1), **final}
    return {name: value.cpu() for name, value in flat.items()}


def to_raw(head: nn.Module, action: Tensor) -> Tensor:
    """The raw action of a policy head that gives `action` [..., A, D] (the environment's units).

    The inverse of `head.to_env`. A squashed Gaussian's is finite only inside of its bounds, so actions are moved
    1e-6 of the range inwards; a deterministic one is in units of half the range; clipped Gaussians and categoricals
    take the action as it is.
    """
    if isinstance(head, Hybrid):
        first, second = action.split((head.n_continuous, head.discrete.raw_size), -1)
        return torch.cat([to_raw(head.continuous, first), second], -1)
    if not hasattr(head, "half_range"):
        return action.to(head.raw_dtype)
    half = torch.where(head.half_range > 0, head.half_range, 1.0)
    unit = (action - head.centre) / half
    return unit.clamp(-1.0, 1.0) if isinstance(head, Deterministic) else unit.clamp(-1 + 1e-6, 1 - 1e-6).atanh()


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
    choices = {"type": "MultiDiscrete", "dtype": "int64", "nvec": [list(action.nvec)] * agents}
    if action.low is None:
        return choices
    bounds = {"low": action.low.tolist(), "high": action.high.tolist()}
    box = {"type": "Box", "dtype": "float32", "shape": [agents, action.n_continuous], **bounds}
    return {"type": "Tuple", "dtype": "float32", "spaces": [box, choices]} if action.nvec else box
