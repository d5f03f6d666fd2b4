"""What the critics say of a rollout: values of all that the policy saw, and of where truncated episodes really ended.

Shapes: T time, E environments, A agents in a group, N frames in which some episode was cut off.
"""

import torch
from torch import Tensor

from agents.collection.rollout_buffer import RolloutBuffer
from agents.models.critic import Critic
from agents.models.hidden_state import Memories, forget

VALUE_ROWS = 1 << 15  # environment frames per call of the critic: bounds its memory, and keeps it in cache


@torch.no_grad()
def values_of(
    critic: Critic, name: str, rollout: RolloutBuffer, truncated: Tensor, memories: Memories
) -> tuple[Tensor, Tensor]:
    """Values in return units: [T + 1, E, A] of all that the policy saw, [N, A] of the true final observations.

    A critic with a memory goes through the rollout from where it was at its start. It sees a true final observation
    with the memory of the episode that ended there. Where it will begin the next rollout is left in `memories`, where
    it begins the sequences of this one in the rollout (`RolloutBuffer.write_memory`).

    Args:
        critic: of the group.
        name: of the group.
        rollout: as collected.
        truncated: int64 [N], t * E + e, of those frames. Which agents were cut off there is `bootstrap`'s business.
        memories: of the critics, before the rollout's first step.
    """
    E, observed = rollout.done.shape[1], rollout.observed[name]
    states = rollout.states if critic.uses_state else None
    steps = max(1, VALUE_ROWS // E)
    spans = [slice(t, min(t + steps, len(observed))) for t in range(0, len(observed), steps)]
    final = rollout.next[name].flatten(0, 1)[truncated]
    final_state = None if states is None else rollout.next_states.flatten(0, 1)[truncated]
    if critic.memory_shape is None:
        masks = rollout.masks[name].get("action") if critic.reads_masks else None
        seen = [(observed[s], None if states is None else states[s]) for s in spans]
        at_ends = ()
        if masks is not None:
            seen = [(*one, masks[s]) for one, s in zip(seen, spans, strict=True)]
            if name in rollout.next_masks:  # else all counts as allowed at a true final observation
                at_ends = (rollout.next_masks[name].flatten(0, 1)[truncated],)
        value = torch.cat([critic(*one) for one in seen])
        return critic.denormalize(value), critic.denormalize(critic(final, final_state, *at_ends))
    memory, values, memories_at_ends = memories.now[name], [], []
    starts = rollout.agent_starts[name] if critic.per_agent else rollout.starts
    bounds = truncated.new_tensor([s.start * E for s in spans] + [len(observed) * E])
    ends = torch.searchsorted(truncated, bounds).tolist()
    for i, s in enumerate(spans):
        value, after = critic.unroll(observed[s], None if states is None else states[s], memory, starts[s])
        values.append(value)
        memories_at_ends.append(after.flatten(0, 1)[truncated[ends[i] : ends[i + 1]] - s.start * E])
        for t in range(s.start, s.stop):
            before = memory if t == s.start else after[t - 1 - s.start]  # what an ended episode leaves included
            rollout.write_memory(t, "critic", name, before)
            if t == rollout.steps:
                memories.set(name, forget(before, starts[t]))
        memory = after[-1]
    final_state = None if final_state is None else final_state.unsqueeze(0)
    final_value, _ = critic.unroll(final.unsqueeze(0), final_state, torch.cat(memories_at_ends))
    return critic.denormalize(torch.cat(values)), critic.denormalize(final_value[0])
