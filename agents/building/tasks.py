"""The task that runs an algorithm, with the network that the configuration would choose."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from agents.algorithms.base import Algorithm
from agents.tasks.rl_task import RLTask
from envs.base import Env
from marl.config.presets import choices_of, node_of_option, preset
from marl.core import device as devices
from marl.core import seeding
from marl.core.errors import UserError
from marl.core.imports import resolve


def make_task(
    env: Callable[..., Env],
    algo: Algorithm,
    network: Callable[..., nn.Module] | None = None,
    critic_network: Callable[..., nn.Module] | None = None,
    frames: int = 600_000,
    seed: int = 0,
    device: str | torch.device = "auto",
    **settings: Any,
) -> RLTask:
    """The learning problem that `algo` is trained on: environments, networks, and what collects and judges.

    The task's class is the one that the algorithm names: `agents.tasks.on_policy.OnPolicy`,
    `agents.tasks.off_policy.OffPolicy` or `agents.tasks.short_horizon.ShortHorizon`. torch's global random generator is
    seeded, as by the command line, so that the same arguments give the same weights.

    Args:
        env: what makes environments, such as `functools.partial(VmasEnv, "balance", num_envs=60)`: it is called with
            `seed` and `device` for training, and with `num_envs` too for evaluation.
        algo: an algorithm's settings, such as `MAPPO()`.
        network: what makes the actors' networks, such as `functools.partial(MLP, hidden=[64, 64])`; None: the
            algorithm's usual one (`conf/network`).
        critic_network: the same for the critics; None: `network`.
        frames: budget in environment frames (one step of one environment).
        seed: from which every random stream is derived.
        device: "auto" (first GPU, else CPU), "cpu", "cuda", …
        settings: further arguments of the task's class: eval_episodes, eval_deterministic, groups, info, curriculum.

    Raises:
        UserError: `env` is an environment already, the algorithm is in no file of `conf/algo`, or the task's class
            objects.
    """
    if isinstance(env, Env) or not callable(env):
        raise UserError(
            f"env={type(env).__name__}: must be what makes environments, since evaluation has some of its own; "
            f"functools.partial({type(env).__name__}, …) is one"
        )
    chosen = choices_of(type(algo))
    kind = resolve(node_of_option(f"task/{chosen['task']}")["_target_"], "task")
    seeding.seed_global(seed)
    devices.keep_freed_memory()
    networks = network or preset(f"network/{chosen['network']}"), critic_network
    return kind(env, algo, *networks, frames=frames, seed=seed, device=devices.pick(str(device)), **settings)
