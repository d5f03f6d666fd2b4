"""Environments in bulk behind one contract (`envs.base`): vectorised, auto-resetting, exactly resumable."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as in marl

from envs.base import Env, EnvError, Transition  # noqa: E402
from envs.spec import ActionSpec, EnvSpec, GroupSpec  # noqa: E402
from marl.core.imports import on_demand  # noqa: E402

__all__ = ["ActionSpec", "Env", "EnvError", "EnvSpec", "GroupSpec", "Transition"]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "FromTorchRL": "envs.adapters.torchrl_env",
        "GymnasiumEnv": "envs.adapters.gymnasium_env",
        "PettingZooEnv": "envs.adapters.gymnasium_env",
        "VectorEnv": "envs.adapters.vector_env",
        "VmasEnv": "envs.vmas.env",
    },
)
