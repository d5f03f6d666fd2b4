"""A compiled step at work: owns the state of the environments field by field, calls the kernel on given tensors."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.kernel.ir.layout import Layout
from envs.kernel.tracing.tape import ConstantChanged
from envs.kernel.tracing.trace import TRACED

Reader = Callable[[str], Tensor]  # path -> the simulator's tensor, environments on the axis that `shapes` names


class KernelStep:
    """One compiled step of E environments on the CPU.

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
    ) -> None:
        self.places, self.constants, self.shapes, self.noise = places, constants, shapes, noise
        self.num_envs, self.threads = num_envs, threads
        self._library = library  # keeps it loaded
        self._step = library.step
        self._step.restype = None
        self._step.argtypes = [ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 5 + [ctypes.c_int]
        width = library.width()
        self._stride = -(-num_envs // width) * width  # m: padded environments, so that whole vectors may be loaded
        self.state = torch.zeros(max(len(places.fields), 1), self._stride)
        self.tables = {
            p: torch.zeros(num_envs, n, dtype=torch.uint8 if kind == "b" else torch.float32)
            for p, n, kind in places.tables
        }
        self.random = torch.zeros(num_envs, max(places.noise, 1))
        self.pool_size = 0
        self._index = {name: i for i, name in enumerate(places.pointers)}
        self._bases = (ctypes.c_void_p * len(self._index))()
        self._strides = (ctypes.c_int64 * len(self._index))()
        self._where = ctypes.addressof(self._bases), ctypes.addressof(self._strides)
        self._kept: dict[tuple, Tensor] = {}
        self.columns = _columns(places.fields)
        values = torch.tensor(list(constants.values()))
        self._pinned = {path: (theirs, values[ours]) for path, (ours, theirs) in _columns(list(constants)).items()}
        self.saw_nan = ctypes.c_int(0)  # set by a step whose actions hold a nan
        self._bases[self._index["nan",]] = ctypes.addressof(self.saw_nan)
        self.bind(
            {
                ("state",): self.state,
                ("noise",): self.random,
                **{("table", p): table for p, table in self.tables.items()},
            }
        )

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

    def point(self, *name: str, tensor: Tensor) -> None:
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

    def draw(self) -> None:
        """Draws the step's random numbers from torch's global generator, in the simulator's order."""
        start = 0
        for name, args, kwargs, shape, dtype in self.noise:
            drawn = _draw(name, args, kwargs, shape, dtype, self.num_envs)
            count = drawn.numel() // self.num_envs
            self.random[:, start : start + count] = drawn.reshape(self.num_envs, -1)
            start += count

    def load_state(self, read: Reader) -> None:
        """Copies the simulator's state in. Raises ConstantChanged."""
        self._check_constants(read)
        for path, (ours, theirs) in self.columns.items():
            self.state[ours, : self.num_envs] = _rows(read(path), self.shapes[path])[:, theirs].T.to(torch.float32)
        for path, table in self.tables.items():
            table.copy_(_rows(read(path), self.shapes[path]))

    def load_pool(self, read: Reader, size: int, observed: dict[tuple, Tensor]) -> None:
        """Copies the pool's P states and observations in; outputs ("after", …) come from there. ConstantChanged."""
        self._check_constants(read)
        if self.pool_size != size:
            self.pool = torch.zeros(size, max(len(self.places.fields), 1))
            tables = {("pool_table", p): torch.zeros(size, *t.shape[1:], dtype=t.dtype) for p, t in self.tables.items()}
            fresh = {("fresh", *key): observed[key].clone().contiguous() for key in self.places.restarted}
            self.pool_size = size
            self.bind({("pool",): self.pool, **tables, **fresh})
        for path, (ours, theirs) in self.columns.items():
            rows = _rows(read(path), self.shapes[path])
            self.pool.index_copy_(1, ours, rows.index_select(1, theirs).to(torch.float32))
        for path in self.tables:
            self._kept["pool_table", path].copy_(_rows(read(path), self.shapes[path]))
        for key in self.places.restarted:
            self._kept["fresh", *key].copy_(observed[key])

    def store_state(self, read: Reader) -> dict[str, Tensor]:
        """The simulator's tensors with the kernel's state in them, as new tensors {path: tensor}."""
        out = {}
        for path, (ours, theirs) in self.columns.items():
            shape, dtype, axis = self.shapes[path]
            old = read(path)
            rows = _rows(old, self.shapes[path]).clone()
            rows[:, theirs] = self.state[ours, : self.num_envs].T.to(dtype)
            out[path] = _back(rows, old, axis)
        for path, table in self.tables.items():
            out[path] = _back(table.to(self.shapes[path][1]), read(path), self.shapes[path][2])
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

    def _check_constants(self, read: Reader) -> None:
        for path, (theirs, expected) in self._pinned.items():
            rows = _rows(read(path), self.shapes[path]).index_select(1, theirs).to(torch.float32)
            if not torch.equal(rows, expected.expand_as(rows)):
                raise ConstantChanged(
                    f"{path} was the same in every environment when the kernel was built, and isn't now"
                )


def _columns(keys: list[tuple[str, int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """{path: (positions in the list, elements of the path)}, as indices."""
    columns: dict[str, tuple[list[int], list[int]]] = {}
    for i, (path, element) in enumerate(keys):
        ours, theirs = columns.setdefault(path, ([], []))
        ours.append(i)
        theirs.append(element)
    return {path: (torch.tensor(ours), torch.tensor(theirs)) for path, (ours, theirs) in columns.items()}


def _rows(value: Tensor, shape: tuple) -> Tensor:
    """[E, elements]."""
    axis = shape[2]
    return value.movedim(axis, 0).reshape(value.shape[axis], -1)


def _back(rows: Tensor, old: Tensor, axis: int) -> Tensor:
    moved = old.movedim(axis, 0)
    return rows.reshape(moved.shape).movedim(0, axis).contiguous()


def _draw(name: str, args: list, kwargs: dict, shape: tuple, dtype: torch.dtype, num_envs: int) -> Tensor:
    """Repeats a recorded random draw for another number of environments."""
    shape = tuple(n // TRACED * num_envs if n and n % TRACED == 0 else n for n in shape)
    packet, _, overload = name.removeprefix("aten.").partition(".")
    if packet.endswith("_"):
        return getattr(torch.empty(shape, dtype=dtype), packet)(*args[1:], **kwargs)
    if packet.endswith("_like"):
        return getattr(torch, packet)(torch.empty(shape, dtype=dtype), *args[1:])
    if packet == "randint":
        return torch.randint(*[a for a in args if not isinstance(a, (list, tuple))], shape, dtype=dtype)
    if packet == "normal":
        return torch.normal(args[0], args[1], shape)
    return getattr(torch, packet)(shape, dtype=dtype)
