"""Several processes, started by torchrun: one run whose gradients, statistics and decisions are everyone's.

Every function does nothing, at no cost, where there is one process only.
"""

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from marl.core.errors import LostProcess, UserError
from marl.core.imports import resolve

SILENCE = timedelta(seconds=50)  # a process that does not answer for so long is lost
STARTING = timedelta(minutes=5)  # for all to begin; imports may take long on a busy machine
CAPTURABLE = {"nccl"}  # what may carry tensors in a CUDA graph; gloo's exchanges are the host's
LOST = ("gloo", "Connection", "connection", "Timed out", "timed out", "NCCL", "TCPStore", "peer")


def rank() -> int:
    """This process's number, 0 … world() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def main() -> bool:
    """Whether this is the process that writes logs and checkpoints and talks to the terminal."""
    return rank() == 0


def start() -> None:
    """Join the others if torchrun started this process as one of several: gloo on CPUs, nccl between GPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # torchrun's own store outlives a restart: without a prefix the addresses of dead processes are found in it.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, count, number == 0 and not shared, STARTING)
    store = dist.PrefixStore(_meet(store, number, count), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=SILENCE)


def _meet(store: dist.Store, number: int, count: int) -> str:
    """A name for this attempt that all processes now alive share: process 0 makes it, and answers those who ask."""
    name = uuid.uuid4().hex
    if number:
        store.set(f"hello/{number}", name)
        answer = store.get(f"answer/{name}").decode()  # waits; only a living process 0 can know the question
        store.add(f"met/{answer}", 1)
        return answer
    until = time.monotonic() + STARTING.total_seconds()
    while store.add(f"met/{name}", 0) < count - 1:
        for other in range(1, count):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
        if time.monotonic() > until:
            raise LostProcess(f"not all of {count} processes have started within {STARTING}")
        time.sleep(0.02)
    return name


def stop() -> None:
    """Leave together, after all have come to the end."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun or Slurm started this run again, so that it goes on where it stopped."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def stream(purpose: str) -> str:
    """`purpose` of a random stream, made this process's own; the first process keeps the name."""
    return f"{purpose}/process {rank()}" if rank() else purpose


def wrap(loss: nn.Module) -> nn.Module:
    """`loss` with gradients averaged over the processes.

    One that trains some of its parameters by some minibatches only says so: `trains_in_turns = True`.
    """
    if world() == 1:
        return loss
    return nn.parallel.DistributedDataParallel(loss, find_unused_parameters=getattr(loss, "trains_in_turns", False))


def capturable(device: torch.device) -> bool:
    """Whether `average_` and `share_` of tensors on a device can be captured in a CUDA graph."""
    if world() == 1:
        return False
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    return device.type == "cuda" and backends.get(device.type) in CAPTURABLE


@torch.no_grad()
def average_(tensors: Sequence[Tensor]) -> None:
    """Put the mean over the processes in the place of each tensor, by one exchange; divided first, then summed."""
    if world() > 1:
        flat = torch.cat([value.flatten() for value in tensors]) / world()
        dist.all_reduce(flat)
        _put_back(tensors, flat)


@torch.no_grad()
def share_(tensors: Sequence[Tensor]) -> None:
    """Put the first process's numbers in the place of each tensor, by one exchange for each dtype."""
    for dtype in dict.fromkeys(value.dtype for value in tensors) if world() > 1 else ():
        same = [value for value in tensors if value.dtype == dtype]
        flat = torch.cat([value.flatten() for value in same])
        dist.broadcast(flat, 0)
        _put_back(same, flat)


def _put_back(tensors: Sequence[Tensor], flat: Tensor) -> None:
    parts = flat.split([value.numel() for value in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(value) for part, value in zip(parts, tensors, strict=True)])


def mean(values: Tensor) -> Tensor:
    """Mean of `values` over the processes."""
    return total(values) / world() if world() > 1 else values


def total(values: Tensor) -> Tensor:
    """Sum of `values` over the processes."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def largest(value: int) -> int:
    """The largest `value` of all processes."""
    if world() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def agree(value: Any) -> Any:
    """The first process's `value`, in every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gather(value: Any) -> list:
    """The `value` of all processes, in the first one; in the others only their own."""
    if world() == 1:
        return [value]
    box = [None] * world() if main() else None
    dist.gather_object(value, box)
    return box or [value]


def share(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with this process's part of the work: environments, frames and minibatches of a rollout divided.

    Raises UserError where a number cannot be divided evenly.
    """
    config, count = dict(config), world()
    if count == 1:
        return config
    algo = config.get("algo")
    divided = resolve(algo["_target_"], "algo._target_").divided if isinstance(algo, Mapping) else ()
    for group, key in (("env", "num_envs"), *(("algo", name) for name in divided), ("task", "batch_size")):
        node = config.get(group)
        if not isinstance(node, Mapping) or node.get(key) is None:  # a minibatch of null is the whole rollout
            continue
        if node[key] % count:
            raise UserError(f"{group}.{key}={node[key]}: must be a multiple of {count}, the number of processes")
        if group != "task":  # a loader of rows divides each batch itself
            config[group] = {**node, key: node[key] // count}
    return config


@contextmanager
def watched() -> Iterator[None]:
    """Turn the complaints of a broken connection into LostProcess, one sentence."""
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and any(word in str(error) for word in LOST):
            message = " ".join(str(error).split())[:200]
            raise LostProcess(
                f"process {rank()} of {world()}: another process died or does not answer ({message}); "
                f"resume=RUN_DIR, or torchrun --max-restarts=N by itself, continues from the last checkpoint"
            ) from error
        raise
