"""Replayed sequences: a replay buffer that also keeps what networks remembered, and minibatches of whole sequences.

Shapes: T steps of a rollout, E environments, A agents in a group, F features, M numbers of memory, K marks of a
rollout, b steps of burn-in, L steps of a sequence that are learnt from, n steps summed in targets, B sequences of a
minibatch, N = L * B rows, step by step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from agents.collection.replay.buffer import ReplayBuffer
from agents.collection.replay.memory import DeviceMemory, MappedMemory
from agents.collection.rollout_buffer import RolloutBuffer
from agents.models.hidden_state import Memories, forget
from agents.models.replayed_sequences import Memory
from marl.core.errors import UserError


@dataclass(frozen=True)
class Sequences:
    """How steps are replayed to networks with a memory: b steps that only refresh it, then L that are learnt from.

    stored: a sequence begins at a mark with what the network remembered there when it played. zeros: it begins at any
    step, with nothing (both in Kapturowski et al. 2019, section 3).

    Args:
        length: L.
        burn_in: b.
        memory: see above.
    """

    length: int
    burn_in: int
    memory: Memory

    @classmethod
    def of(cls, loss: nn.Module, algo: Any) -> "Sequences | None":
        """For the networks of a loss, by the settings of a `Replayed` algorithm; None where none of them has a memory.

        Raises:
            UserError: settings of sequences where no network has a memory, prioritised draws, minibatches smaller than
                a sequence, or a loss that trains none.
        """
        settings = {"chunk_length": algo.chunk_length, "burn_in": algo.burn_in, "memory": algo.memory}
        critics = getattr(loss, "q_critics", {})
        if not any(module.memory_shape for module in (*loss.actors.values(), *critics.values())):
            defaults = {each.name: each.default for each in fields(algo)}
            for key, value in settings.items():
                if value != defaults[key]:
                    raise UserError(f"algo.{key}={value}: needs a network with a memory, such as network=gru")
            return None
        if not algo.recurrent:
            name = type(algo).__name__
            raise UserError(f"network: has a memory, which {name}'s loss does not train; use one without, network=mlp")
        if algo.priority:
            raise UserError(
                f"algo.priority={algo.priority}: draws steps, and networks with a memory learn from sequences; 0 is "
                "allowed here"
            )
        if algo.minibatch_size < algo.chunk_length:
            raise UserError(
                f"algo.minibatch_size={algo.minibatch_size}: smaller than one sequence of algo.chunk_length="
                f"{algo.chunk_length} steps; at least that is allowed"
            )
        return cls(algo.chunk_length, algo.burn_in, algo.memory)

    def marks(self, steps: int) -> dict[int, list[int]]:
        """{time in a rollout of T steps: [number of the mark]}, as `RolloutBuffer` takes it; every L steps."""
        if self.memory == "zeros":
            return {}
        return {t: [k] for k, t in enumerate(range(0, steps, self.length))}


class SequenceBuffer(ReplayBuffer):
    """A ring of steps, with what networks remembered at its marks.

    Args:
        rollout: as for `ReplayBuffer`; its marks are those of `sequences`.
        frames: capacity, as for `ReplayBuffer`.
        sequences: what is drawn.
        memory: as for `ReplayBuffer`; what networks remembered stays on the rollout's device.

    Attributes:
        memories: {"GROUP/actor_memory" | "GROUP/critic_memory": float32 [slots, E, *memory_shape]}, rings of the marks;
            no slots where nothing is stored.

    Raises:
        UserError: a sequence and a rollout are more than the buffer holds.
    """

    def __init__(
        self,
        rollout: RolloutBuffer,
        frames: int,
        sequences: Sequences,
        memory: DeviceMemory | MappedMemory | None = None,
    ) -> None:
        super().__init__(rollout, frames, memory)
        self.sequences, self.marks = sequences, len(sequences.marks(rollout.steps))
        self.memories = {
            name: memory.new_zeros(self.capacity // rollout.steps * self.marks, *memory.shape[1:])
            for name, memory in _memories(rollout).items()
        }
        span = sequences.burn_in + sequences.length
        if span > self.capacity - rollout.steps:
            least = (-(-span // rollout.steps) + 1) * self.n_envs * rollout.steps
            raise UserError(
                f"algo.buffer_frames={frames}: must hold a rollout and algo.burn_in + algo.chunk_length = {span} steps "
                f"of every environment, {least} frames"
            )

    def _sources(self, rollout: RolloutBuffer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        observed, steps = super()._sources(rollout)
        forgotten = {f"{name}/forgotten": starts[1:] for name, starts in rollout.agent_starts.items()}
        return observed, {**steps, "forgotten": rollout.starts[1:], **forgotten}  # after a step

    # ---- rollout by rollout --------------------------------------------------------------------------------------

    def add(self, rollout: RolloutBuffer, truncated: Tensor) -> None:
        """As `ReplayBuffer.add`, with the memories at the rollout's marks."""
        self._remember(self.added // self.rollout_steps, _memories(rollout))
        super().add(rollout, truncated)

    def _place(self, number: int) -> slice:
        """Where the memories of a rollout lie."""
        first = number * self.rollout_steps % self.capacity // self.rollout_steps * self.marks
        return slice(first, first + self.marks)

    def _remember(self, number: int, memories: Mapping[str, Tensor]) -> None:
        for name, memory in self.memories.items():
            memory[self._place(number)].copy_(memories[name])

    def rollout(self, number: int) -> dict[str, Tensor]:
        """As `ReplayBuffer.rollout`, with "memory/NAME" [K, E, *memory_shape]."""
        place = self._place(number)
        kept = {f"memory/{name}": memory[place] for name, memory in self.memories.items() if self.marks}
        return {**super().rollout(number), **kept}

    def restore(self, first: int, rollouts: Iterable[Mapping[str, Tensor]], following: Mapping[str, Tensor]) -> None:
        """As `ReplayBuffer.restore`."""
        super().restore(first, self._taken(first, rollouts), following)

    def _taken(self, first: int, rollouts: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The rollouts without their memories, which are put in their places."""
        for number, rollout in enumerate(rollouts, first):
            if self.marks:
                self._remember(number, {name: rollout[f"memory/{name}"] for name in self.memories})
            yield {key: value for key, value in rollout.items() if not key.startswith("memory/")}

    # ---- minibatches ---------------------------------------------------------------------------------------------

    @property
    def can_be_drawn(self) -> bool:
        """Whether there is a whole sequence."""
        return len(self.starts()) > 0

    def starts(self) -> range:
        """Numbers of the marks at which a whole sequence that is held begins, counted from the first ever; with zeros
        those of the steps."""
        last = self.added - self.sequences.burn_in - self.sequences.length
        return range(self._marks_before(self.added - self.steps), self._marks_before(last + 1))

    def _marks_before(self, step: int) -> int:
        if not self.marks:
            return max(step, 0)
        rollout, t = divmod(max(step, 0), self.rollout_steps)
        return rollout * self.marks + -(-t // self.sequences.length)

    def sample(self, size: int, generator: torch.Generator, n_step: int = 1, gamma: float = 1.0) -> dict:
        """A minibatch of sequences, uniform over those that are held whole, with replacement.

        Args:
            size: frames; B is size // L.
            generator, n_step, gamma: as for `ReplayBuffer.sample`.

        Returns:
            As `take_sequences`.
        """
        starts, E = self.starts(), self.n_envs
        draw = torch.randint(len(starts) * E, (size // self.sequences.length,), generator=generator, device=self.device)
        return self.take_sequences(starts.start + draw // E, draw % E, n_step, gamma)

    def take_sequences(self, number: Tensor, env: Tensor, n_step: int = 1, gamma: float = 1.0) -> dict:
        """The minibatch of sequences that begin at these marks (with zeros: steps), int64 [B], of environments [B].

        Returns:
            As `ReplayBuffer.take` the N steps that are learnt from, the first of all sequences first. For each group
            with networks that have a memory also "sequence": {observation float32 [b + L + n - 1, B, A, F], start bool
            [..., B] of the same steps (where a memory begins again; where agents end each on its own also agent_start
            [..., B, A]), actor_memory, critic_memory float32 [B, *memory_shape] before the first of them, with a
            critic's also action [..., B, A, D] and state [..., B, S], and with n > 1 last int64 [N]: the place in
            [L + n - 1, B], flat, of the last step that is summed}.
        """
        E, b, L = self.n_envs, self.sequences.burn_in, self.sequences.length
        begin = number if not self.marks else number // self.marks * self.rollout_steps + number % self.marks * L
        steps = begin + torch.arange(b + L + n_step - 1, device=self.device).unsqueeze(-1)  # [.., B]
        learnt = steps[b : b + L].flatten()
        batch = self.take(learnt, env.repeat(L), n_step, gamma)
        steps = steps.clamp(max=self.added - 1)  # what is newer is summed in no target
        at = (steps % self.capacity * E + env).to(self.memory.device)
        last = self._last(learnt, env, n_step) if n_step > 1 else None
        for name, memory in self.memories.items():
            group, _, kind = name.rpartition("/")
            if "sequence" not in batch[group]:
                sequence = batch[group]["sequence"] = self._sequence(group, at)
                if last is not None:
                    sequence["last"] = last
            if self.marks:
                slot = number % len(memory)
                sequence[kind] = memory.flatten(0, 1).index_select(0, slot * E + env)
            else:
                sequence[kind] = memory.new_zeros(len(env), *memory.shape[2:])
        return batch

    def _sequence(self, group: str, at: Tensor) -> dict[str, Tensor]:
        """What networks of a group read along the steps `at`, int64 [.., B]."""
        sequence = {"observation": self._along(f"{group}/observation", at), "start": self._start("forgotten", at)}
        if f"{group}/forgotten" in self.sources:
            sequence["agent_start"] = self._start(f"{group}/forgotten", at)
        if f"{group}/critic_memory" in self.memories:
            sequence["action"] = self._along(f"{group}/action", at)
            if "state" in self.observed:
                sequence["state"] = self._along("state", at)
        return sequence

    def _start(self, name: str, at: Tensor) -> Tensor:
        """Where what was remembered is forgotten before a step; what a sequence begins with tells it of the first."""
        forgotten = self._along(name, at)
        start = torch.zeros_like(forgotten)
        start[1:] = forgotten[:-1]
        return start

    def _along(self, name: str, at: Tensor) -> Tensor:
        return self.at(name, at.flatten()).unflatten(0, at.shape).to(self.device)

    def _last(self, step: Tensor, env: Tensor, n_step: int) -> Tensor:
        """Where the sums of `take` end, as places in the steps that are gone through after the burn-in."""
        E, B, where = self.n_envs, len(env), self.memory.device
        place = torch.arange(len(step), device=where)
        step, env = step.to(where), env.repeat(len(step) // B).to(where)
        going = ~self.at("done", step % self.capacity * E + env)
        for k in range(1, n_step):
            going = going & (step + k < self.added)
            place = place + B * going
            going = going & ~self.at("done", (step + k) % self.capacity * E + env)
        return place.to(self.device)


def _memories(rollout: RolloutBuffer) -> dict[str, Tensor]:
    """What networks remembered at the marks of a rollout, group by group: {"GROUP/actor_memory": [K, E, ...], ...}."""
    kinds = rollout.memories_at_marks.items()
    named = {f"{name}/{kind}_memory": memory for kind, memories in kinds for name, memory in memories.items()}
    return dict(sorted(named.items()))


@torch.no_grad()
def recall(
    critics: Mapping[str, nn.Module], rollout: RolloutBuffer, memories: Memories, unit: Callable[[Tensor], Tensor]
) -> None:
    """Let critics of actions go through a rollout that was played, and keep what they remember at its marks.

    Args:
        critics: by group, those with a memory; see `agents.models.action_values.q_critic`.
        rollout: as collected.
        memories: of the critics before its first step; they are left as they are before the next one's.
        unit: raw actions to the unit that critics read.
    """
    if not rollout.marks:
        return
    for name, critic in critics.items():
        starts = rollout.agent_starts[name] if critic.per_agent else rollout.starts
        action = unit(rollout.action[name])
        for t in range(rollout.steps):
            rollout.write_memory(t, "critic", name, memories.now[name])
            step = slice(t, t + 1)
            state = None if rollout.states is None else rollout.states[step]
            _, after = critic.unroll(rollout.observed[name][step], action[step], state, memories.now[name])
            memories.set(name, forget(after[0], starts[t + 1]))
