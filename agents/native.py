"""Gives the networks of `marl` the compiler of `envs`: the two packages know nothing of each other."""

from collections.abc import Sequence
from pathlib import Path

from envs.kernel.build import compile_library
from envs.kernel.tape import Refusal
from marl import native


def enable() -> None:
    """From now on plain MLPs on a CPU run by their kernel (`marl.networks.fused`), built at the first use."""
    native.compiler = build


def build(source: str, options: Sequence[str]) -> Path:
    """As `envs.kernel.build.compile_library`, raising RuntimeError."""
    try:
        return compile_library(source, options)
    except Refusal as refusal:
        raise RuntimeError(str(refusal)) from None
