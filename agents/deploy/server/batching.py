"""Requests of a few milliseconds as one call of the networks; each gets what it would have got alone.

Shapes: B rows of one request, R rows of all requests of a batch, A agents, F features, D action dimensions, M memory.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from agents.deploy.server.networks import Networks
from agents.deploy.server.settings import Refused
from agents.models.hidden_state import forget
from agents.policies.policy import Policy


@dataclass
class Job:
    """One request's observations, checked: all tensors belong to groups of the policy and have B rows.

    observations: {group: float32 [B, A, F]}. memory: {group: float32 [B, A, M]}, of every group that remembers.
    masks: {group: bool [B, A, sum(nvec)]}; without one every choice is allowed. alive: {group: bool [B, A]}.
    seed: of the samples; None: fresh randomness. deterministic: the policy's mode instead of a sample.
    """

    observations: Mapping[str, Tensor]
    rows: int
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    alive: Mapping[str, Tensor] = field(default_factory=dict)
    deterministic: bool = True
    seed: int | None = None


@dataclass
class Acted:
    """Actions {group: [B, A, D]} in the environment's units, and memory after the step {group: [B, A, M]}."""

    actions: dict[str, Tensor]
    memory: dict[str, Tensor]


class Watches(Protocol):
    """What is called with every batch."""

    def batch(self, rows: int, jobs: int, seconds: float) -> None: ...


class Batcher:
    """Joins what arrives within `max_wait` of the first request, up to `max_batch` rows, and computes it.

    It belongs to one event loop and computes in it: a batch of a usual policy takes less time than handing it to a
    thread would. Requests that arrive meanwhile are the next batch.

    Rows do not see one another, so a result depends on the other requests by the rounding of matrix products only.
    Samples are drawn for every request from a generator of its own, in the order in which `Policy.act` draws them.

    Args:
        policy: on the CPU.
        networks: what computes it.
        max_batch: rows of a batch; a single request may hold as many.
        max_wait: seconds; None: every request by itself.
        watches: is called with every batch.
    """

    def __init__(
        self, policy: Policy, networks: Networks, max_batch: int, max_wait: float | None, watches: Watches
    ) -> None:
        self.policy, self.networks, self.watches = policy, networks, watches
        self.max_batch, self.max_wait = max_batch, max_wait
        self.waiting: list[tuple[Job, asyncio.Future[Acted]]] = []
        self.timer: asyncio.Handle | None = None
        self.fresh = torch.Generator()
        self.fresh.seed()

    async def act(self, job: Job) -> Acted:
        """The actions of one request. Raises Refused where its observations make the policy overflow."""
        if self.max_wait is None:
            return finite(self._compute([job])[0])
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Acted] = loop.create_future()
        self.waiting.append((job, future))
        if sum(each.rows for each, _ in self.waiting) >= self.max_batch:
            self._flush()
        elif self.timer is None:
            self.timer = loop.call_later(self.max_wait, self._flush)
        return finite(await future)

    def try_out(self, job: Job) -> None:
        """Compute a request that no client waits for, so that mistakes and slow first calls come before the first.

        Raises Refused where the result is not finite.
        """
        finite(self._compute([job])[0])

    def _flush(self) -> None:
        """Compute all that waits, in batches that are full or the last."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        waiting = [(job, future) for job, future in self.waiting if not future.cancelled()]
        self.waiting = []
        while waiting:
            count, rows = 1, waiting[0][0].rows
            while count < len(waiting) and rows + waiting[count][0].rows <= self.max_batch:
                rows += waiting[count][0].rows
                count += 1
            batch, waiting = waiting[:count], waiting[count:]
            try:
                results = self._compute([job for job, _ in batch])
            except Exception as error:  # of this batch alone: each of its requests gets it, and the server logs it
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), acted in zip(batch, results, strict=True):
                future.set_result(acted)

    @torch.no_grad()
    def _compute(self, jobs: list[Job]) -> list[Acted]:
        start = time.perf_counter()
        results = [Acted({}, {}) for _ in jobs]
        draws = [None if job.deterministic else self._generator(job.seed) for job in jobs]
        for name in self.policy.spec.groups:
            mine = [i for i, job in enumerate(jobs) if name in job.observations]
            if mine:
                self._group(name, [jobs[i] for i in mine], [draws[i] for i in mine], [results[i] for i in mine])
        self.watches.batch(sum(job.rows for job in jobs), len(jobs), time.perf_counter() - start)
        return results

    def _generator(self, seed: int | None) -> torch.Generator:
        return self.fresh if seed is None else torch.Generator().manual_seed(seed)

    def _group(self, name: str, jobs: list[Job], draws: list[torch.Generator | None], results: list[Acted]) -> None:
        """Add one group's actions to the results of the jobs that have it."""
        actor, group = self.policy.actors[name], self.policy.spec.groups[name]
        head, rows = actor.head, [job.rows for job in jobs]
        inputs = [joined([job.observations[name] for job in jobs])]
        if actor.memory_shape is not None:
            inputs.append(joined([job.memory[name] for job in jobs]))
        if "action" in group.masks:
            shape = group.n_agents, sum(group.action.nvec)
            allowed = [job.masks.get(name) for job in jobs]
            masks = [torch.ones(job.rows, *shape, dtype=torch.bool) if m is None else m
                     for job, m in zip(jobs, allowed, strict=True)]  # fmt: skip
            inputs.append(joined(masks))
        params, *after = self.networks(name, *inputs)
        if not any(draws):
            chosen = head.mode(params)
        else:
            shape = group.n_agents, head.noise_size
            noise = [torch.zeros(job.rows, *shape) if draw is None else head.noise((job.rows, shape[0]), "cpu", draw)
                     for job, draw in zip(jobs, draws, strict=True)]  # fmt: skip
            chosen = head.draw(params, joined(noise))
            if not all(draws):
                sampled = torch.tensor([draw is not None for draw in draws]).repeat_interleave(torch.tensor(rows))
                chosen = torch.where(sampled.view(-1, 1, 1), chosen, head.mode(params))
        actions = head.to_env(chosen).split(rows)
        memories = after[0].split(rows) if after else [None] * len(jobs)
        for job, result, action, memory in zip(jobs, results, actions, memories, strict=True):
            result.actions[name] = action
            if memory is not None:
                dead = actor.ends and name in job.alive
                result.memory[name] = forget(memory, ~job.alive[name]) if dead else memory


def joined(parts: list[Tensor]) -> Tensor:
    """Rows of several requests one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def finite(acted: Acted) -> Acted:
    """`acted`, whose numbers are all finite. Raises Refused where they are not."""
    for name, value in (*acted.actions.items(), *acted.memory.items()):
        if value.is_floating_point() and not np.isfinite(value.numpy()).all():
            raise Refused(400, f"observations: numbers of {name} are so large that the policy's result is not finite")
    return acted
