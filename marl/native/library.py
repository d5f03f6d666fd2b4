"""Compiled functions of ours beside torch's: built on first use, called by address, known to recordings.

Each library is compared with torch when it is loaded. It is not used where it can't be built or differs.
"""

import ctypes
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl.native import threads
from marl.native.compiler import compile_library

NUMBER, REAL, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

enabled = True  # False: torch's own operations do everything, which is what compiled functions are compared with


@dataclass(eq=False, repr=False)
class KernelCall:
    """A call of a compiled function, as recordings know it.

    Attributes:
        function, arguments: the call.
        reads, writes: the tensors behind the arguments.
        join: makes one call of several that do not depend on one another; None: each is made by itself.
    """

    function: Callable[..., object]
    arguments: tuple
    reads: object
    writes: object
    join: "Join | None" = None

    def __call__(self) -> object:
        return self.function(*self.arguments)

    def alone(self) -> Callable[[], object]:
        """The call and no more, which is what a replay makes at every step; `reads` and `writes` must be kept alive."""
        return partial(self.function, *self.arguments)


Join = Callable[[Sequence[KernelCall]], Callable[[], object]]

# Takes these calls, while `marl.capture.op_graph` records: torch does not see them.
_recorder: Callable[[KernelCall], None] | None = None

_builders = ThreadPoolExecutor(thread_name_prefix="build")


class Library:
    """A compiled source, built or loaded and checked when first asked for.

    Args:
        sources: files that make one source together.
        flags: of the compiler.
        functions: {name: (types of the arguments, type of the result)}.
        check: takes the library and raises RuntimeError where it is wrong.
        instead: what happens without it, for the warning.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        flags: Sequence[str],
        functions: Mapping[str, tuple[Sequence[type], type | None]],
        check: Callable[[ctypes.CDLL], None],
        instead: str,
    ) -> None:
        self.sources, self.flags, self.functions, self.check, self.instead = sources, flags, functions, check, instead
        self.builder: Callable[..., Path] | None = None  # that made `library`
        self.library: ctypes.CDLL | None = None
        self.pending: tuple[Callable[..., Path], Future[Path]] | None = None

    def begin(self) -> None:
        """Build in the background, for a caller that will ask soon."""
        if enabled and compile_library is not self.builder and self.pending is None:
            self.pending = compile_library, _builders.submit(self._build, compile_library)

    def __call__(self) -> ctypes.CDLL | None:
        """The library; None, with a warning the first time, where there is none."""
        if not enabled:
            return None
        if compile_library is not self.builder:
            self.builder, self.library = compile_library, self._load(compile_library)
        return self.library

    def _build(self, build: Callable[[str, Sequence[str]], Path]) -> Path:
        return build("".join(path.read_text() for path in self.sources), self.flags)

    def _load(self, build: Callable[[str, Sequence[str]], Path]) -> ctypes.CDLL | None:
        pending, self.pending = self.pending, None
        try:
            path = pending[1].result() if pending and pending[0] is build else self._build(build)
            library = ctypes.CDLL(str(path))
            for name, (arguments, result) in self.functions.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, result
            if "use_pool" in self.functions:
                library.use_pool(ctypes.addressof(threads.pool))
            self.check(library)
        except (RuntimeError, OSError) as error:
            warnings.warn(f"{self.instead}: {error}", stacklevel=4)
            return None
        return library


FUNCTORCH: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue] - torch's stubs leave it out


def dispatch_is_plain() -> bool:
    """Whether only a recording looks at single operations: no compiler, tracer, autocast, vmap or other mode."""
    return (
        not torch.compiler.is_compiling()  # first: sizes are symbols then
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and FUNCTORCH.maybe_current_level() is None
        and torch._C._len_torch_dispatch_stack() == (_recorder is not None)
    )


def is_cpu_float32(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary float32 tensors on a CPU, as far as they are there."""
    return all(t is None or (type(t) is Tensor and t.is_cpu and t.dtype == torch.float32) for t in tensors)


def run(function: Callable[..., object], arguments: tuple, *touched: object) -> None:
    """Call a function of a library; `touched` are the tensors behind the arguments."""
    function(*arguments)
    if _recorder is not None:
        _recorder(KernelCall(function, arguments, touched, touched))


def run_joinable(function: Callable[..., object], arguments: tuple, reads: object, writes: object, join: Join) -> None:
    """As `run`, of which is known what it only reads, and how it is made together with others (`KernelCall`)."""
    function(*arguments)
    if _recorder is not None:
        _recorder(KernelCall(function, arguments, reads, writes, join))


def record_calls(recorder: Callable[[KernelCall], None] | None) -> None:
    """Hand every further call of `run` and `run_joinable` to `recorder`; None: to nothing."""
    global _recorder
    _recorder = recorder
