"""Environments in bulk behind one contract (`envs.base`): vectorised, auto-resetting, exactly resumable."""

from envs.base import ActionSpec, Env, EnvError, EnvSpec, GroupSpec, Transition

__all__ = ["ActionSpec", "Env", "EnvError", "EnvSpec", "GroupSpec", "Transition"]
