"""Clipping and a step of Adam or AdamW as one compiled call (`fused_adam.cpp`).

Over small networks torch's own take half as long as the passes before. Idle cores take a share, as they do of passes.
The optimiser stays torch's, with its states, and takes the step itself wherever this does not apply.
"""

import ctypes
import operator
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from marl.native import library, threads
from marl.native.compiler import FLAGS
from marl.native.library import NUMBER, POINTER, REAL

HOOKS: Any = sys.modules[torch.optim.Optimizer.__module__]  # torch.optim.optimizer, which torch.optim's stubs hide
MOST_NUMBERS = 1 << 20  # numbers beyond which a step is left to torch, which uses several threads
NEEDED = {"fused": True, "amsgrad": False, "maximize": False, "differentiable": False, "capturable": False}


class FusedAdamStep:
    """Steps of an optimiser, and the clipping of each part's gradients before.

    Args:
        optimizer: Adam or AdamW of torch.
        parts: parameters whose gradients are clipped together, all of the optimiser's.
        most: the largest norm of a part's gradient; None = any.
    """

    def __init__(self, optimizer: Adam, parts: list[list[nn.Parameter]], most: float | None) -> None:
        self.optimizer, self.most = optimizer, most or 0.0
        groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.parameters = [p for part in parts for p in part]
        count = len(self.parameters)
        integers, sizes = ctypes.c_int64 * count, [p.numel() for p in self.parameters]
        part = [i for i, members in enumerate(parts) for _ in members]
        group = [groups[id(p)] for p in self.parameters]
        self.kernel_args = count, integers(*sizes), integers(*part), integers(*group)
        self.rates = (ctypes.c_double * (6 * len(optimizer.param_groups)))()
        self.norms = torch.empty(count)
        self.state: Any = None
        self.at: tuple[int, ...] = ()
        self.known: list[Tensor | None] = []  # gradients that were found to be ordinary: replays leave the same ones

    def __call__(self) -> Tensor | None:
        """Clip, step and give the norm of all gradients, on the device; None where torch has to do it."""
        return self.by(functions())

    def drop_gradients(self) -> None:
        """Set the gradients to None, which makes room for the next."""
        for parameter in self.parameters:
            parameter.grad = None

    def by(self, lib: ctypes.CDLL | None) -> Tensor | None:
        """As a call, with this library."""
        gradients: list[Any] = [p.grad for p in self.parameters]  # tensors, as is asked where they are new
        if lib is None or not self._simple():
            return None
        if len(self.known) != len(gradients) or any(map(operator.is_not, gradients, self.known)):
            if not all(map(_ordinary, gradients)):
                return None
            self.known = gradients
        if self.optimizer.state is not self.state and not self._find():
            return None
        at = (*[p.data_ptr() for p in self.parameters], *[g.data_ptr() for g in gradients])
        if at != self.at:
            pointers = ctypes.c_void_p * len(gradients)
            self.at, self.where = at, (pointers(*at[: len(gradients)]), pointers(*at[len(gradients) :]))
        total = self.norms.new_empty(())
        results = self.norms.data_ptr(), total.data_ptr()
        lib.step(threads.members(), *self.kernel_args, self.rates, self.most, *self.where, *self.moments, *results)
        return total

    def _simple(self) -> bool:
        """Take over the groups' rates; whether they are plain numbers and no hook waits for a step."""
        adam = self.optimizer
        if adam._optimizer_step_pre_hooks or adam._optimizer_step_post_hooks:
            return False
        if HOOKS._global_optimizer_pre_hooks or HOOKS._global_optimizer_post_hooks:
            return False
        for i, group in enumerate(adam.param_groups):
            if isinstance(group["lr"], Tensor) or any(group.get(key, want) is not want for key, want in NEEDED.items()):
                return False
            decoupled = group.get("decoupled_weight_decay", isinstance(adam, AdamW))
            self.rates[6 * i : 6 * i + 6] = (
                *(group["lr"], *group["betas"], group["eps"], group["weight_decay"]),
                float(decoupled),
            )
        return True

    def _find(self) -> bool:
        """Where the optimiser's states lie; whether they are all there, which they are after its first step."""
        states = [self.optimizer.state.get(p, {}) for p in self.parameters]
        kinds = ("exp_avg", "exp_avg_sq", "step")
        if not all(states) or not all(_ordinary(state[kind]) for state in states for kind in kinds):
            return False
        pointers = ctypes.c_void_p * len(states)
        self.kept = [[state[kind] for state in states] for kind in kinds]
        self.moments = [pointers(*[t.data_ptr() for t in tensors]) for tensors in self.kept]
        self.state = self.optimizer.state
        return True


def build_fused_step(
    optimizer: torch.optim.Optimizer, parts: list[list[nn.Parameter]], most: float | None
) -> FusedAdamStep | None:
    """Such steps of an optimiser, if it and its parameters are of the right kind."""
    parameters = [p for part in parts for p in part]
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, parameters))
    if not isinstance(optimizer, Adam) or type(optimizer) not in (Adam, AdamW):
        return None
    if not inside or len(set(map(id, parameters))) < len(parameters):
        return None
    small = sum(p.numel() for p in parameters) <= MOST_NUMBERS
    return FusedAdamStep(optimizer, parts, most) if small and all(_ordinary(p.detach()) for p in parameters) else None


def _ordinary(tensor: Tensor | None) -> bool:
    if tensor is None or not library.is_cpu_float32(tensor):
        return False
    return tensor.layout is torch.strided and tensor.is_contiguous()


def _check(lib: ctypes.CDLL) -> None:
    """Hold a few steps against torch's. Raises RuntimeError."""
    generator = torch.Generator().manual_seed(0)
    params, theirs = ([nn.Parameter(torch.ones(n)) for n in (3, 40)] for _ in range(2))
    ours = FusedAdamStep(Adam(params, fused=True), [params], 0.5)
    other = Adam(theirs, fused=True)
    for turn in range(3):
        for a, b in zip(params, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        norm = nn.utils.clip_grad_norm_(theirs, 0.5)
        other.step()
        if not turn:
            nn.utils.clip_grad_norm_(params, 0.5)
            ours.optimizer.step()
            continue
        fused_norm = ours.by(lib)
        if fused_norm is None or not torch.allclose(fused_norm, norm):
            raise RuntimeError("its norms differ from torch's")
    if not all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(params, theirs, strict=True)):
        raise RuntimeError("its steps differ from torch's")


functions = library.Library(
    [Path(__file__).parent / name for name in ("../native/work_sharing.h", "fused_adam.cpp")],
    FLAGS,
    {
        "width": ([], NUMBER),
        "use_pool": ([POINTER], None),
        "step": ([NUMBER] * 2 + [POINTER] * 4 + [REAL] + [POINTER] * 7, None),
    },
    _check,
    "torch's optimiser clips and steps, not a compiled function",
)
