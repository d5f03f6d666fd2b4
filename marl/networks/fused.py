"""A plain MLP as one autograd node on the CPU: each pass is one call of a compiled kernel (`mlp.cpp`).

Layer by layer a 64-wide network spends more time between the products than in them, in calls and in passes through
memory. The kernel takes blocks of rows through all layers while they are in the cache. It is compiled on first use,
checked against torch, and kept on disk; where it can't be, the layers run one by one.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# (source, flags) -> the library's file, raising RuntimeError where none can be made. Who builds kernels is not this
# package's business: `agents.native.enable` sets it.
compiler: Callable[[str, Sequence[str]], Path] | None = None

# Takes a call of the kernel and what it reads and writes, while `marl.capture` records: torch does not see these calls.
recorder: Callable[[Callable[[], object], object], None] | None = None

ACTIVATIONS = {"tanh": (0, torch.tanh), "relu": (1, torch.relu)}  # number in mlp.cpp, and what it stands for
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
PARALLEL = 4_000_000  # multiplications of a forward pass below which waking threads takes longer than it saves
TOLERANCE = 1e-5  # of the check, relative to the largest number of a result


def available(activation: str) -> bool:
    """Whether the kernel knows this activation."""
    return activation in ACTIVATIONS


def worthwhile(x: Tensor, layers: list[nn.Linear]) -> bool:
    """Whether `mlp` may be used for x [N, F]: float32 on a CPU, eager, plain layers without hooks, a kernel at hand."""
    return (
        not torch.compiler.is_compiling()  # first: sizes are symbols then
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.maybe_current_level() is None  # vmap and the like
        and torch._C._len_torch_dispatch_stack() == (recorder is not None)  # modes that want to see every operator
        and all(map(_plain, layers))
        and kernel() is not None
    )


def _plain(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Linear
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and layer.bias is not None
        and layer.weight.dtype == torch.float32
        and layer.weight.is_contiguous()
    )


def mlp(x: Tensor, layers: Sequence[nn.Linear], activation: str) -> Tensor:
    """Linear layers with the activation after each but the last: float32 [N, F] -> [N, out_features]."""
    x = x.contiguous()
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    if torch.is_grad_enabled():
        return _MLP.apply(x, activation, *parameters)
    return _forward(x, activation, parameters, keep=False)[0]


def kernel() -> ctypes.CDLL | None:
    """The compiled kernel, built or loaded and checked at the first call; None, with a warning, where there is none."""
    return None if compiler is None else _load(compiler)


@lru_cache(maxsize=1)
def _load(build: Callable[[str, Sequence[str]], Path]) -> ctypes.CDLL | None:
    try:
        made = ctypes.CDLL(str(build(Path(__file__).with_name("mlp.cpp").read_text(), FLAGS)))
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        for name, arguments, result in (
            ("scratch_size", [number] * 3 + [pointer], number),
            ("kept_size", [number] * 2 + [pointer], number),
            ("forward", [number] * 4 + [pointer] * 7, None),
            ("backward", [number] * 4 + [pointer] * 9, None),
        ):
            function = getattr(made, name)
            function.argtypes, function.restype = arguments, result
        _check(made)
    except (RuntimeError, OSError) as error:
        warnings.warn(f"MLPs run layer by layer, not by their kernel: {error}", stacklevel=3)
        return None
    return made


def _check(made: ctypes.CDLL) -> None:
    """Hold the kernel against torch on a small network with ragged sizes. Raises RuntimeError."""
    generator = torch.Generator().manual_seed(0)
    sizes, rows = (5, 40, 33, 3), 71

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    parameters = [t for a, b in zip(sizes, sizes[1:], strict=False) for t in (normal(b, a) / a**0.5, normal(b))]
    x, gradient = normal(rows, sizes[0]), normal(rows, sizes[-1])
    for name, (_, function) in ACTIVATIONS.items():
        out, kept = _forward(x, name, parameters, True, made)
        ours = [out, *_backward(x, kept, name, parameters[::2], gradient, [True] * 7, made)]
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        with torch.enable_grad():
            y = leaves[0]
            for i in range(1, len(leaves), 2):
                y = nn.functional.linear(function(y) if i > 1 else y, leaves[i], leaves[i + 1])
            theirs = [y.detach(), *torch.autograd.grad(y, leaves, gradient)]
        for a, b in zip(ours, theirs, strict=True):
            if not (a - b).abs().max() <= TOLERANCE * b.abs().max():
                raise RuntimeError(f"it differs from torch with {name}")


def _numbers(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def _shape(x: Tensor, weights: Sequence[Tensor], activation: str) -> tuple[int, int, int, int, ctypes.Array]:
    """What both passes are told: depth, rows, threads, activation, widths."""
    (rows, features), shapes = x.shape, [weight.shape for weight in weights]
    macs = sum([outs * ins for outs, ins in shapes])
    # All of torch's threads or one: OpenMP ends and makes threads anew where teams of several sizes take turns.
    threads = torch.get_num_threads() if rows * macs >= PARALLEL else 1
    return len(weights), rows, threads, ACTIVATIONS[activation][0], _numbers([features, *[outs for outs, _ in shapes]])


def _forward(
    x: Tensor, activation: str, parameters: Sequence[Tensor], keep: bool, made: ctypes.CDLL | None = None
) -> tuple[Tensor, Tensor | None]:
    """Result, and with `keep` what the backward pass needs of the hidden layers."""
    made = made or kernel()
    weights, biases = parameters[::2], parameters[1::2]
    depth, rows, threads, kind, widths = _shape(x, weights, activation)
    out = x.new_empty(rows, weights[-1].shape[0])
    scratch = x.new_empty(made.scratch_size(depth, rows, threads, widths))
    kept = x.new_empty(made.kept_size(depth, rows, widths)) if keep else None
    call = partial(
        made.forward, depth, rows, threads, kind, widths, x.data_ptr(),
        _numbers([p.data_ptr() for p in weights]), _numbers([p.data_ptr() for p in biases]),
        None if kept is None else kept.data_ptr(), out.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    _run(call, x, parameters, kept, out, scratch)
    return out, kept


def _backward(
    x: Tensor,
    kept: Tensor,
    activation: str,
    weights: Sequence[Tensor],
    gradient: Tensor,
    needed: Sequence[bool],
    made: ctypes.CDLL | None = None,
) -> list[Tensor | None]:
    """Gradients of x, then of weight and bias of each layer; None where they are not `needed`."""
    made = made or kernel()
    depth, rows, threads, kind, widths = _shape(x, weights, activation)
    scratch = x.new_empty(made.scratch_size(depth, rows, threads, widths))
    like = [x, *[t for weight in weights for t in (weight, weight[:, 0])]]
    gradients = [t.new_empty(t.shape) if wanted else None for t, wanted in zip(like, needed, strict=True)]
    pointers = [0 if g is None else g.data_ptr() for g in gradients]
    call = partial(
        made.backward, depth, rows, threads, kind, widths, x.data_ptr(), _numbers([w.data_ptr() for w in weights]),
        kept.data_ptr(), gradient.data_ptr(), _numbers(pointers[1::2]), _numbers(pointers[2::2]), pointers[0],
        scratch.data_ptr(),
    )  # fmt: skip
    _run(call, x, weights, kept, gradient, gradients, scratch)
    return gradients


def _run(call: Callable[[], object], *touched: object) -> None:
    call()
    if recorder is not None:
        recorder(call, touched)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, activation: str, *parameters: Tensor) -> Tensor:
        out, kept = _forward(x, activation, parameters, keep=True)
        ctx.activation = activation
        ctx.save_for_backward(x, kept, *parameters[::2])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        x, kept, *weights = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        by_x, *others = _backward(x, kept, ctx.activation, weights, gradient.contiguous(), needed)
        return (by_x, None, *others)
