"""The environment that a policy was trained in, made from what its file says of it."""

from collections.abc import Callable

from agents.policies.policy import Policy
from envs.base import Env
from marl.core.errors import UserError
from marl.core.kinds import build, required


def own_env(policy: Policy, num_envs: int, seed: int) -> Env:
    """A new environment of the policy's own kind on the CPU. What a file names is checked before it is called.

    Raises:
        UserError: the policy does not say which environment it is of, or names what makes none.
    """
    node = policy.metadata.get("env")
    if not node:
        raise UserError("the policy does not say which environment it was trained in; give a run directory")
    node = {**node, "_partial_": True}
    required(node, Callable[..., Env], "env")
    return build(node)(num_envs=num_envs, seed=seed, device="cpu")
