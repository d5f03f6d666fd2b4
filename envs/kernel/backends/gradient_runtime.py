"""A compiled gradient at work: from gradients of what a step gave to those of the state and the actions before it."""

import ctypes

import torch
from torch import Tensor

from envs.kernel.ir.gradient_layout import GradientLayout


class GradientKernel:
    """The gradients of one step of E environments on the CPU. Not safe for two threads at once.

    padded: m, the length of a row of the state; `state` and its gradients are float32 [fields, m].
    """

    def __init__(self, library: ctypes.CDLL, places: GradientLayout, num_envs: int, threads: int = 1) -> None:
        self.places, self.num_envs, self.threads = places, num_envs, threads
        self._library = library  # keeps it loaded
        self._step = library.step
        self._step.restype = None
        self._step.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
        width = library.width()
        self.padded = -(-num_envs // width) * width
        self._index = {name: i for i, name in enumerate(places.pointers)}
        self._pointers = (ctypes.c_void_p * len(self._index))()
        self._where = ctypes.addressof(self._pointers)

    def __call__(self, given: dict[tuple, Tensor | None]) -> dict[str, Tensor]:
        """Turns ("gradient", "state") into the gradient of the state before, in place.

        given: contiguous tensors by the names in `places.pointers`; absent gradients of outputs are zero. Tables are
        written to. Returns {group: float32 [E, numbers]}, the gradients of the actions.
        """
        pointers, index = self._pointers, self._index
        ctypes.memset(self._where, 0, ctypes.sizeof(pointers))
        for name, tensor in given.items():
            if tensor is not None and name in index:
                pointers[index[name]] = tensor.data_ptr()
        actions = {}
        for group, count, integers in self.places.actions:
            if not integers:
                actions[group] = torch.empty(self.num_envs, count)
                pointers[index["gradient", "action", group]] = actions[group].data_ptr()
        self._step(self._where, self.num_envs, self.padded, self.threads)
        return actions
