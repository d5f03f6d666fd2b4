"""What a task's networks are made of, layer by layer, and what its learning rate will do, before any training."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
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
    return _layers(task.loss, batch, rows=len(batch))


def outermost(loss: nn.Module) -> dict[str, nn.Module]:
    """The networks in a loss module by name: the outermost modules with a tuple `in_shape` and `out_features`."""
    networks_found: dict[str, nn.Module] = {}
    for name, module in loss.named_modules():
        is_network = isinstance(getattr(module, "in_shape", None), tuple) and hasattr(module, "out_features")
        if is_network and not any(name.startswith(f"{other}.") for other in networks_found):
            networks_found[name] = module
    return networks_found


def networks(loss: nn.Module) -> dict[str, list[Layer] | str]:
    """The layers of every network in a loss module, without data: {name of the network: layers, or why not}.

    Each (see `outermost`) is given one row of zeros in evaluation mode, which leaves weights, statistics and random
    streams alone.
    """
    tables: dict[str, list[Layer] | str] = {}
    for name, module in outermost(loss).items():
        training = {each: each.training for each in module.modules()}
        try:
            tables[name] = _layers(module.eval(), *example(module))
        except Exception as error:  # a network of other people's: it may want more than one row of zeros
            tables[name] = f"not measured: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
        finally:
            for each, mode in training.items():
                each.training = mode
    return tables


def example(network: nn.Module, rows: int = 1) -> tuple[Tensor, ...]:
    """What a network can be called with: rows of zeros [rows, *in_shape], or one step of a stream and its memory."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    memory, in_shape = getattr(network, "memory_size", 0), cast(tuple[int, ...], network.in_shape)
    if memory:
        return torch.zeros(1, rows, *in_shape, device=device), torch.zeros(rows, memory, device=device)
    return (torch.zeros(rows, *in_shape, device=device),)


def _layers(module: nn.Module, *inputs: Any, rows: int = 1) -> list[Layer]:
    """The layers without children of `module`, in the order `module(*inputs)` calls them; FLOPs per row."""
    shapes: dict[str, tuple[int, ...]] = {}
    leaves = {name: each for name, each in module.named_modules() if not list(each.children())}
    # Hooks also make an MLP run layer by layer, so that each is counted.
    handles = [each.register_forward_hook(_note(name, shapes)) for name, each in leaves.items()]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    root, counts = type(module).__name__, counter.get_flop_counts()
    measured = []
    for name, shape in shapes.items():
        weights = list(leaves[name].parameters())
        flops = sum(counts.get(f"{root}.{name}" if name else root, {}).values()) / rows
        trained = sum(p.numel() for p in weights if p.requires_grad)
        frozen = sum(p.numel() for p in weights if not p.requires_grad)
        measured.append(Layer(name, type(leaves[name]).__name__, shape, trained, frozen, flops))
    return measured


def _note(name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
        shown = output if isinstance(output, Tensor) else output[0]
        shapes[name] = tuple(shown.shape)

    return hook


def rates(
    task: Task, optimizer: OptimizerConfig, schedule: ScheduleConfig, iterations: int, accumulate: int
) -> dict[str, list[float]]:
    """The learning rate of every part at the start of every iteration, and after the last: {part: iterations + 1}.

    A plateau schedule, which waits for evaluations, shows as its first rate.
    """
    per_iteration = -(-task.steps_per_iteration // accumulate)
    built = optimizer.build(task.parts())
    plan = schedule.build(built, iterations, iterations * per_iteration)
    curves: dict[str, list[float]] = {group["name"]: [] for group in built.param_groups}

    def note() -> None:
        for name, group in {group["name"]: group for group in built.param_groups}.items():
            curves[name].append(float(group["lr"]))

    note()
    for _ in range(iterations):
        for _ in range(per_iteration if plan.interval == "step" else 1):
            # Without gradients nothing moves, but torch wants a step before the scheduler's; LBFGS asks for the loss.
            built.step(lambda: 0.0)
            plan.step(plan.interval)
        note()
    return curves
