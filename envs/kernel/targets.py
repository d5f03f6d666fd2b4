"""What kernels are made for: this machine's CPU, by a C++ compiler, or a GPU, by NVRTC."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from envs.kernel.backends.cpp import emit
from envs.kernel.backends.cpp_gradient import emit_gradient
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.cuda.driver import cuda_driver
from envs.kernel.backends.cuda.gradient import NAME, emit_cuda_gradient
from envs.kernel.backends.cuda.gradient_runtime import CudaGradientKernel
from envs.kernel.backends.cuda.runtime import CudaStep
from envs.kernel.backends.cuda.source import emit_cuda
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.ir.gradient import Gradient
from envs.kernel.ir.gradient_layout import GradientLayout
from envs.kernel.ir.layout import Layout
from envs.kernel.ir.lowered_step import Lowered
from marl.native import compiler as toolchain
from marl.native import library_cache as cache

# Long straight code: these passes take a quarter of the compiler's time there and make it no faster.
LONG = [*toolchain.FLAGS, "-fno-schedule-insns2", "-fno-tree-ter"]


class Target(Protocol):
    """One kind of device. `versions` and what builds raise CannotCompile."""

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

    def emit_gradient(self, gradient: Gradient, places: GradientLayout) -> list[str]:
        """The sources of a step's gradients, of one library."""

    def build_gradient(self, sources: list[str]) -> Path:
        """Their library, in the kernel cache."""

    def gradient(self, binary: str, places: GradientLayout, num_envs: int, threads: int) -> GradientKernel:
        """Such a library of the cache at work; arguments as for `GradientKernel`."""


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

    def emit_gradient(self, gradient: Gradient, places: GradientLayout) -> list[str]:
        """C++, in several units where it is long."""
        return emit_gradient(gradient, places)

    def build_gradient(self, sources: list[str]) -> Path:
        """By the C++ compiler, units side by side."""
        return toolchain.compile_library(sources[0], LONG, sources[1:])

    def gradient(self, binary: str, places: GradientLayout, num_envs: int, threads: int) -> GradientKernel:
        """On the CPU."""
        return GradientKernel(toolchain.load(cache.cache_folder() / binary), places, num_envs, threads)


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

    def emit_gradient(self, gradient: Gradient, places: GradientLayout) -> list[str]:
        """CUDA, one source."""
        return [emit_cuda_gradient(gradient, places)]

    def build_gradient(self, sources: list[str]) -> Path:
        """By NVRTC."""
        return self.build(sources[0])

    def gradient(self, binary: str, places: GradientLayout, num_envs: int, threads: int) -> GradientKernel:
        """On the GPU, which needs no number of threads."""
        kernel = cuda_driver().load(cache.cache_folder() / binary, NAME, self.device)
        return CudaGradientKernel(kernel, places, num_envs, self.device)


def target_of(device: torch.device) -> Target:
    """The target of a device's kind. Others than a GPU compute as the CPU does."""
    return CudaTarget(device) if device.type == "cuda" else CpuTarget()
