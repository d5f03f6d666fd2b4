"""Random streams of environments: own states of the global generators, swapped in while a simulator runs."""

from __future__ import annotations

import ctypes
import random
import sys
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl.core.seeding import restore


def pack_python(state: tuple) -> Tensor:
    """`random.getstate()` as float64 [628]: version, 625 words below 2^32 (exact in float64), next Gaussian."""
    version, words, gauss = state
    return torch.tensor([version, *words, gauss is not None, gauss or 0.0], dtype=torch.float64)


def unpack_python(packed: Tensor) -> tuple:
    """The inverse of `pack_python`."""
    version, *words, has_gauss, gauss = packed.tolist()
    return int(version), tuple(int(w) for w in words), gauss if has_gauss else None


def random_state(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators that draws on a device may come from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Puts back what `random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class NumpyState:
    """States of numpy's global generator, put in and taken out; words that were not drawn are copied in one piece.

    `get_state` and `set_state` go through the 624 words of the Mersenne Twister one by one (32 µs each). A kept
    Gaussian lies elsewhere: where there is one, or another generator was put in, they do it all the same.
    """

    WORDS = 4 * 625  # bytes: 624 words, and the position in them

    @staticmethod
    def put(state: tuple, instead_of: tuple) -> bytes | None:
        """Sets `state` where `instead_of` is set now. Gives its words where they were copied in one piece."""
        generator = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue] - its stubs lack it
        if type(generator) is not np.random.MT19937 or state[3] or instead_of[3]:
            np.random.set_state(state)
            return None
        words = state[1].tobytes() + int(state[2]).to_bytes(4, sys.byteorder)
        ctypes.memmove(generator.ctypes.state_address, words, NumpyState.WORDS)
        return words

    @staticmethod
    def take(state: tuple, words: bytes | None) -> Any:
        """What is set now, after `put` set `state` and gave `words`: nothing was drawn where they are still there."""
        if words is not None:
            generator = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]
            same = type(generator) is np.random.MT19937  # no other was put in meanwhile
            if same and ctypes.string_at(generator.ctypes.state_address, NumpyState.WORDS) == words:
                return state
        return np.random.get_state()


class Stream:
    """A context manager inside which the global generators are this stream's, and afterwards the caller's again.

    VMAS and its scenarios draw from the global generators. Entering puts the stream's states in, leaving takes them
    out again. torch's CPU generator is always swapped (about 6 µs in all), CUDA's where the device is a GPU, and
    those of numpy and python's `random` (about 50 µs) where `host` says that they are used.
    Not re-entrant, and not safe against another thread drawing from the global generators meanwhile.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", host: bool = True) -> None:
        self.device = torch.device(device)
        self.host = host
        self._outside: list = []
        self._words: bytes | None = None  # of numpy's state, while it is in
        self._cuda = torch.Generator(self.device) if self.device.type == "cuda" else None
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start over as `torch.manual_seed(seed)`, `np.random.seed` and `random.seed` would."""
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._numpy: Any = np.random.RandomState(seed % 2**32).get_state()  # a tuple, of the legacy kind
        self._python = random.Random(seed).getstate()
        if self._cuda is not None:
            self._cuda.manual_seed(seed)

    def __enter__(self) -> Stream:
        outside: list[Any] = [torch.default_generator.get_state()]
        torch.default_generator.set_state(self._torch)
        if self._cuda is not None:
            outside.append(torch.cuda.get_rng_state(self.device))
            torch.cuda.set_rng_state(self._cuda.get_state(), self.device)
        if self.host:
            outside += [np.random.get_state(), random.getstate()]
            self._words = NumpyState.put(self._numpy, outside[-2])
            random.setstate(self._python)
        self._outside = outside
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outside, self._outside = self._outside, []
        self._torch = torch.default_generator.get_state()
        torch.default_generator.set_state(outside[0])
        if self._cuda is not None:
            self._cuda.set_state(torch.cuda.get_rng_state(self.device))
            torch.cuda.set_rng_state(outside[1], self.device)
        if self.host:
            self._numpy, self._python = NumpyState.take(self._numpy, self._words), random.getstate()
            NumpyState.put(outside[-2], self._numpy)
            random.setstate(outside[-1])

    def generator_states(self) -> list:
        """The states of torch's, numpy's and python's generators, as VMAS's decorator `local_seed` keeps them."""
        return [self._torch.clone(), self._numpy, self._python]

    @property
    def generator(self) -> torch.Generator | None:
        """What kernels on a GPU draw from: the same one as long as the stream lives. None on a CPU."""
        return self._cuda

    def state_dict(self) -> dict[str, Tensor]:
        """The stream as tensors, loadable with `torch.load(weights_only=True)`."""
        _, key, position, has_gauss, gauss = self._numpy
        numpy = torch.tensor([*key.tolist(), position, has_gauss, gauss], dtype=torch.float64)
        state = {"torch": self._torch.clone(), "numpy": numpy, "python": pack_python(self._python)}
        if self._cuda is not None:
            state["cuda"] = self._cuda.get_state()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state_dict` returned."""
        *key, position, has_gauss, gauss = state["numpy"].tolist()
        self._numpy = ("MT19937", np.array(key, dtype=np.uint32), int(position), int(has_gauss), gauss)
        self._python = unpack_python(state["python"])
        self._torch = state["torch"].cpu().clone()
        if self._cuda is not None:  # a state from before the run came to a GPU has none of its own
            restore(self._cuda, state.get("cuda", state["torch"]))
