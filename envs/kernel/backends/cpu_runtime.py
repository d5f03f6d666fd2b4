"""A compiled step at work: owns the state of the environments field by field, calls the kernel on given tensors.

`KernelStep` is the CPU's; `envs.kernel.backends.cuda.runtime.CudaStep` keeps the same on a GPU and launches there.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.kernel.ir.layout import Layout
from envs.kernel.tracing.tape import ConstantChanged
from envs.kernel.tracing.trace import TRACED
from envs.rng import Stream

Reader = Callable[[str], Tensor]  # path -> the simulator's tensor, environments on the axis that `shapes` names


class KernelStep:
    """One compiled step of E environments on the CPU.

    device: where state, tables, random numbers and whatever is bound lie. What is read from the simulator, and written
    back to it, may lie elsewhere.
    state: float32 [fields, E padded], what is carried from step to step; bools are 0 and 1.
    bind() names the tensors that a step writes to; unbound outputs cost nothing. Not safe for two threads at once.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        places: Layout,
        constants: dict[tuple[str, int], float],
        shapes: dict[str, tuple],
        noise: list[tuple],
        num_envs: int,
        threads: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.places, self.constants, self.shapes, self.noise = places, constants, shapes, noise
        self.num_envs, self.threads = num_envs, threads
        self.device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        self._index = {name: i for i, name in enumerate(places.pointers)}
        self._bases = (ctypes.c_void_p * len(self._index))()
        self._strides = (ctypes.c_int64 * len(self._index))()
        width = self._open(library)
        self._stride = -(-num_envs // width) * width  # m: padded environments, so that whole vectors may be loaded
        floats = {"dtype": torch.float32, "device": self.device}  # whatever torch's defaults are
        self.state = torch.zeros(max(len(places.fields), 1), self._stride, **floats)
        self.tables = {
            p: torch.zeros(num_envs, n, dtype=torch.uint8 if kind == "b" else torch.float32, device=self.device)
            for p, n, kind in places.tables
        }
        self.random = torch.zeros(num_envs, max(places.noise, 1), **floats)
        self.pool_size, self.pools, self.slot = 0, 1, 0  # P; pools side by side, and which of them is in use
        self._kept: dict[tuple, Tensor] = {}
        self.columns = _columns(places.fields, self.device)
        values = torch.tensor(list(constants.values()), device=self.device)
        self._pinned = {
            path: (theirs, values[ours]) for path, (ours, theirs) in _columns(list(constants), self.device).items()
        }
        self._watch_actions()
        self.bind(
            {
                ("state",): self.state,
                ("noise",): self.random,
                **{("table", p): table for p, table in self.tables.items()},
            }
        )

    def _open(self, library: ctypes.CDLL) -> int:
        """Takes the library's calls; how many environments it computes side by side."""
        self._library = library  # keeps it loaded
        self._step = library.step
        self._step.restype = None
        self._step.argtypes = [ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 5 + [ctypes.c_int]
        self._where = ctypes.addressof(self._bases), ctypes.addressof(self._strides)
        return library.width()

    def _watch_actions(self) -> None:
        """Names the number that a step sets which is given an action that is refused."""
        self._saw_refused = ctypes.c_int(0)
        self._bases[self._index["refused",]] = ctypes.addressof(self._saw_refused)

    def refused(self, ask: bool = False) -> bool:
        """Whether a step since the last call had a number among its actions that is nan, or none of its choices.

        On a GPU as far as is known by now, which is asked for every hundred steps, or now.
        """
        if not self._saw_refused.value:
            return False
        self._saw_refused.value = 0
        return True

    def bind(self, tensors: dict[tuple, Tensor | None], steps: bool = False) -> None:
        """Sets where inputs lie and outputs go, by the names in `places.pointers`; None unbinds.

        steps: the tensors are [T, E, …] and step(t) uses their slice t. Tensors must be contiguous.
        Raises ValueError for a wrong dtype or size.
        """
        for name, tensor in tensors.items():
            i = self._index[name]
            if tensor is None:
                self._bases[i], self._strides[i] = None, 0
                self._kept.pop(name, None)
                continue
            self._check(name, tensor[0] if steps else tensor)
            if not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous")
            self._kept[name] = tensor
            self._bases[i] = tensor.data_ptr()
            self._strides[i] = tensor.stride(0) * tensor.element_size() if steps else 0

    def point(self, name: tuple, tensor: Tensor) -> None:
        """bind() of one tensor without its checks: for callers that made the tensor themselves."""
        i = self._index[name]
        self._kept[name] = tensor
        self._bases[i], self._strides[i] = tensor.data_ptr(), 0

    def _check(self, name: tuple, tensor: Tensor) -> None:
        sizes = {("action", g): (n, torch.int64 if i else torch.float32) for g, n, i in self.places.actions}
        for key, n in self.places.outputs:
            sizes[key] = sizes["after", *key] = n, torch.float32
        sizes["terminated",] = sizes["truncated",] = 1, torch.bool
        if name in sizes:
            count, dtype = sizes[name]
            if tensor.numel() != count * self.num_envs or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} must hold {count} numbers of {dtype} for each of {self.num_envs} environments,"
                    f" not {tuple(tensor.shape)} of {tensor.dtype}"
                )

    def step(self, t: int = 0, shift: int = 0) -> None:
        """One step on what is bound; environments that end continue from row (e + shift) % P of the pool."""
        self._step(*self._where, t, self.num_envs, self._stride, self.pool_size, shift, self.threads)

    def draw(self, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> None:
        """Draws the step's random numbers on a device, in the simulator's order.

        They come from torch's global generator there, or from one that is given.
        """
        start = 0
        for name, args, kwargs, shape, dtype in self.noise:
            drawn = _draw(name, args, kwargs, shape, dtype, self.num_envs, device, generator)
            count = drawn.numel() // self.num_envs
            self.random[:, start : start + count] = drawn.reshape(self.num_envs, -1)
            start += count

    def draw_from(self, stream: Stream) -> None:
        """Draws the step's random numbers from an environment's stream."""
        with stream:
            self.draw()

    def load_state(self, read: Reader) -> None:
        """Copies the simulator's state in. Raises ConstantChanged."""
        self._check_constants(read)
        for path, (ours, theirs) in self.columns.items():
            rows = rows_of(read(path), self.shapes[path]).to(self.device)[:, theirs]
            self.state[ours, : self.num_envs] = rows.T.to(torch.float32)
        for path, table in self.tables.items():
            table.copy_(rows_of(read(path), self.shapes[path]))

    def load_pool(self, read: Reader, size: int, observed: dict[tuple, Tensor]) -> None:
        """Copies the pool's P states and observations in; outputs ("after", …) come from there. ConstantChanged."""
        self._check_constants(read)
        if self.pool_size != size:
            rows = size * self.pools
            self.pool = self.state.new_zeros(rows, max(len(self.places.fields), 1))
            tables = {("pool_table", p): t.new_zeros(rows, *t.shape[1:]) for p, t in self.tables.items()}
            fresh = {
                ("fresh", *key): self.state.new_zeros(rows, *observed[key].shape[1:]) for key in self.places.restarted
            }
            self.pool_size = size
            self.bind({("pool",): self.pool, **tables, **fresh})
        here = slice(self.slot * size, (self.slot + 1) * size)
        pool = self.pool[here]
        for path, (ours, theirs) in self.columns.items():
            rows = self._take(rows_of(read(path), self.shapes[path]))
            pool.index_copy_(1, ours, rows.index_select(1, theirs).to(torch.float32))
        for path in self.tables:
            self._kept["pool_table", path][here].copy_(self._take(rows_of(read(path), self.shapes[path])))
        for key in self.places.restarted:
            self._kept["fresh", *key][here].copy_(observed[key])

    def store_state(self, read: Reader) -> dict[str, Tensor]:
        """The simulator's tensors with the kernel's state in them, as new tensors {path: tensor}."""
        out = {}
        for path, (ours, theirs) in self.columns.items():
            shape, dtype, axis = self.shapes[path]
            old = read(path)
            rows = rows_of(old, self.shapes[path]).clone()
            rows[:, theirs.to(rows.device)] = self.state[ours, : self.num_envs].T.to(rows.device, dtype)
            out[path] = _back(rows, old, axis)
        for path, table in self.tables.items():
            old = read(path)
            out[path] = _back(table.to(old.device, self.shapes[path][1]), old, self.shapes[path][2])
        return out

    def fill(self, state: Any) -> None:
        """Puts the kernel's state into a simulator, given as its StateMap; slots of one tensor get one tensor."""
        state.refresh()
        same: dict[int, list] = {}
        for slot in state.tensors.values():
            same.setdefault(id(slot.value), []).append(slot)
        kept_alive = []  # no tensor is freed meanwhile, so that no id comes twice
        for path, value in self.store_state(lambda path: state.tensors[path].value).items():
            old = state.tensors[path].value
            kept_alive.append(old)
            for slot in same[id(old)]:
                slot.write(value)

    def _take(self, value: Tensor) -> Tensor:
        """A tensor on this device."""
        return value.to(self.device)

    def _check_constants(self, read: Reader) -> None:
        for path, (theirs, expected) in self._pinned.items():
            rows = rows_of(read(path), self.shapes[path]).to(self.device).index_select(1, theirs).to(torch.float32)
            if not torch.equal(rows, expected.expand_as(rows)):
                raise ConstantChanged(
                    f"{path} was the same in every environment when the kernel was built, and isn't now"
                )


def _columns(keys: list[tuple[str, int]], device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """{path: (positions in the list, elements of the path)}, as indices."""
    columns: dict[str, tuple[list[int], list[int]]] = {}
    for i, (path, element) in enumerate(keys):
        ours, theirs = columns.setdefault(path, ([], []))
        ours.append(i)
        theirs.append(element)
    return {
        path: (torch.tensor(ours, device=device), torch.tensor(theirs, device=device))
        for path, (ours, theirs) in columns.items()
    }


def rows_of(value: Tensor, shape: tuple) -> Tensor:
    """[E, elements]."""
    axis = shape[2]
    return value.movedim(axis, 0).reshape(value.shape[axis], -1)


def _back(rows: Tensor, old: Tensor, axis: int) -> Tensor:
    moved = old.movedim(axis, 0)
    return rows.reshape(moved.shape).movedim(0, axis).contiguous()


def _draw(
    name: str,
    args: list,
    kwargs: dict,
    shape: tuple,
    dtype: torch.dtype,
    num_envs: int,
    device: torch.device | str,
    generator: torch.Generator | None,
) -> Tensor:
    """Repeats a recorded random draw for another number of environments."""
    shape = tuple(n // TRACED * num_envs if n and n % TRACED == 0 else n for n in shape)
    packet, _, overload = name.removeprefix("aten.").partition(".")
    where = {"dtype": dtype, "device": device}
    given = {} if generator is None else {"generator": generator}
    if packet.endswith("_"):
        return getattr(torch.empty(shape, **where), packet)(*args[1:], **kwargs, **given)
    if packet.endswith("_like") and not given:
        return getattr(torch, packet)(torch.empty(shape, **where), *args[1:])
    packet = packet.removesuffix("_like")
    if packet == "randint":
        return torch.randint(*[a for a in args if isinstance(a, (int, float))], shape, **where, **given)
    if packet == "normal":
        return torch.normal(args[0], args[1], shape, device=device, **given)
    return getattr(torch, packet)(shape, **where, **given)
