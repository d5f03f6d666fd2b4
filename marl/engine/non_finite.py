"""Numbers that are not finite: found once per iteration, named, and survived where that is asked for."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def first_bad(record: Mapping[str, float], names: tuple[str, ...]) -> str | None:
    """The first of `names` whose figure is not finite, as "loss is nan"; None where all are."""
    return next((f"{name} is {record[name]}" for name in names if not math.isfinite(record[name])), None)


def bad_tensor(module: nn.Module) -> str | None:
    """The first parameter or buffer of `module` that is not finite, or whose gradient is not; None where all are."""
    for name, value in module.state_dict(keep_vars=True).items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return f"weight '{name}' is not finite"
        if value.grad is not None and not torch.isfinite(value.grad).all():
            return f"the gradient of '{name}' is not finite"
    return None


def masked(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`outputs` with zeros where its loss is not finite, and "finite": 1 or 0; nothing leaves the device."""
    finite = torch.isfinite(outputs["loss"])
    masked_outputs = {name: torch.where(finite, value, 0) for name, value in outputs.items()}
    return {**masked_outputs, "finite": finite.float()}


def shares(totals: Mapping[str, Tensor], skipped: Tensor, batches: int) -> dict[str, Tensor]:
    """Means over the minibatches that counted, from `masked` means over all; how many optimiser steps were skipped.

    `totals`: means over all minibatches, with the share of those with a finite loss under "finite".
    """
    means = {name: value if name == "grad_norm" else value / totals["finite"] for name, value in totals.items()}
    return {**means, "finite": totals["finite"], "skipped_minibatches": skipped.float()}


def step_if_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """An optimiser step that changes nothing where `finite`, bool [] on the device, is False.

    Fused optimisers decide that on the device (as they do for fp16's scaler); for others the host reads one number.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif finite:
        optimizer.step()


def lower_rates(optimizer: torch.optim.Optimizer, scheduler: object | None, factor: float) -> None:
    """Multiply every learning rate, now and in the rest of the schedule, by `factor`."""
    for group in optimizer.param_groups:
        for key in {"lr", "initial_lr", "max_lr", "min_lr"} & set(group):
            group[key] = group[key] * factor
    parts = [scheduler]
    for part in parts:
        parts += getattr(part, "_schedulers", ())
        if hasattr(part, "base_lrs"):
            part.base_lrs = [rate * factor for rate in part.base_lrs]
        if hasattr(part, "_last_lr"):
            part._last_lr = [rate * factor for rate in part._last_lr]


def sentence(iteration: int, what: str, where: str | None, last: Mapping[str, float], names: tuple[str, ...]) -> str:
    """What to tell: the iteration, what is not finite, where it comes from, and the last figures that were."""
    text = f"iteration {iteration}: {what}"
    if where:
        text += f" ({where})"
    if last:
        figures = ", ".join(f"{name} {last[name]:.4g}" for name in names if name in last)
        text += f"; the last finite figures, of iteration {last['iteration']:.0f}: {figures}"
    return text
