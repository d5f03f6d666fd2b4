"""A compiled gradient at work on a GPU: one launch, in the order of torch's own work."""

import ctypes
from typing import Any

import torch

from envs.kernel.backends.cuda.driver import CudaDriver, addresses, cuda_driver
from envs.kernel.backends.cuda.runtime import WARP, threads_for
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.ir.gradient_layout import GradientLayout


class CudaGradientKernel(GradientKernel):
    """The gradients of one step of E environments on a GPU: as `GradientKernel`, with nothing waited for.

    What is given lies on the GPU, where memory that torch frees meanwhile is used again in the same order of work.
    """

    def __init__(self, kernel: Any, places: GradientLayout, num_envs: int, device: torch.device | str) -> None:
        self._driver: CudaDriver = cuda_driver()
        super().__init__(kernel, places, num_envs, device=device)
        self._threads = threads_for(num_envs)
        self._blocks = -(-num_envs // self._threads)
        self._sizes = ctypes.c_longlong(num_envs), ctypes.c_longlong(self.padded)
        self._arguments = addresses([self._pointers, *self._sizes])

    def _open(self, library: Any) -> int:
        self._kernel = library
        return WARP

    def _run(self) -> None:
        self._driver.launch(self._kernel, self._blocks, self._threads, ctypes.addressof(self._arguments), self.device)
