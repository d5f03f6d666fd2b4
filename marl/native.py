"""Compiled functions of ours beside torch's: built on first use, called by address, known to recordings.

Each library is held to torch when it is loaded, and is never used where it can't be built or differs.
"""

import ctypes
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

NUMBER, REAL, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

# (source, flags) -> the library's file, raising RuntimeError where none can be made. Who builds kernels is not this
# package's business: `agents.native.enable` sets it.
compiler: Callable[[str, Sequence[str]], Path] | None = None

# Takes a call and what it reads and writes, while `marl.recorder` records: torch does not see these calls.
recorder: Callable[[Callable[[], object], object], None] | None = None

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
        self.by: Callable[..., Path] | None = None
        self.made: ctypes.CDLL | None = None
        self.coming: tuple[Callable[..., Path], Future[Path]] | None = None

    def begin(self) -> None:
        """Build in the background, for whoever will ask soon."""
        if compiler is not None and compiler is not self.by and self.coming is None:
            self.coming = compiler, _builders.submit(self._build, compiler)

    def __call__(self) -> ctypes.CDLL | None:
        """The library; None, with a warning the first time, where there is none."""
        if compiler is not self.by:
            self.by, self.made = compiler, None if compiler is None else self._load(compiler)
        return self.made

    def _build(self, build: Callable[[str, Sequence[str]], Path]) -> Path:
        return build("".join(path.read_text() for path in self.sources), self.flags)

    def _load(self, build: Callable[[str, Sequence[str]], Path]) -> ctypes.CDLL | None:
        begun, self.coming = self.coming, None
        try:
            built = begun[1].result() if begun and begun[0] is build else self._build(build)
            made = ctypes.CDLL(str(built))
            for name, (arguments, result) in self.functions.items():
                function = getattr(made, name)
                function.argtypes, function.restype = arguments, result
            self.check(made)
        except (RuntimeError, OSError) as error:
            warnings.warn(f"{self.instead}: {error}", stacklevel=4)
            return None
        return made


def unseen() -> bool:
    """Whether nobody but a recording looks at single operations: no compiler, tracer, autocast, vmap or other mode."""
    return (
        not torch.compiler.is_compiling()  # first: sizes are symbols then
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._len_torch_dispatch_stack() == (recorder is not None)
    )


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary float32 tensors on a CPU, as far as they are there."""
    return all(t is None or (type(t) is Tensor and t.is_cpu and t.dtype == torch.float32) for t in tensors)


def run(function: Callable[..., object], arguments: tuple, *touched: object) -> None:
    """Call a function of a library; `touched` are the tensors behind the arguments."""
    function(*arguments)
    if recorder is not None:
        recorder(partial(function, *arguments), touched)
