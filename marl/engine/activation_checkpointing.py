"""Gradient checkpointing of stacks of layers: activations are computed again in the backward pass, not kept."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marl.core.errors import UserError


def recompute(module: nn.Module) -> None:
    """Keep no activations inside of the stacks of layers below `module`.

    Gradient checkpointing (Chen et al. 2016; `torch.utils.checkpoint`), for every outermost nn.Sequential; dropout
    draws the same numbers twice. Raises UserError as `stacks`.
    """
    for stack in stacks(module):
        stack.forward = _Recomputed(stack)
    for layer in module.modules():
        if hasattr(layer, "plain"):
            layer.plain = False  # an MLP's fused pass keeps its layers' results


def stacks(module: nn.Module) -> list[nn.Sequential]:
    """The outermost nn.Sequentials below `module` of more than one layer.

    Raises UserError where there is none, and for one with BatchNorm, whose statistics would count twice.
    """
    taken: dict[str, nn.Sequential] = {}
    for name, stack in module.named_modules():
        if not isinstance(stack, nn.Sequential) or len(stack) < 2 or any(name.startswith(f"{t}.") for t in taken):
            continue
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in stack.modules()):
            raise UserError(f"trainer.recompute=true: {name} holds BatchNorm, whose statistics would count twice")
        taken[name] = stack
    if not taken:
        raise UserError("trainer.recompute=true: the networks hold no stack of layers to recompute; false is allowed")
    return list(taken.values())


class _Recomputed:
    """The forward pass of a stack under a checkpoint, where gradients are wanted."""

    def __init__(self, stack: nn.Sequential) -> None:
        self.stack = stack

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return nn.Sequential.forward(self.stack, x)
        return checkpoint(nn.Sequential.forward, self.stack, x, use_reentrant=False)
