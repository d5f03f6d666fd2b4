"""CUDA sources as C++ on the CPU: the same text, its grid of threads as a loop, for machines without a GPU.

What a kernel computes is compared with the simulator in this way. What a GPU adds (its own functions, warps, memory
that threads race for) is not. The library answers two calls: `launch_NAME`, with a kernel's arguments as the driver
takes them, and for a step or its gradients also `step`, by which `KernelStep` or `GradientKernel` run it on the CPU.
"""

import ctypes
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.kernel.backends.cuda.source import BLOCK
from marl.native.compiler import FLAGS, compile_library, load

# It makes few steps: of sampling's gradients, -O2 takes 7.6 s to make what this makes in 3.2.
OPTIONS = ["-Og" if flag == "-O2" else flag for flag in FLAGS]
BEFORE = """
#include <cmath>
#include <cstdint>
#include <cstring>
struct Dim { unsigned x, y, z; };
static thread_local Dim threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
"""
LAUNCH = """
extern "C" void launch_NAME(unsigned blocks, unsigned threads, void** arguments) {
  gridDim = Dim{blocks, 1, 1}; blockDim = Dim{threads, 1, 1};
  for (unsigned b = 0; b < blocks; b++) for (unsigned k = 0; k < threads; k++) {
    blockIdx.x = b; threadIdx.x = k;
    NAME(ARGUMENTS);
  }
}
struct Kept_NAME { FIELDS void* arguments[COUNT]; };
extern "C" void* keep_NAME(void** arguments) {  // a copy that lasts, as a graph makes one
  Kept_NAME* kept = new Kept_NAME;
  COPIES
  return kept->arguments;
}"""
WIDTH = """
extern "C" int width() { return 1; }"""
STEP = """
extern "C" void step(char** bases, const int64_t* strides, i64 t, i64 E, i64 m, i64 P, i64 shift, int) {
  Where w;
  memcpy(w.base, bases, sizeof w.base);
  memcpy(w.stride, strides, sizeof w.stride);
  const i64* shifts = nullptr;
  void* arguments[] = {&w, &shifts, &t, &E, &m, &P, &shift};
  launch_environment_step((unsigned)((E + THREADS - 1) / THREADS), THREADS, arguments);
}""".replace("THREADS", str(BLOCK))
GRADIENT = """
extern "C" void step(char** bases, i64 E, i64 m, int) {
  Where w;
  memcpy(w.base, bases, sizeof w.base);
  void* arguments[] = {&w, &E, &m};
  launch_environment_gradient((unsigned)((E + THREADS - 1) / THREADS), THREADS, arguments);
}""".replace("THREADS", str(BLOCK))
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\(([^)]*)\)')


def emulated(source: str) -> str:
    """A CUDA source with one or more kernels as C++ that runs them on the CPU.

    Raises ValueError for a source without a kernel.
    """
    kernels = dict(KERNEL.findall(source))
    if not kernels:
        raise ValueError("the source has no kernel: nothing in it is written 'extern \"C\" __global__ void name(…)'")
    lines = [BEFORE, source]
    for name, parameters in kernels.items():
        kinds = [parameter.replace("__grid_constant__", "").rpartition(" ")[0] for parameter in parameters.split(",")]
        kinds = [kind if "*" in kind else kind.replace("const ", "").strip() for kind in kinds]
        arguments = ", ".join(f"*({kind}*)arguments[{i}]" for i, kind in enumerate(kinds))
        fields = " ".join(f"{kind} a{i};" for i, kind in enumerate(kinds))
        copies = " ".join(
            f"kept->a{i} = *({kind}*)arguments[{i}]; kept->arguments[{i}] = (void*)&kept->a{i};"
            for i, kind in enumerate(kinds)
        )
        lines.append(
            LAUNCH.replace("NAME", name)
            .replace("ARGUMENTS", arguments)
            .replace("FIELDS", fields)
            .replace("COUNT", str(len(kinds)))
            .replace("COPIES", copies)
        )
    calls = {"environment_step": STEP, "environment_gradient": GRADIENT}
    return "\n".join([*lines, WIDTH, *(text for name, text in calls.items() if name in kernels)])


def compile_emulation(source: str) -> Path:
    """The library of a CUDA source for this CPU, from disk if it was built before. Raises CannotCompile."""
    return compile_library(emulated(source), OPTIONS)


class EmulatedDriver:
    """Answers a GPU's calls by the CPU (`cuda_driver.CudaDriver`): tensors must hold the CPU's memory.

    run: takes every launch as a function that may be called once, later or again; None: launches run at once.
    launches: how many there were.
    """

    def __init__(self, run: Callable[[Callable[[], None]], None] | None = None) -> None:
        self.run, self.launches = run, 0

    def versions(self, device: torch.device) -> str:
        """The emulation has no chip."""
        return "emulated"

    def compile(self, source: str, device: torch.device) -> Path:
        """As C++."""
        return compile_emulation(source)

    def load(self, binary: Path, kernel: str, device: torch.device) -> Any:
        """The function that loops over a grid, and the one that copies its arguments."""
        library = load(binary)
        function, keep = getattr(library, f"launch_{kernel}"), getattr(library, f"keep_{kernel}")
        function.restype, function.argtypes = None, [ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p]
        keep.restype, keep.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        return function, keep

    def launch(self, kernel: Any, blocks: int, threads: int, arguments: int, device: torch.device) -> None:
        """At once, or by `run`, with the arguments as they are now."""
        self.launches += 1
        function, keep = kernel
        if self.run is None:
            function(blocks, threads, arguments)
        else:
            self.run(partial(function, blocks, threads, keep(arguments)))

    def fetch(self, flags: Tensor) -> Callable[[], Tensor | None]:
        """A copy as it is now, by address: a stand-in for a GPU's tensor need not be readable."""
        here = torch.empty(flags.shape, dtype=flags.dtype)
        ctypes.memmove(here.data_ptr(), flags.data_ptr(), here.numel() * here.element_size())
        return lambda: here
