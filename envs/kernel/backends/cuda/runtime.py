"""A compiled step at work on a GPU: state, pool, tables and outputs are torch's tensors there, a step is one launch."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from envs.kernel.backends.cpu_runtime import KernelStep, Reader, rows_of
from envs.kernel.backends.cuda.driver import Arrived, CudaDriver, addresses, cuda_driver
from envs.kernel.tracing.tape import ConstantChanged
from envs.rng import Stream
from envs.vmas.simulator_state import over

WARP = 32  # neighbouring environments, whose numbers lie in one line of memory
BLOCKS = ((16_384, 32), (65_536, 64))  # (environments up to which, threads of a block): few fill all processors so
LARGE = 128  # threads of a block of more
ATTENTION = 100  # steps from one look at the flags to the next


def threads_for(num_envs: int) -> int:
    """Threads of a block."""
    return next((threads for most, threads in BLOCKS if num_envs <= most), LARGE)


class CudaStep(KernelStep):
    """One compiled step of E environments on a GPU: as `KernelStep`, with nothing allocated and nothing waited for.

    What goes with a launch by value (where everything lies, the step's number) a captured graph keeps; which row of the
    pool environments restart from lies in `shifts`, if that is bound, and may change from replay to replay. An action
    that is refused sets a flag in the GPU's memory, of which `refused` tells some hundred steps later.
    """

    def __init__(self, kernel: Any, *args: Any, device: torch.device | str, **named: Any) -> None:
        self._driver: CudaDriver = cuda_driver()
        super().__init__(kernel, *args, device=device, **named)
        self._threads = threads_for(self.num_envs)
        self._blocks = -(-self.num_envs // self._threads)
        self._envs, self._padded = ctypes.c_longlong(self.num_envs), ctypes.c_longlong(self._stride)

    def _open(self, library: Any) -> int:
        self._kernel = library

        class Where(ctypes.Structure):
            """As in the source, by value."""

            _fields_ = [("base", ctypes.c_void_p * len(self._index)), ("stride", ctypes.c_longlong * len(self._index))]

        self._where = Where()
        self._bases, self._strides = self._where.base, self._where.stride  # views: what is bound is in the structure
        self._shifts, self._now, self._pool, self._shift = (
            ctypes.c_void_p(),
            ctypes.c_longlong(),
            ctypes.c_longlong(),
            ctypes.c_longlong(),
        )
        self._envs, self._padded = ctypes.c_longlong(), ctypes.c_longlong()
        return WARP

    def _watch_actions(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._bases[self._index["refused",]] = self._flag.data_ptr()
        self._arrived: Arrived | None = None
        self._steps = 0
        self._pinned_beside = {path: (theirs.cpu(), values.cpu()) for path, (theirs, values) in self._pinned.items()}
        self._arguments: ctypes.Array | None = None

    @property
    def memory(self) -> list[Tensor]:
        """What a step writes and a later one reads."""
        return [self.state, *self.tables.values(), self._flag]

    def make_room(self, pools: int) -> None:
        """From the next `load_pool` on, so many pools lie side by side, and what is loaded goes to the first."""
        self.pools, self.slot, self.pool_size = pools, 0, 0

    def next_pool(self) -> None:
        """The next pool is loaded beside the one in use, from which steps may still restart by `bind_shifts`."""
        self.slot = (self.slot + 1) % self.pools

    def row(self, shift: int) -> int:
        """Where environment 0 restarts from, of all rows of all pools, with this shift in the pool in use."""
        return self.slot * self.pool_size + shift

    def bind_shifts(self, shifts: Tensor | None) -> None:
        """int64 [T] on the device: step(t) restarts environments from `row` shifts[t] on. None: from `shift`."""
        self._kept_shifts = shifts
        self._shifts.value = None if shifts is None else shifts.data_ptr()

    def point(self, name: tuple, tensor: Tensor) -> None:
        """See `KernelStep.point`. Raises ValueError for a tensor of another device, which a GPU could not read."""
        if tensor.device != self.device:
            raise ValueError(f"{name} lies on {tensor.device}, and the environment on {self.device}")
        super().point(name, tensor)

    def _check(self, name: tuple, tensor: Tensor) -> None:
        super()._check(name, tensor)
        if tensor.device != self.device:
            raise ValueError(f"{name} lies on {tensor.device}, and the environment on {self.device}")

    def step(self, t: int = 0, shift: int = 0) -> None:
        """See `KernelStep.step`; the step is made some time later, in the order of torch's own work."""
        if self._arguments is None:
            self._arguments = addresses(
                [self._where, self._shifts, self._now, self._envs, self._padded, self._pool, self._shift]
            )
        self._now.value, self._pool.value, self._shift.value = t, self.pool_size, self.row(shift)
        self._driver.launch(self._kernel, self._blocks, self._threads, ctypes.addressof(self._arguments), self.device)

    def draw_from(self, stream: Stream) -> None:
        """See `KernelStep.draw_from`; by the stream's own generator, which a graph that captures this has registered."""
        if stream.generator is None:  # the emulation's memory is the CPU's
            super().draw_from(stream)
        else:
            self.draw(self.device, stream.generator)

    def refused(self, ask: bool = False) -> bool:
        """Whether a step was given what is refused, as far as that has reached the host; costs no wait."""
        self._steps += 1
        if self._arrived is not None:
            flags = self._arrived()
            if flags is None:
                return False
            self._arrived = None
            if bool(flags[0]):
                self._flag.zero_()
                return True
        if ask or self._steps >= ATTENTION:
            self._steps = 0
            self._arrived = self._driver.fetch(self._flag)
        return False

    def _take(self, value: Tensor) -> Tensor:
        """Without a wait: a copy from page-locked memory."""
        return over(value, self.device)

    def _check_constants(self, read: Reader) -> None:
        """On the device where they are read, the CPU for a reset pool; on a GPU by one wait, not one for each."""
        found = []
        for path, (theirs, expected) in self._pinned.items():
            rows = rows_of(read(path), self.shapes[path])
            if rows.device != expected.device:
                theirs, expected = self._pinned_beside[path]
            found.append((rows.index_select(1, theirs).to(torch.float32) != expected).any())
        changes = torch.stack(found).tolist() if found else []
        for path, changed in zip(self._pinned, changes, strict=True):
            if changed:
                raise ConstantChanged(
                    f"{path} was the same in every environment when the kernel was built, and isn't now"
                )
