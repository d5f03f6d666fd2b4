"""What a task's networks are made of, layer by layer, and what its learning rate will do, before any training."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from marl.optim import OptimizerConfig, ScheduleConfig
from marl.task import Task


@dataclass
class Layer:
    """One layer: where it is, its class, the shape of its last output, trained and frozen parameters, FLOPs.

    flops: of its matrix products and convolutions in one forward pass of the loss, per row of the minibatch.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    frozen: int
    flops: float


def layers(task: Task) -> list[Layer]:
    """The layers without children of a task's loss module, in the order they are first called.

    Collects one iteration's data and computes the loss of its first minibatch, without gradients and without a step.
    """
    task.collect(0)
    batch = next(iter(task.batches(0)))
    shapes: dict[str, tuple[int, ...]] = {}
    leaves = {name: module for name, module in task.loss.named_modules() if not list(module.children())}
    # Hooks also make an MLP run layer by layer, so that each is counted.
    handles = [module.register_forward_hook(_note(name, shapes)) for name, module in leaves.items()]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            task.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    root, counts = type(task.loss).__name__, counter.get_flop_counts()
    found = []
    for name, shape in shapes.items():
        own = list(leaves[name].parameters())
        flops = sum(counts.get(f"{root}.{name}", {}).values()) / len(batch)
        found.append(Layer(name, type(leaves[name]).__name__, shape, sum(p.numel() for p in own if p.requires_grad),
                           sum(p.numel() for p in own if not p.requires_grad), flops))
    return found


def _note(name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
        shown = output if isinstance(output, Tensor) else output[0]
        shapes[name] = tuple(shown.shape)

    return hook


def rates(task: Task, optimizer: OptimizerConfig, schedule: ScheduleConfig, iterations: int, accumulate: int
          ) -> dict[str, list[float]]:
    """The learning rate of every part at the start of every iteration, and after the last: {part: iterations + 1}.

    A plateau schedule, which waits for evaluations, shows as its first rate.
    """
    per_iteration = -(-task.steps_per_iteration // accumulate)
    built = optimizer.build(task.parts())
    plan = schedule.build(built, iterations, iterations * per_iteration)
    found: dict[str, list[float]] = {group["name"]: [] for group in built.param_groups}

    def note() -> None:
        for name, group in {group["name"]: group for group in built.param_groups}.items():
            found[name].append(float(group["lr"]))

    note()
    for _ in range(iterations):
        for _ in range(per_iteration if plan.interval == "step" else 1):
            built.step()  # there are no gradients: nothing moves, but torch wants it before the scheduler's step
            plan.step(plan.interval)
        note()
    return found
