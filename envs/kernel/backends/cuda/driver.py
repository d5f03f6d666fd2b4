"""The few calls by which kernels reach a GPU: compile, load, launch, and fetching a flag without waiting for it.

Everything above them is the same on a GPU and on a machine without one, where `cuda_emulation.EmulatedDriver` answers
them by the CPU.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from envs.kernel.backends.cuda import compiler as cuda_compiler
from marl.core.errors import CannotCompile

Arrived = Callable[[], "Tensor | None"]  # the fetched numbers on the CPU, None while they are on their way


class CudaDriver(Protocol):
    """What kernels ask of a GPU. All of it may raise CannotCompile, `launch` RuntimeError."""

    def versions(self, device: torch.device) -> str:
        """What decides binaries for a device, beside their source."""

    def compile(self, source: str, device: torch.device) -> Path:
        """The binary of a source, in the kernel cache."""

    def load(self, binary: Path, kernel: str, device: torch.device) -> Any:
        """A kernel of a binary, to be launched on that device."""

    def launch(self, kernel: Any, blocks: int, threads: int, arguments: int, device: torch.device) -> None:
        """Runs a kernel in torch's current stream; arguments: the address of an array of pointers to them."""

    def fetch(self, flags: Tensor) -> Arrived:
        """Starts to copy a tensor to the host behind what is launched by now."""


class NvidiaDriver:
    """NVRTC and the CUDA driver, by `cuda.bindings`.

    The driver launches in the calling thread's context, and a thread that has done no work on a GPU has none: torch's
    threads of backward passes, where our kernel comes first (https://github.com/pytorch/pytorch/issues/124565).
    """

    def __init__(self) -> None:
        self._modules: dict[tuple[str, torch.device], Any] = {}  # loaded binaries, kept as long as the process
        self._contexts: dict[int, Any] = {}  # torch's, by device
        self._thread = threading.local()

    def _architecture(self, device: torch.device) -> str:
        major, minor = torch.cuda.get_device_capability(device)
        chip = f"sm_{major}{minor}"
        if chip not in (known := cuda_compiler.architectures()):
            raise CannotCompile(f"NVRTC compiles for {', '.join(known)}, and this GPU is {chip}")
        return chip

    def versions(self, device: torch.device) -> str:
        """NVRTC's version and options, and the chip."""
        return f"{cuda_compiler.versions()} {self._architecture(device)}"

    def compile(self, source: str, device: torch.device) -> Path:
        """See `cuda_compiler.compile_cuda`."""
        return cuda_compiler.compile_cuda(source, self._architecture(device))

    def load(self, binary: Path, kernel: str, device: torch.device) -> Any:
        """Loads a binary into torch's context on that device, once."""
        from cuda.bindings import driver

        with torch.cuda.device(device):
            torch.empty(1, device=device)  # torch begins, if it has not
            try:
                module = self._modules.get((binary.name, device))
                if module is None:
                    index = torch.cuda.current_device()
                    context = _checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(index))))
                    _checked(driver.cuCtxSetCurrent(context))
                    self._contexts[index] = context
                    module = _checked(driver.cuModuleLoadData(binary.read_bytes()))
                    self._modules[binary.name, device] = module
                return _checked(driver.cuModuleGetFunction(module, kernel.encode()))
            except (RuntimeError, OSError) as error:
                raise CannotCompile(f"{kernel} of {binary.name} cannot be loaded: {error}") from error

    def launch(self, kernel: Any, blocks: int, threads: int, arguments: int, device: torch.device) -> None:
        """One launch, in the order of torch's own work."""
        from cuda.bindings import driver

        current = torch.cuda.current_device()
        if device.index is not None and device.index != current:
            with torch.cuda.device(device):  # torch makes that device's context the thread's, and this one again after
                return self.launch(kernel, blocks, threads, arguments, device)
        if not getattr(self._thread, "ready", False):
            _checked(driver.cuCtxSetCurrent(self._contexts[current]))
            self._thread.ready = True  # whatever is the current device later, torch sets its context with it
        stream = torch.cuda.current_stream(device).cuda_stream
        _checked(driver.cuLaunchKernel(kernel, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, 0))

    def fetch(self, flags: Tensor) -> Arrived:
        """By page-locked memory and an event."""
        here = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        here.copy_(flags, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(flags.device))
        return lambda: here if done.query() else None


def _checked(result: tuple) -> Any:
    """What a driver's call gave beside its status. Raises RuntimeError with the driver's name of a failure."""
    from cuda.bindings import driver

    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver said {getattr(status, 'name', status)}")
    return values[0] if values else None


_driver: CudaDriver = NvidiaDriver()


def cuda_driver() -> CudaDriver:
    """The driver in use."""
    return _driver


@contextmanager
def using(driver: CudaDriver) -> Iterator[None]:
    """Within it, another driver answers: on machines without a GPU, the emulated one."""
    global _driver
    before, _driver = _driver, driver
    try:
        yield
    finally:
        _driver = before


def addresses(arguments: list[Any]) -> ctypes.Array:
    """The array of pointers that `launch` takes, to ctypes values that the caller keeps."""
    return (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
