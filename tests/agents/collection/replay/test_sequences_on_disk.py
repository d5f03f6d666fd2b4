"""Sequences that lie on disk, of a run on another device: the device's tensors are shapes only, so no GPU is needed."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from agents.collection.replay import buffer
from agents.collection.replay.memory import DeviceMemory
from agents.collection.replay.sequences import SequenceBuffer, Sequences
from agents.collection.rollout_buffer import RolloutBuffer
from agents.fused_ops.gather import Gather
from tests.agents.collection.replay.test_replay_buffer import E, T, spec

ELSEWHERE = torch.device("meta")


class ByTorch(Gather):
    """Without the compiled function, which reads memory: here there is none."""

    def __init__(self, tables, which, others):
        self.tables, self.which = tables, which
        self.others = [other if other is not None and len(other) else None for other in others]

    def __call__(self, indices, number):
        return self.by_torch(indices, number)


@pytest.mark.parametrize("memory", ["stored", "zeros"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_minibatch_is_on_the_runs_device(memory, n_step, monkeypatch) -> None:
    monkeypatch.setattr(buffer, "Gather", ByTorch)
    head = SimpleNamespace(n_features=3, raw_size=1, raw_dtype=torch.int64)
    sequences = Sequences(length=2, burn_in=1, memory=memory)
    with FakeTensorMode():
        actor = SimpleNamespace(head=head, memory_shape=(2, 5), ends=False)
        rollout = RolloutBuffer(spec(), E, ELSEWHERE, T, {"team": actor}, marks=sequences.marks(T))
        rollout.memories_at_marks.setdefault("actor", {"team": torch.zeros(0, E, 2, 5, device=ELSEWHERE)})
        held = SequenceBuffer(rollout, 5 * T * E, sequences, DeviceMemory("cpu"))
        for _ in range(2):
            held.add(rollout, torch.zeros(0, dtype=torch.int64, device=ELSEWHERE))
        marks = torch.zeros(6, dtype=torch.int64, device=ELSEWHERE)
        batch = held.take_sequences(marks, marks, n_step, 0.9)
        sequence = batch["team"].pop("sequence")
        values = [*batch["team"].values(), *sequence.values(), *(batch[key] for key in ("state", "discount"))]
        assert {value.device for value in values} == {ELSEWHERE}
        assert ("last" in sequence) == (n_step > 1) and sequence["observation"].shape == (2 + n_step, 6, 2, 1)
