"""What turns gradients into steps: built before a run, and one step of the optimiser with all that belongs to it."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marl import distributed, divergence
from marl.adam import quick
from marl.averaging import BEGIN, DECAY, Averaging
from marl.capture import captured
from marl.errors import UserError
from marl.optim import OptimizerConfig, Schedule, ScheduleConfig, clip_gradients, thaw
from marl.task import Task

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(trainer: Any, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> None:
    """Build the trainer's optimiser, schedule, scaler, autocast, average of weights and wrapped loss.

    Raises UserError as `built`.
    """
    task, device = trainer.task, trainer.device
    trainer.iterations = trainer.max_iterations or task.iterations
    trainer.optimizer, trainer.schedule = built(trainer, task, optimizer, schedule)
    parts = task.parts()
    trainer.scaler = torch.amp.GradScaler(device.type, enabled=trainer.precision == "fp16")
    # Entering autocast costs as much as a small layer, so fp32 does without.
    autocast = partial(torch.autocast, device.type, AUTOCAST.get(trainer.precision))
    trainer.autocast = nullcontext if trainer.precision == "fp32" else autocast
    trainer.held = [] if isinstance(trainer.optimizer, torch.optim.LBFGS) else None  # batches that it looks at again
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    clipped = [[p for p in module.parameters() if id(p) in trained] for module in parts.values()]
    trainer.clipped = [parameters for parameters in clipped if parameters]
    trainer.quick_step = None
    if trainer.clip_value is None and trainer.non_finite != "skip":
        trainer.quick_step = quick(trainer.optimizer, trainer.clipped, trainer.grad_clip)
    trainer.averaging = None
    if trainer.average != "none":
        trainer.averaging = Averaging(task, trainer.average, trainer.average_decay, trainer.average_from)
    if trainer.recompute:
        recompute(task.loss)
    wrap(trainer)


def built(
    trainer: Any, task: Task, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> tuple[torch.optim.Optimizer, Schedule]:
    """Optimiser and schedule of a run. Called for its UserErrors alone, before anything is written, it does no harm.

    Raises UserError where the settings contradict one another or the device.
    """
    if distributed.world() > 1 and trainer.strategy == "single":
        raise UserError("trainer.strategy='single': torchrun started several processes; trainer=ddp uses them")
    if trainer.precision == "fp16" and next(task.loss.parameters()).device.type == "cpu":
        raise UserError("trainer.precision='fp16': needs a GPU; on a CPU fp32 and bf16 are allowed")
    for key, default in (("average_decay", DECAY), ("average_from", BEGIN)):
        value = getattr(trainer, key)
        if trainer.average == "none" and value != default:
            raise UserError(f"trainer.{key}={value}: nothing is averaged; trainer.average=ema or swa does that")
    if trainer.average == "swa" and trainer.average_decay != DECAY:
        told = "swa is a plain mean; trainer.average=ema has a decay"
        raise UserError(f"trainer.average_decay={trainer.average_decay}: {told}")
    if trainer.recompute:
        stacks(task.loss)
    iterations = trainer.max_iterations or task.iterations
    budget = max(iterations, task.iterations)  # one that max_iterations breaks off may be resumed
    for part, begin in optimizer.unfreeze.items():
        if begin >= budget:
            told = f"the run ends before, after {budget}; optimizer.freeze=[{part}] keeps it for good"
            raise UserError(f"optimizer.unfreeze={{{part}: {begin}}}: {told}")
    steps = iterations * -(-task.steps_per_iteration // trainer.accumulate)
    if trainer.accumulate > 1 and not getattr(task, "accumulates", True):
        told = f"trainer.accumulate={trainer.accumulate}: only 1 is allowed with algo.update=sequential"
        raise UserError(f"{told}, where a step must not span the turns of two agents")
    made = optimizer.build(task.parts())
    if isinstance(made, torch.optim.LBFGS) and (trainer.precision == "fp16" or trainer.non_finite == "skip"):
        raise UserError("optimizer.name='LBFGS': cannot go with trainer.precision=fp16 or trainer.non_finite=skip")
    return made, schedule.build(made, iterations, steps, trainer.mode or task.monitor[1])


def wrap(trainer: Any) -> None:
    """The loss as it is called: compiled, and with gradients averaged over the processes, where that is asked for."""
    # The raw module stays in task.loss, so that state dicts carry no prefix of the compiler's.
    trainer.loss = None
    loss = trainer.task.loss
    trainer.loss = distributed.wrap(torch.compile(loss) if trainer.compile else loss)
    trainer.captured = captured(trainer)


def unfreeze(trainer: Any) -> None:
    """Let those parts train from now on whose iteration has come (`optimizer.unfreeze`)."""
    if thaw(trainer.optimizer, trainer.iteration):
        wrap(trainer)  # DistributedDataParallel only knows the parameters that trained when it was built


def step(trainer: Any) -> None:
    """Clip the gradients and step with them; then the schedule and the average of the weights."""
    quick_step = None if trainer.scaler.is_enabled() else trainer.quick_step
    norm = quick_step and quick_step()
    if norm is None:
        norm = slow_step(trainer)
    trainer.norms += norm
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.schedule.step("step")
    if trainer.averaging is not None:
        trainer.averaging.update("ema", trainer.iteration / trainer.iterations)
    trainer.pending = 0
    trainer.steps += 1


def slow_step(trainer: Any) -> Tensor:
    """Clip and step by torch; the norm of the gradients, 0 where a step was left out."""
    trainer.scaler.unscale_(trainer.optimizer)
    norm = clip(trainer)
    finite = None
    if trainer.non_finite == "skip" or trainer.scaler.is_enabled():
        finite = torch.isfinite(norm)
        trainer.skipped, norm = trainer.skipped + ~finite, torch.where(finite, norm, 0)
    if trainer.held is not None:
        trainer.optimizer.step(closure(trainer))
        trainer.held.clear()
    elif trainer.non_finite == "skip" and not trainer.scaler.is_enabled():
        divergence.step_if_finite(trainer.optimizer, finite)
    else:
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
    return norm


def clip(trainer: Any) -> Tensor:
    """Clip each part's gradient; the norm of the whole before that, on the device."""
    norms = [clip_gradients(parameters, trainer.grad_clip, trainer.clip_value) for parameters in trainer.clipped]
    return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]


def closure(trainer: Any) -> Callable[[], Tensor]:
    """Loss and gradients of the batches of this step anew, for an optimiser that searches along a line."""

    def again() -> Tensor:
        trainer.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=trainer.device)
        for batch in trainer.held:
            with trainer.autocast():
                loss = trainer.loss(batch)["loss"] / len(trainer.held)
            loss.backward()
            total += loss.detach()
        clip(trainer)
        return total

    return again


def recompute(module: nn.Module) -> None:
    """Keep no activations inside of the stacks of layers below `module`: the backward pass computes them again.

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
