"""What kernels are made for: this machine's CPU, by a C++ compiler, or a GPU, by NVRTC."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from envs.kernel.backends.cpp import emit
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.cuda.driver import cuda_driver
from envs.kernel.backends.cuda.runtime import CudaStep
from envs.kernel.backends.cuda.source import emit_cuda
from envs.kernel.ir.layout import Layout
from envs.kernel.ir.lowered_step import Lowered
from marl.native import compiler as toolchain
from marl.native import library_cache as cache


class Target(Protocol):
    """One kind of device. `versions` and `build` raise CannotCompile."""

    def versions(self) -> str:
        """What decides kernels beside their source."""

    def emit(self, lowered: Lowered, places: Layout) -> str:
        """The source of a step."""

    def build(self, source: str) -> Path:
        """The library of a source, in the kernel cache."""

    def step(
        self, binary: str, places: Layout, constants: dict, shapes: dict, noise: list, num_envs: int, threads: int
    ) -> KernelStep:
        """A library of the cache at work; arguments as for `KernelStep`."""


class CpuTarget:
    """This machine's processor."""

    def versions(self) -> str:
        """The machine, and the C++ compiler and its time."""
        gxx = Path(toolchain.compiler()).resolve()
        return toolchain.digest(toolchain.machine(), gxx, gxx.stat().st_mtime)

    def emit(self, lowered: Lowered, places: Layout) -> str:
        """C++."""
        return emit(lowered, places)

    def build(self, source: str) -> Path:
        """By the C++ compiler."""
        return toolchain.compile_library(source)

    def step(
        self, binary: str, places: Layout, constants: dict, shapes: dict, noise: list, num_envs: int, threads: int
    ) -> KernelStep:
        """On the CPU."""
        library = toolchain.load(cache.cache_folder() / binary)
        return KernelStep(library, places, constants, shapes, noise, num_envs, threads)


class CudaTarget:
    """A GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def versions(self) -> str:
        """The chip, and NVRTC's version and options."""
        return cuda_driver().versions(self.device)

    def emit(self, lowered: Lowered, places: Layout) -> str:
        """CUDA."""
        return emit_cuda(lowered, places)

    def build(self, source: str) -> Path:
        """By NVRTC."""
        return cuda_driver().compile(source, self.device)

    def step(
        self, binary: str, places: Layout, constants: dict, shapes: dict, noise: list, num_envs: int, threads: int
    ) -> KernelStep:
        """On the GPU, which needs no number of threads."""
        kernel = cuda_driver().load(cache.cache_folder() / binary, "environment_step", self.device)
        return CudaStep(kernel, places, constants, shapes, noise, num_envs, device=self.device)


def target_of(device: torch.device) -> Target:
    """The target of a device's kind. Others than a GPU compute as the CPU does."""
    return CudaTarget(device) if device.type == "cuda" else CpuTarget()
