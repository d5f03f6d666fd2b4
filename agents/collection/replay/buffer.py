"""Replay: the latest steps of all environments, kept for learning again and again, and minibatches drawn from them.

Shapes: C steps of capacity per environment, T steps of a rollout, E environments, A agents in a group, F features, D
action dimensions, S global state features, B rows of a minibatch, N ends of episodes that were cut off.
"""

from collections import deque
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from agents.collection.replay.growing_ring import enlarged, renumber
from agents.collection.replay.memory import DeviceMemory, MappedMemory
from agents.collection.replay.n_step import n_step_sums
from agents.collection.rollout_buffer import RolloutBuffer, to_device
from agents.fused_ops.gather import Gather


class ReplayBuffer:
    """A ring of steps [C, E]. Observations are kept once: what follows a step is the next step's.

    Where an episode was cut off (truncated) what really followed is kept apart, so that it can be bootstrapped from.
    Where it terminated nothing that follows is read.

    Args:
        rollout: whose rollouts are added; it says what there is to keep, and where.
        frames: capacity in frames of all environments; rounded down to whole rollouts, at least two.
        memory: where the steps lie; by default on the rollout's device. Minibatches are on that in any case.

    Attributes:
        added: steps of every environment that were ever added.
        device: of the minibatches.
        rows: {name: [C + 1, E, ...]}; names are "GROUP/observation", "GROUP/action", "state", "terminated" and so on.
        final: {name: [M, ...]} what followed the steps that were cut off; a ring too, as large as it had to be.
        final_index: int32 [C + 1, E], where in `final` that is; -1 where a step was not cut off.
    """

    def __init__(self, rollout: RolloutBuffer, frames: int, memory: DeviceMemory | MappedMemory | None = None) -> None:
        E = rollout.done.shape[1]
        self.n_envs, self.rollout_steps, self.device = E, rollout.steps, rollout.done.device
        self.capacity = max(2, frames // (rollout.steps * E)) * rollout.steps
        self.observed, self.sources = self._sources(rollout)
        self.memory = memory or DeviceMemory(self.device)
        self.rows: dict[str, Tensor] = {}
        self.final: dict[str, Tensor] = {
            name: torch.zeros(0, *following.shape[2:], dtype=following.dtype, device=self.memory.device)
            for name, following in self._next(rollout).items()
        }
        self.masks = [name for name in self.observed if name not in self.final]
        self._selections: dict[bool, tuple] = {}  # by whether rewards are summed
        self.clear()
        if isinstance(self.memory, DeviceMemory):
            self.allocate()

    def allocate(self) -> None:
        """Reserve the memory, if that was not done: files at the latest when steps come. Raises as `MappedMemory`."""
        if self.rows:
            return
        size = self.capacity + 1  # what follows the newest step
        sources = {**self.observed, **self.sources}
        shapes = {name: ((size, *source.shape[1:]), source.dtype) for name, source in sources.items()}
        self.rows = self.memory.zeros({**shapes, "": ((size, self.n_envs), torch.int32)})
        self.final_index = self.rows.pop("").fill_(-1)
        self._flat_finals = self.final_index.view(-1)

    def _sources(self, rollout: RolloutBuffer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a policy sees, [T + 1, E, ...], and what belongs to a step, [T, E, ...]."""
        observed: dict[str, Tensor] = {}
        done = rollout.done
        for ends in rollout.ends.values():  # the sum over several steps stops where anyone's episode ends
            done = done | ends["done"].any(-1)
        steps = {"terminated": rollout.terminated, "truncated": rollout.truncated, "done": done}
        for name in rollout.action:
            if name in rollout.ends:
                steps |= {f"{name}/{kind}": rollout.ends[name][kind] for kind in ("terminated", "truncated")}
            observed[f"{name}/observation"] = rollout.observed[name]
            kinds = {"action": "mask"}  # as the losses call the mask of actions
            observed |= {f"{name}/{kinds.get(kind, kind)}": mask for kind, mask in rollout.masks[name].items()}
            steps |= {f"{name}/action": rollout.action[name], f"{name}/reward": rollout.reward[name]}
        if rollout.states is not None:
            observed["state"] = rollout.states
        return observed, steps

    def _next(self, rollout: RolloutBuffer) -> dict[str, Tensor]:
        final = {f"{name}/observation": rollout.next[name] for name in rollout.action}
        final |= {f"{name}/mask": rollout.next_masks[name] for name in rollout.action if name in rollout.next_masks}
        return final if rollout.states is None else {**final, "state": rollout.next_states}

    @property
    def steps(self) -> int:
        """Steps held of every environment: what follows the newest lies where the oldest's observation was."""
        return min(self.added, self.capacity - 1)

    @property
    def frames(self) -> int:
        """Frames held, of all environments together."""
        return self.steps * self.n_envs

    @property
    def row_bytes(self) -> int:
        """Bytes of a minibatch's row: what was seen, the same of what followed, and what belongs to the step."""
        read = [value for name, value in self.sources.items() if name.endswith(("/action", "/reward", "terminated"))]
        sizes = [value[0, 0].numel() * value.element_size() for value in (*self.observed.values(),) * 2 + (*read,)]
        return sum(sizes) + torch.float32.itemsize  # the discount

    @property
    def can_be_drawn(self) -> bool:
        """Whether there is anything to draw."""
        return self.added > 0

    def clear(self) -> None:
        """Forget all steps."""
        self.added = 0
        self.finals = 0  # ever kept
        self.final_counts: deque[int] = deque(maxlen=self.capacity // self.rollout_steps)  # of the rollouts held

    def add(self, rollout: RolloutBuffer, truncated: Tensor) -> None:
        """Keep a rollout in the place of the oldest.

        Args:
            rollout: as collected.
            truncated: int64 [N], t * E + e, where episodes were cut off, an agent's own or the environment's
                (`RolloutBuffer.cut_frames`).
        """
        where = self.memory.device
        finals = {name: source.flatten(0, 1)[truncated].to(where) for name, source in self._next(rollout).items()}
        self._write(*self._sources(rollout), truncated.to(where), finals)

    def _write(
        self,
        observed: Mapping[str, Tensor],
        steps: Mapping[str, Tensor],
        truncated: Tensor,
        finals: Mapping[str, Tensor],
    ) -> None:
        """Keep the next rollout: what was seen [T or T + 1, E, ...], steps [T, E, ...], ends [N], finals [N, ...]."""
        self.allocate()
        T, start = self.rollout_steps, self.added % self.capacity
        for name, source in observed.items():
            self.rows[name][start : start + len(source)].copy_(source)
            if start == 0:  # it also follows the last row
                self.rows[name][self.capacity].copy_(source[0])
        for name, source in steps.items():
            self.rows[name][start : start + T].copy_(source)
        index = self.final_index[start : start + T]
        index.fill_(-1)
        self._keep_finals(truncated, finals, index)
        self.added += T

    def _keep_finals(self, truncated: Tensor, finals: Mapping[str, Tensor], index: Tensor) -> None:
        count = len(truncated)
        self.final_counts.append(count)  # those of the rollout that makes room are not counted any more
        if not count:
            return
        needed, size = sum(self.final_counts), len(next(iter(self.final.values())))
        if needed > size:
            size = max(needed + needed // 8, 64)
            self._grow(needed - count, size)
        slots = torch.arange(self.finals, self.finals + count, device=self.memory.device) % size
        for name, source in finals.items():
            self.final[name].index_copy_(0, slots, source)
        index.view(-1).index_copy_(0, truncated, slots.to(index.dtype))
        self.finals += count

    def _grow(self, live: int, size: int) -> None:
        """Make `final` as large as `size`; the newest `live` are kept."""
        before = len(next(iter(self.final.values())))
        numbers = torch.arange(self.finals - live, self.finals, device=self.memory.device)
        self.final = enlarged(self.final, numbers, size, self.memory)
        if live:
            renumber(self.final_index, numbers, before, size)

    # ---- rollout by rollout, for checkpoints ---------------------------------------------------------------------

    @property
    def held(self) -> range:
        """The rollouts held, counted from the first ever added; of the oldest the first step may be gone."""
        return range(self.added // self.rollout_steps - len(self.final_counts), self.added // self.rollout_steps)

    def rollout(self, number: int) -> dict[str, Tensor]:
        """One of the rollouts held.

        Returns:
            {"rows/NAME": [T, E, ...], "final/NAME": [N, ...], "truncated": int64 [N], t * E + e}; the names are those
            of `rows` and `final`.
        """
        start = number * self.rollout_steps % self.capacity
        place = slice(start, start + self.rollout_steps)
        index = self.final_index[place].flatten()
        truncated = (index >= 0).nonzero().squeeze(-1)
        kept = {f"final/{name}": value.index_select(0, index[truncated]) for name, value in self.final.items()}
        return {**{f"rows/{name}": value[place] for name, value in self.rows.items()}, **kept, "truncated": truncated}

    def following(self) -> dict[str, Tensor]:
        """What follows the newest step, {name: [E, ...]}, a copy."""
        self.allocate()
        return {name: self.rows[name][self._end].clone() for name in self.observed}

    @property
    def _end(self) -> int:
        """The row of what follows the newest step."""
        return (self.added - 1) % self.capacity + 1

    def restore(self, first: int, rollouts: Iterable[Mapping[str, Tensor]], following: Mapping[str, Tensor]) -> None:
        """Hold what another buffer of the same shapes held.

        Args:
            first: number of the oldest rollout.
            rollouts: from the oldest on, each as `rollout` gives it.
            following: as `following` gives it.
        """
        self.allocate()
        self.clear()
        self.added = first * self.rollout_steps
        for rollout in rollouts:
            parts: dict[str, dict[str, Tensor]] = {"rows": {}, "final": {}, "truncated": {}}
            for key, value in rollout.items():
                kind, _, name = key.partition("/")
                parts[kind][name] = value.to(self.memory.device)
            for name, kept in self.final.items():
                if name not in parts["final"]:  # of a run that did not keep what was allowed: all counted as such
                    parts["final"][name] = kept.new_ones(len(parts["truncated"][""]), *kept.shape[1:])
            observed = {name: parts["rows"][name] for name in self.observed}
            steps = {name: parts["rows"][name] for name in self.sources}
            self._write(observed, steps, parts["truncated"][""], parts["final"])
        for name, value in following.items():
            self.rows[name][self._end].copy_(value)

    def sample(
        self, size: int, generator: torch.Generator, n_step: int = 1, gamma: float = 1.0, minibatches: int = 1
    ) -> dict:
        """A minibatch of steps, uniform over those held, with replacement.

        Args:
            size: B.
            generator: of the draw.
            n_step: rewards of up to so many steps are summed before what follows is valued (Watkins 1989); an episode's
                end, or the newest step, ends the sum earlier.
            gamma: discount per step.
            minibatches: so many are drawn one after the other, and lie so in the result's rows, [minibatches * B].

        Returns:
            {group: {observation, next_observation float32 [B, A, F], action [B, A, D], reward float32 [B, A], and
            where there are such masks mask, next_mask bool [B, A, K], alive, next_alive bool [B, A], and where agents
            end each on its own terminated bool [B, A]}, state, next_state float32 [B, S], terminated bool [B], discount
            float32 [B]: gamma ** the steps summed}.
        """
        E, oldest = self.n_envs, self.added - self.steps
        draws = [
            torch.randint(self.steps * E, (size,), generator=generator, device=self.device) for _ in range(minibatches)
        ]
        draw = draws[0] if minibatches == 1 else torch.cat(draws)
        if n_step == 1:
            at = draw.add_(oldest * E).remainder_(self.capacity * E).to(self.memory.device)
            return self._frames(at, torch.full(at.shape, gamma, device=at.device))
        return self.take(oldest + draw // E, draw % E, n_step, gamma)  # absolute numbers of steps

    def take(self, step: Tensor, env: Tensor, n_step: int = 1, gamma: float = 1.0) -> dict:
        """The minibatch of these steps, int64 [B] counted from the first ever added, of environments int64 [B]."""
        step, env = step.to(self.memory.device), env.to(self.memory.device)
        at = step % self.capacity * self.n_envs + env
        gammas = torch.full(step.shape, gamma, device=step.device)
        return self._frames(at, gammas, n_step_sums(self, step, env, at, n_step, gammas) if n_step > 1 else None)

    def _frames(self, at: Tensor, gamma: Tensor, sums: tuple[dict[str, Tensor], Tensor, Tensor] | None = None) -> dict:
        """The minibatch of frames that lie `at`, int64 [B], slot * E + environment; sums: as of `n_step_sums`."""
        rewards, last, discount = sums or ({}, at, gamma)
        after = last + self.n_envs  # row C follows row C - 1, and holds what row 0 begins with
        batch: dict = {"discount": discount}
        names, select = self._selection(sums is not None)
        selected = select([at, last, after], self._flat_finals.index_select(0, last))
        for (prefix, name), value in zip(names, selected, strict=True):
            _put(batch, name, value, prefix)
        for name, value in rewards.items():
            _put(batch, name, value)
        for name in self.masks:
            _put(batch, name, self._mask_after(name, after, last), "next_")
        return batch if at.device == self.device else to_device(batch, self.device)

    def _selection(self, sums: bool) -> tuple[list[tuple[str, str]], Gather]:
        """What is read of a step as it is: (prefix in the minibatch, name) each, and what selects it."""
        kept = tuple(self.final.values())
        have = self._selections.get(sums)
        if have is None or any(a is not b for a, b in zip(have[0], kept, strict=True)):  # these have grown
            own = [n for n in self.sources if n.endswith("/action") or n.endswith("/reward") and not sums]
            ends = [n for n in self.sources if n.endswith("terminated")]
            names = [("", n) for n in (*self.observed, *own, *ends)] + [("next_", n) for n in self.final]
            which = [0] * (len(self.observed) + len(own)) + [1] * len(ends) + [2] * len(self.final)
            others = [self.final[n] if prefix else None for prefix, n in names]
            have = kept, names, Gather([self.rows[n].flatten(0, 1) for _, n in names], which, others)
            self._selections[sums] = have
        return have[1:]

    def at(self, name: str, at: Tensor) -> Tensor:
        """Rows of `rows[NAME]`, [B, ...], by int64 [B], slot * E + environment."""
        return self.rows[name].flatten(0, 1).index_select(0, at)

    def _mask_after(self, name: str, after: Tensor, last: Tensor) -> Tensor:
        """A mask of what the policy sees: who was cut off lives there and may do anything, who was dead stays so."""
        value = self.at(name, after)
        group, _, kind = name.rpartition("/")
        own, cut = f"{group}/truncated", self.at("truncated", last).unsqueeze(-1)
        if own in self.sources:
            cut = cut | self.at(own, last)
        cut = cut.view(*cut.shape, *[1] * (value.dim() - cut.dim()))
        return torch.where(cut, self.at(name, last) if kind == "alive" else True, value)


def _put(batch: dict, name: str, value: Tensor, prefix: str = "") -> None:
    group, _, key = name.rpartition("/")
    (batch.setdefault(group, {}) if group else batch)[prefix + key] = value
