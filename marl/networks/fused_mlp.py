"""A plain MLP as one autograd node on the CPU: each pass is one call of a compiled kernel (`fused_mlp.cpp`).

Layer by layer a 64-wide network spends more time between the products than in them, in calls and in passes through
memory. The kernel takes blocks of rows through all layers while they are in the cache. It is compiled on first use,
checked against torch, and kept on disk; where it can't be, the layers run one by one.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from marl.native import library, threads
from marl.native.library import NUMBER, POINTER

ACTIVATIONS = {"tanh": (0, torch.tanh), "relu": (1, torch.relu)}  # number in fused_mlp.cpp, and what it stands for
SOURCES = "cpp/fused_mlp_tiles.h", "cpp/fused_mlp_blocks.h", "cpp/fused_mlp.cpp"
TOLERANCE = 1e-5  # of the check, relative to the largest number of a result


def available(activation: str) -> bool:
    """Whether the kernel knows this activation."""
    return activation in ACTIVATIONS


def worthwhile(x: Tensor, layers: list[nn.Linear]) -> bool:
    """Whether `mlp` may be used for x [..., F]: float32 on a CPU, eager, plain layers without hooks, a kernel at hand.

    Asked at every call, since all of it may change: this and what follows cost a rollout's steps as much as the kernel.
    """
    return (
        library.dispatch_is_plain()
        and library.is_cpu_float32(x)
        and all(map(_plain, layers))
        and x.shape[-1] == layers[0].in_features  # torch tells what is wrong, the kernel would read on
        and kernel() is not None
    )


def _plain(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weight, bias = _own(layer)
    return weight is not None and bias is not None and weight.dtype == torch.float32 and weight.is_contiguous()


def _own(layer: nn.Linear) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias, without the detour that `layer.weight` takes through Module.__getattr__."""
    return layer._parameters.get("weight"), layer._parameters.get("bias")


def mlp(x: Tensor, layers: Sequence[nn.Linear], activation: str) -> Tensor:
    """Linear layers with the activation after each but the last: float32 [..., F] -> [..., out_features]."""
    x = x.contiguous()
    parameters: list[Any] = [p for layer in layers for p in _own(layer)]  # tensors, which `worthwhile` has seen
    if torch.is_grad_enabled():
        return _MLP.apply(x, activation, *parameters)
    return _forward(x, activation, parameters, keep=False)[0]


def _check(lib: ctypes.CDLL) -> None:
    """Hold the kernel against torch on a small network with ragged sizes. Raises RuntimeError."""
    generator = torch.Generator().manual_seed(0)
    sizes, rows = (5, 40, 33, 3), 71

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    parameters = [t for a, b in zip(sizes, sizes[1:], strict=False) for t in (normal(b, a) / a**0.5, normal(b))]
    x, gradient = normal(rows, sizes[0]), normal(rows, sizes[-1])
    for name, (_, function) in ACTIVATIONS.items():
        out, saved = _forward(x, name, parameters, True, lib)
        assert saved is not None  # it was to be kept
        ours = [out, *_backward(x, saved, name, parameters[::2], gradient, [True] * 7, lib)]
        alone, *none = _backward(x, saved, name, parameters[::2], gradient, [True] + [False] * 6, lib)
        if alone is None or ours[1] is None or not torch.equal(alone, ours[1]) or any(g is not None for g in none):
            raise RuntimeError("the input's gradient depends on whether those of the weights are asked for")
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        with torch.enable_grad():
            y = leaves[0]
            for i in range(1, len(leaves), 2):
                y = nn.functional.linear(function(y) if i > 1 else y, leaves[i], leaves[i + 1])
            theirs = [y.detach(), *torch.autograd.grad(y, leaves, gradient)]
        for a, b in zip(ours, theirs, strict=True):
            if not (a - b).abs().max() <= TOLERANCE * b.abs().max():
                raise RuntimeError(f"it differs from torch with {name}")


kernel = library.Library(
    [Path(__file__).parent / name for name in ("../native/work_sharing.h", *SOURCES)],
    ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w"),
    {
        "use_pool": ([POINTER], None),
        "helped": ([], NUMBER),
        "backoffs": ([], NUMBER),
        "kept_size": ([NUMBER] * 2 + [POINTER], NUMBER),
        "forward": ([NUMBER] * 4 + [POINTER] * 6, None),
        "backward": ([NUMBER] * 4 + [POINTER] * 8, None),
        "passes": ([NUMBER] * 2 + [POINTER], None),
    },
    _check,
    "MLPs run layer by layer, not by their kernel",
)


@lru_cache(maxsize=1024)
def _numbers(*values: int) -> ctypes.Array:
    """As C reads them; kept, since widths and addresses of parameters come again and again."""
    return (ctypes.c_int64 * len(values))(*values)


@lru_cache(maxsize=256)
def _shape(lib: ctypes.CDLL, activation: str, rows: int, members: int, *widths: int) -> tuple[tuple, int]:
    """What both passes are given (threads at most, depth, rows, activation, widths), and how much the first keeps."""
    depth, sizes = len(widths) - 1, _numbers(*widths)
    return (members, depth, rows, ACTIVATIONS[activation][0], sizes), lib.kept_size(depth, rows, sizes)


def _of(x: Tensor, weights: Sequence[Tensor], activation: str, lib: ctypes.CDLL) -> tuple[tuple, int]:
    """`_shape` of x [..., F] contiguous."""
    features = x.shape[-1]
    outs = [weight.size(0) for weight in weights]
    return _shape(lib, activation, x.numel() // features, threads.members(), features, *outs)


def _forward(
    x: Tensor, activation: str, parameters: Sequence[Tensor], keep: bool, lib: ctypes.CDLL | None = None
) -> tuple[Tensor, Tensor | None]:
    """Result, and with `keep` what the backward pass needs of the hidden layers."""
    lib = lib or kernel()
    assert lib is not None  # `worthwhile` has seen it
    weights, biases = parameters[::2], parameters[1::2]
    kernel_args, saved = _of(x, weights, activation, lib)
    out = x.new_empty((*x.shape[:-1], weights[-1].size(0)))
    saved = x.new_empty(saved) if keep else None
    arguments = (
        *kernel_args, x.data_ptr(),
        _numbers(*[p.data_ptr() for p in weights]), _numbers(*[p.data_ptr() for p in biases]),
        None if saved is None else saved.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    library.run_joinable(lib.forward, arguments, (x, parameters), (saved, out), _side_by_side)
    return out, saved


def _backward(
    x: Tensor,
    saved: Tensor,
    activation: str,
    weights: Sequence[Tensor],
    gradient: Tensor,
    needed: Sequence[bool],
    lib: ctypes.CDLL | None = None,
) -> list[Tensor | None]:
    """Gradients of x, then of weight and bias of each layer; None where they are not `needed`."""
    lib = lib or kernel()
    assert lib is not None  # the forward pass had it
    kernel_args, _ = _of(x, weights, activation, lib)
    shapes = [x.shape, *[shape for weight in weights for shape in (weight.shape, weight.shape[:1])]]
    gradients = [x.new_empty(shape) if is_needed else None for shape, is_needed in zip(shapes, needed, strict=True)]
    pointers = [0 if g is None else g.data_ptr() for g in gradients]
    arguments = (
        *kernel_args, x.data_ptr(), _numbers(*[w.data_ptr() for w in weights]), saved.data_ptr(), gradient.data_ptr(),
        _numbers(*pointers[1::2]), _numbers(*pointers[2::2]), pointers[0],
    )  # fmt: skip
    library.run_joinable(lib.backward, arguments, (x, weights, saved, gradient), gradients, _side_by_side)
    return gradients


class _Pass(ctypes.Structure):
    """Net of fused_mlp.cpp; addresses as numbers."""

    _fields_ = [
        (name, NUMBER)
        for name in ("depth", "rows", "kind", "size", "x", "weight", "bias", "kept", "out", "gradient", "dweight")
        + ("dbias", "dx")
    ]


def _side_by_side(calls: Sequence[library.KernelCall]) -> Callable[[], object]:
    """One call of several passes that do not depend on one another: threads share the blocks of all of them.

    Those with the same weights stand next to one another, since they pack them once.
    """
    passes = []
    for call in calls:
        members, *given = [ctypes.addressof(a) if isinstance(a, ctypes.Array) else a or 0 for a in call.arguments]
        if call.function.__name__ == "backward":
            given[6:] = 0, given[6], 0, *given[7:]  # no bias, no out
        passes.append(_Pass(*given))
    passes.sort(key=lambda one: (one.gradient != 0, NUMBER.from_address(one.weight).value))
    places = (POINTER * len(passes))(*map(ctypes.addressof, passes))
    lib = kernel()
    assert lib is not None  # the recorded passes are its
    return partial(_run, lib.passes, (members, len(passes), places), (passes, calls))


def _run(function: Callable[..., object], arguments: tuple, kept_alive: object) -> None:
    """A call on memory that lives as long as it does."""
    function(*arguments)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, activation: str, *parameters: Tensor) -> Tensor:
        out, saved = _forward(x, activation, parameters, keep=True)
        ctx.activation = activation
        ctx.save_for_backward(x, saved, *parameters[::2])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        x, saved, *weights = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        by_x, *others = _backward(x, saved, ctx.activation, weights, gradient.contiguous(), needed)
        return (by_x, None, *others)
