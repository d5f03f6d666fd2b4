"""A compiled gradient at work: from gradients of what a step gave to those of the state and the actions before it."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from envs.kernel.ir.gradient_layout import GradientLayout


class GradientKernel:
    """The gradients of one step of E environments on the CPU. Not safe for two threads at once.

    device: where everything lies that it reads and writes.
    padded: m, the length of a row of the state; `state` and its gradients are float32 [fields, m].
    """

    def __init__(
        self, library: Any, places: GradientLayout, num_envs: int, threads: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.places, self.num_envs, self.threads = places, num_envs, threads
        self.device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        self._index = {name: i for i, name in enumerate(places.pointers)}
        self._pointers = (ctypes.c_void_p * len(self._index))()
        width = self._open(library)
        self.padded = -(-num_envs // width) * width

    def _open(self, library: Any) -> int:
        """Takes the library's calls; how many environments it computes side by side."""
        self._library = library  # keeps it loaded
        self._step = library.step
        self._step.restype = None
        self._step.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
        return library.width()

    def _run(self) -> None:
        self._step(ctypes.addressof(self._pointers), self.num_envs, self.padded, self.threads)

    def __call__(self, given: dict[tuple, Tensor | None]) -> dict[str, Tensor]:
        """Turns ("gradient", "state") into the gradient of the state before, in place.

        given: contiguous tensors by the names in `places.pointers`; absent gradients of outputs are zero. Tables are
        written to. Returns {group: float32 [E, numbers]}, the gradients of the actions.
        """
        pointers, index = self._pointers, self._index
        ctypes.memset(ctypes.addressof(pointers), 0, ctypes.sizeof(pointers))
        for name, tensor in given.items():
            if tensor is not None and name in index:
                pointers[index[name]] = tensor.data_ptr()
        actions = {}
        for group, count, integers in self.places.actions:
            if not integers:
                actions[group] = torch.empty(self.num_envs, count, device=self.device)
                pointers[index["gradient", "action", group]] = actions[group].data_ptr()
        self._run()
        return actions
