"""Gives the networks of `marl` the compiler of `envs`: the two packages know nothing of each other."""

from collections.abc import Sequence
from pathlib import Path

from agents import terms
from envs.kernel.build import compile_library
from envs.kernel.tape import Refusal
from marl import adam, native
from marl.networks import fused


def enable() -> None:
    """From now on compiled functions do what they can on a CPU (`marl.native`), each library built at its first use."""
    native.compiler = build


def begin() -> None:
    """Build what training on a CPU will ask for, while the environments' kernels are made."""
    for each in (fused.kernel, terms.functions, adam.functions):
        each.begin()


def build(source: str, options: Sequence[str]) -> Path:
    """As `envs.kernel.build.compile_library`, raising RuntimeError."""
    try:
        return compile_library(source, options)
    except Refusal as refusal:
        raise RuntimeError(str(refusal)) from None
