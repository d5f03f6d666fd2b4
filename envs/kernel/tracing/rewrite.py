"""Makes the simulator's data-dependent Python traceable: masked reads and writes, branches, asserts, rejection loops.

Every rule keeps the value that each environment would compute alone:

- `x[mask]` reads all of x, and `x[mask] = v` becomes `x = where(mask, v, x)`: computing for all environments what was
  asked for some changes nothing, because a kernel never lets environments meet.
- `if condition.any():` is taken: what follows is masked (a shortcut that skips work) or exact (a culling shortcut).
  That is an assumption: `verify` compares batches in which the condition is false, and refuses what it never sees so.
- `assert condition` is answered with the truth of the traced values.
- A loop that draws until no environment objects (rejection sampling) is unrolled `TRIES` times; after the first
  success, later draws don't touch an environment any more.
"""

import ast
import contextlib
import functools
import linecache
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import envs.kernel
from envs.kernel.tracing.tape import Refusal, Tape

ENDLESS = 2_000  # questions in one step; a loop that is never told to end asks without end
TRIES = 16  # a rejection loop that fails 16 times in a row keeps its last draw

SKIPPED = (str(Path(torch.__file__).parent), str(Path(envs.kernel.__file__).parent), contextlib.__file__)
OURS = str(Path(envs.__file__).parent)


def caller():
    """The innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(SKIPPED):
        frame = frame.f_back
    return frame


def location() -> str:
    """The caller as "file.py:line"."""
    frame = caller()
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}" if frame is not None else "?"


@functools.lru_cache(maxsize=64)
def _statements(filename: str):
    source = "".join(linecache.getlines(filename))
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    kinds = (ast.Assert, ast.If, ast.While, ast.For, ast.Try)
    return tuple(node for node in ast.walk(tree) if isinstance(node, kinds))


def statement(filename: str, line: int):
    """The smallest assert, if or while whose test stands on that line, or None."""
    best = None
    for node in _statements(filename):
        if isinstance(node, (ast.For, ast.Try)):
            continue
        last = node.end_lineno if isinstance(node, ast.Assert) else node.test.end_lineno
        if node.lineno <= line <= last and (best is None or node.lineno >= best.lineno):
            best = node
    return best


def in_try(filename: str, line: int) -> bool:
    """Whether an exception raised on that line may be caught in the same file's function."""
    tries = [node for node in _statements(filename) if isinstance(node, ast.Try)]
    return any(node.lineno <= line <= node.body[-1].end_lineno for node in tries)


def in_while(filename: str, line: int) -> bool:
    """Whether the innermost loop around that line is a while loop: `while bad.any():`, or `if ok: break` in one."""
    loops = [node for node in _statements(filename) if isinstance(node, (ast.For, ast.While))]
    around = [node for node in loops if node.lineno <= line <= node.end_lineno]
    return bool(around) and isinstance(max(around, key=lambda node: node.lineno), ast.While)


NUMBERS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__complex__,
    Tensor.__repr__,
}  # torch writes a tensor's text with all modes off
MEMORY = {
    Tensor.numpy,
    Tensor.__array__,
    Tensor.data_ptr,
    Tensor.untyped_storage,
    Tensor.__dlpack__,
    Tensor.storage,
    Tensor.share_memory_,
    Tensor.apply_,
    Tensor.map_,
}


def id_of(tape: Tape, tensor: Tensor) -> int | None:
    """The tape's number of a tensor."""
    return tape.numbers.get(id(tensor))


class TruthRecorder(TorchFunctionMode):
    """Notes which conditions over tensors were false, and how often one was true in a call, while a step runs."""

    def __init__(self) -> None:
        super().__init__()
        self.false: set[tuple[str, int]] = set()
        self.rounds: dict[tuple[str, int], int] = {}  # of the longest row of trues of one condition in one call
        self._row: dict[tuple, int] = {}
        self._frames: list = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Runs the function."""
        value = func(*args, **(kwargs or {}))
        if func is Tensor.__bool__:
            frame = caller()
            place = frame.f_code.co_filename, frame.f_lineno
            self._frames.append(frame)
            if value:
                key = (id(frame), frame.f_lineno)
                self._row[key] = self._row.get(key, 0) + 1
                self.rounds[place] = max(self.rounds.get(place, 0), self._row[key])
            else:
                self.false.add(place)
        return value


class Rewriter(TorchFunctionMode):
    """Answers the questions that Python asks of tensors, and turns masked indexing into `where`."""

    def __init__(self, tape: Tape, num_envs: int):
        super().__init__()
        self.tape, self.num_envs = tape, num_envs
        self.questions = 0  # not those of our corrections: within the physics, one per pair of bodies
        self.asked: dict[tuple, int] = {}  # (frame, line) -> times answered True
        self.branches: set[tuple[str, int]] = set()  # (file, line) of conditions over the batch that were answered True
        self.loops: set[tuple[str, int]] = set()  # those of them that were asked again and again, and cut short
        self.looped = self.selected = False  # whether a loop was cut short, or a masked selection read
        self.frames: list = []  # kept, so that no frame's id is used again

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Dispatches on the function; everything else runs as it is."""
        kwargs = kwargs or {}
        if func is Tensor.__bool__:
            return self._bool(args[0])
        if func is Tensor.__getitem__:
            return self._read(*args)
        if func is Tensor.__setitem__:
            return self._write(*args)
        if func in NUMBERS and self.tape.depends(args[0]):
            raise Refusal(f"the step turns a tensor into a Python number at {location()}")
        if func in MEMORY and self.tape.depends(args[0]):
            raise Refusal(f"the step hands a tensor to NumPy or other code at {location()}")
        if func is torch.nn.functional.one_hot and self.tape.depends(args[0]):
            classes = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
            if classes > 0:  # torch's own looks at the values
                return (args[0].unsqueeze(-1) == torch.arange(classes, device=args[0].device)).long()
        if func in (torch.nonzero, Tensor.nonzero, torch.masked_select, torch.unique, Tensor.unique):
            if self.tape.depends(args[0]):
                raise Refusal(f"the step selects a varying number of environments at {location()}")
        if func is torch.where and len(args) == 1 and self.tape.depends(args[0]):
            raise Refusal(f"the step selects a varying number of environments at {location()}")
        return func(*args, **kwargs)

    def _bool(self, tensor: Tensor) -> bool:
        frame = caller()
        value = tensor.detach()  # on the CPU no tensor operation follows: nothing is recorded
        truth = bool((value if value.device.type == "cpu" else value.cpu()).numpy())
        if not self.tape.depends(tensor):
            return truth
        inside_torch = sys._getframe(2).f_code.co_filename.startswith(SKIPPED[0])  # distributions validating arguments
        file, line = frame.f_code.co_filename, frame.f_lineno
        if inside_torch:
            return truth
        if tensor.numel() and id_of(self.tape, tensor) in self.tape.shared:
            raise Refusal(f"the step branches on a tensor that all environments share and that changes at {location()}")
        if not _statements(file):
            raise Refusal(f"the step branches on a tensor at {location()}, and its source cannot be read")
        node = statement(file, line)
        if isinstance(node, ast.Assert):
            if in_try(file, line):
                raise Refusal(f"the step asserts something of all environments within a try at {location()}")
            return truth
        key = (id(frame), line)
        self.frames.append(frame)
        self.asked[key] = self.asked.get(key, 0) + 1
        self.branches.add((file, line))
        self.questions += not file.startswith(OURS)
        if self.questions > ENDLESS:
            raise Refusal(f"the step asks the same again and again at {location()}")
        if self.asked[key] > TRIES and in_while(file, line):
            if truth:
                raise Refusal(f"a loop had not ended after {TRIES} rounds at {location()}")
            self.looped = True
            self.loops.add((file, line))
            return False
        return True

    def _mask(self, index):
        """(index as a tuple without Ellipsis, position of the mask) or None if there is no mask over environments."""
        items = index if isinstance(index, tuple) else (index,)
        places = [
            i
            for i, item in enumerate(items)
            if isinstance(item, Tensor) and item.dtype == torch.bool and item.dim() > 0 and self.tape.depends(item)
        ]
        if not places:
            return None
        if len(places) > 1 or any(isinstance(item, (Tensor, list)) for i, item in enumerate(items) if i != places[0]):
            raise Refusal(f"the step indexes with a mask and another tensor at {location()}")
        if any(item is Ellipsis for item in items[: places[0]]):
            raise Refusal(f"the step indexes with ... before a mask at {location()}")
        return items, places[0]

    def _view(self, x: Tensor, items: tuple, at: int):
        """The part of x that the index selects if the mask were all True, and the mask shaped to it."""
        mask = items[at]
        rest = items[:at] + (slice(None),) * mask.dim() + items[at + 1 :]
        view = x[rest]
        before = sum(1 for item in items[:at] if isinstance(item, slice) or item is None)
        after = view.dim() - before - mask.dim()
        return view, mask[(None,) * before + (...,) + (None,) * after]

    def _read(self, x: Tensor, index):
        mask = self._mask(index)
        if mask is None:
            return Tensor.__getitem__(x, index)
        self.selected = True
        return self._view(x, *mask)[0].clone()

    def _write(self, x: Tensor, index, value) -> None:
        mask = self._mask(index)
        if mask is None:
            Tensor.__setitem__(x, index, value)
            return
        view, where = self._view(x, *mask)
        if isinstance(value, Tensor) and value.dtype != view.dtype:
            value = value.to(view.dtype)
        after = view.dim() - (mask[1] + mask[0][mask[1]].dim())  # what broadcasts along the selection is no part of it
        if isinstance(value, Tensor) and after < value.dim() < view.dim():
            raise Refusal(f"the step writes a masked value of another shape at {location()}")
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=view.dtype, device=view.device)
        view.copy_(torch.where(where, value, view))
