"""Storage for a rollout: T steps of every environment, in tensors that are allocated once and overwritten.

Shapes: T time, E environments, A agents in a group, F features, D action dimensions, S global state features.
"""

from collections.abc import Collection, Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.collection.ends import for_targets
from agents.models.actor import Actor
from agents.models.critic import Critic
from envs.infos import InfoBuffers, InfoRules
from envs.observation_parts import feature_names
from envs.spec import EnvSpec


class RolloutBuffer:
    """The tensors of a rollout. Of groups without an actor of their own there are observations and rewards only.

    `agents.collection.collector.Collector` fills them.

    Attributes:
        data: TensorDict [T, E] under TorchRL's keys: (group, "observation" | "action" | "log_prob"), and under
            "next" the true next observation, the reward [T, E, A, 1] and done, terminated, truncated [T, E, 1], of
            groups whose agents end each on its own also ("next", group, "done" | …) [T, E, A, 1]. "action" is the raw
            action (the pre-tanh sample of a squashed Gaussian).
        observed: {group: [T + 1, E, A, F]}: what the policy saw, with what it will see next at the end.
        masks: {group: {"action": bool [T + 1, E, A, sum(nvec)], "alive", "turn": bool [T + 1, E, A]}} of `observed`,
            where the environment has them (`Env.masks`); under "action_mask", "alive" and "turn" in `data`.
        next_masks: {group: bool [T, E, A, sum(nvec)]}: the choices at the true next observation, of groups of which the
            environment tells that (`Env.final_masks`).
        states: global state [T + 1, E, S] likewise, or None.
        memories_at_marks: {"actor" | "critic": {group: float32 [K, E, *memory_shape]}}: what networks remembered before
            the steps of `marks`.
        starts: bool [T + 1, E], True where an episode began after this rollout's first step: there memories are zeros
            (also after a step that belongs to no episode, see `idle`).
        ends: {group: {"terminated" | "truncated" | "done": bool [T, E, A]}} of groups with `GroupSpec.ends`: whose own
            episode the step ended.
        agent_starts: {group: bool [T + 1, E, A]} of the same: as `starts`, agent by agent.
        info: what the environment tells of itself (`envs.infos.InfoBuffers`), or None where nothing of it is kept.

    Args:
        spec: of the environments.
        n_envs: E.
        device: where the tensors live.
        steps: T.
        actors: who plays, by group.
        critics: by group, where they may have a memory.
        marks: {t: numbers k below K}: the memory of before step t is kept as the k-th.
        info: which of the environment's own figures are kept; by default none is.
        final_masks: groups of which `Env.final_masks` tells.
        bootstraps: whether episodes that are cut off go on in the targets; if not, `finish` makes them terminated ones.
    """

    def __init__(
        self,
        spec: EnvSpec,
        n_envs: int,
        device: torch.device | str,
        steps: int,
        actors: Mapping[str, Actor],
        critics: Mapping[str, Critic] | None = None,
        marks: Mapping[int, list[int]] | None = None,
        info: InfoRules | None = None,
        final_masks: Collection[str] = (),
        bootstraps: bool = True,
    ):
        self.spec, self.steps, self.marks, self.bootstraps = spec, steps, marks or {}, bootstraps
        E = n_envs

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.masks: dict[str, dict[str, Tensor]] = {}
        self.observed, self.params, self.action, self.log_prob, self.reward, self.next = {}, {}, {}, {}, {}, {}
        for name, group in spec.groups.items():
            A, F = group.n_agents, group.observation_size
            self.observed[name] = zeros(steps + 1, E, A, F)
            sizes = {"action": (A, sum(group.action.nvec)), "alive": (A,), "turn": (A,)}
            self.masks[name] = {kind: zeros(steps + 1, E, *sizes[kind], dtype=torch.bool) for kind in group.masks}
            self.next[name] = zeros(steps, E, A, F)
            self.reward[name] = zeros(steps, E, A)
            if name in actors:
                head = actors[name].head
                self.params[name] = zeros(steps, E, A, head.n_features)
                self.action[name] = zeros(steps, E, A, head.raw_size, dtype=head.raw_dtype)
                self.log_prob[name] = zeros(steps, E, A)
        self.next_masks = {name: torch.ones_like(self.masks[name]["action"][1:]) for name in final_masks}
        lives = [kinds.get("alive") for kinds in self.masks.values()]
        self.lives = [] if any(alive is None for alive in lives) else lives  # of all groups, where all of them may die
        S = spec.state_size
        self.states = zeros(steps + 1, E, S) if S else None
        self.next_states = zeros(steps, E, S) if S else None
        self.terminated = zeros(steps, E, dtype=torch.bool)
        self.truncated = zeros(steps, E, dtype=torch.bool)
        self.done = zeros(steps, E, dtype=torch.bool)
        self.starts = zeros(steps + 1, E, dtype=torch.bool)
        lone = {name: group.n_agents for name, group in spec.groups.items() if group.ends}
        kinds = ("terminated", "truncated", "done")
        self.ends = {n: {kind: zeros(steps, E, A, dtype=torch.bool) for kind in kinds} for n, A in lone.items()}
        self.agent_starts = {name: zeros(steps + 1, E, A, dtype=torch.bool) for name, A in lone.items()}
        K = 1 + max((k for ks in self.marks.values() for k in ks), default=-1)
        self.memories_at_marks = {
            kind: {n: zeros(K, E, *module.memory_shape) for n, module in modules.items() if module.memory_shape}
            for kind, modules in (("actor", actors), ("critic", critics or {}))
        }
        n_agents = {name: group.n_agents for name, group in spec.groups.items()}
        self.info = InfoBuffers(info, steps, E, n_agents, device) if info else None
        self.data = self._views()

    def tensors(self) -> list[Tensor]:
        """All memory of a rollout, each piece once."""
        kinds = (self.observed, self.next, self.reward, self.params, self.action, self.log_prob, self.next_masks)
        kept = [value for kind in kinds for value in kind.values()]
        kept += [value for named in (self.masks, self.ends, self.memories_at_marks) for v in named.values()
                 for value in v.values()]  # fmt: skip
        kept += [self.terminated, self.truncated, self.done, self.starts, *self.agent_starts.values()]
        kept += [value for value in (self.states, self.next_states) if value is not None]
        infos = self.info.tensors.values() if self.info else ()
        return kept + [value for group in infos for value in group.values()]

    def _views(self) -> TensorDict:
        T, E = self.done.shape
        groups, after = {}, {}
        for name in self.observed:
            groups[name] = {"observation": self.observed[name][:T]}
            if name in self.action:
                groups[name] |= {"action": self.action[name], "log_prob": self.log_prob[name]}
            names = {"action": "action_mask", "alive": "alive", "turn": "turn"}
            groups[name] |= {names[kind]: mask[:T] for kind, mask in self.masks[name].items()}
            after[name] = {"observation": self.next[name], "reward": self.reward[name].unsqueeze(-1)}
            after[name] |= {kind: flag.unsqueeze(-1) for kind, flag in self.ends.get(name, {}).items()}
        for key in ("done", "terminated", "truncated"):
            after[key] = getattr(self, key).unsqueeze(-1)
        if self.states is not None:
            groups["state"], after["state"] = self.states[:T], self.next_states
        return TensorDict({**groups, "next": after}, batch_size=[T, E], device=self.done.device)

    def write_first(self, observation: Mapping[str, Tensor], state: Tensor | None) -> None:
        """Store what the next rollout's first step will see, {group: [E, A, F]} and [E, S], at time T."""
        for name, value in observation.items():
            self.observed[name][-1].copy_(value)
        if self.states is not None:
            self.states[-1].copy_(state)

    def write_masks(self, t: int, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `Env.masks` of what is observed at t; groups and kinds that `masks` lacks stay as they are."""
        for name, kinds in self.masks.items():
            for kind, buffer in kinds.items():
                if kind in masks.get(name, {}):
                    buffer[t].copy_(masks[name][kind])

    def write_final_masks(self, t: int, masks: Mapping[str, Tensor]) -> None:
        """Store `Env.final_masks` of the step t; where no choice is allowed all are taken to be."""
        for name, buffer in self.next_masks.items():
            nvec = self.spec.groups[name].action.nvec
            for mask, kept in zip(masks[name].split(nvec, -1), buffer[t].split(nvec, -1), strict=True):
                torch.logical_or(mask, ~mask.any(-1, keepdim=True), out=kept)

    def write_memory(self, t: int, kind: str, name: str, memory: Tensor) -> None:
        """Store what the "actor" or "critic" of a group remembers before step t, if t is one of `marks`."""
        for k in self.marks.get(t, ()):
            self.memories_at_marks[kind][name][k].copy_(memory)

    def carry_over(self) -> None:
        """What was seen at the end of the last rollout is the first that this one sees."""
        for name, observed in self.observed.items():
            for buffer in (observed, *self.masks[name].values()):
                buffer[0].copy_(buffer[-1])
        if self.states is not None:
            self.states[0].copy_(self.states[-1])

    def finish(self) -> None:
        """What follows from the steps taken: what ends mean to targets, `done` and `starts`, and the same of agents."""
        if not self.bootstraps:
            for ends in ({"terminated": self.terminated, "truncated": self.truncated}, *self.ends.values()):
                terminated, truncated = for_targets(ends["terminated"], ends["truncated"], False)
                ends["terminated"].copy_(terminated)
                ends["truncated"].copy_(truncated)
        torch.logical_or(self.terminated, self.truncated, out=self.done)
        torch.logical_or(self.done, self.idle(slice(0, -1)), out=self.starts[1:])
        for name, ends in self.ends.items():
            torch.logical_or(ends["terminated"], ends["truncated"], out=ends["done"])
            torch.logical_or(ends["done"], ~self.masks[name]["alive"][:-1], out=self.agent_starts[name][1:])

    def forgetful(self, t: int) -> dict[str, Tensor]:
        """Whose memory is empty after step t, {group: bool [E, A]} of groups with ends: who ended in it or was dead."""
        return {
            name: ends["terminated"][t] | ends["truncated"][t] | ~self.masks[name]["alive"][t]
            for name, ends in self.ends.items()
        }

    def over(self, name: str) -> tuple[Tensor, Tensor]:
        """Where episodes of a group were terminated, and where they were done: bool [T, E], each agent's [T, E, A]."""
        ends = self.ends.get(name)
        return (self.terminated, self.done) if ends is None else (ends["terminated"], ends["done"])

    def counts(self, name: str) -> Tensor | None:
        """Whose steps count for the values of a group, bool [T, E, A]; None = all.

        The dead count where their episode ends with that of the others, since they still have a return. Where agents
        act in turn, own turns count.
        """
        alive = self.masks[name]["alive"][:-1] if name in self.ends else None
        turn = self.masks[name].get("turn")
        return alive if turn is None else turn[:-1] if alive is None else turn[:-1] & alive

    def cut_frames(self) -> Tensor:
        """Frames t * E + e in which some episode was cut off, an agent's own or the environment's, int64 [N]."""
        cut = self.truncated
        for ends in self.ends.values():
            cut = cut | ends["truncated"].any(-1)
        return cut.flatten().nonzero().squeeze(-1)

    def cut(self, name: str) -> Tensor | None:
        """Who was really cut off in those frames: bool [T, E] or [T, E, A]; None = the whole group in all of them."""
        if name in self.ends:
            return self.ends[name]["truncated"]
        return self.truncated if self.ends else None

    def idle(self, t: int | slice) -> Tensor:
        """Where no agent is alive, bool [E] or [T, E]: the environment only resets itself (`envs.adapters.vector_env`).

        Such a step belongs to no episode.
        """
        if not self.lives:
            return torch.zeros_like(self.starts[t])
        return ~torch.cat([alive[t] for alive in self.lives], -1).any(-1)

    def not_finite(self) -> str | None:
        """The first number that is not finite: what it is, whose, in which environment and step."""
        places = []
        for name, group in self.spec.groups.items():
            numbers = {"observation": self.observed, "action": self.action, "reward": self.reward}
            for order, (what, tensors) in enumerate(numbers.items()):
                if name not in tensors:
                    continue
                bad = (~torch.isfinite(tensors[name])).nonzero()
                if len(bad):
                    t, e, a = bad[0, :3].tolist()
                    value = tensors[name][tuple(bad[0])].item()
                    if what == "observation" and group.parts:
                        what = f"{feature_names(group)[int(bad[0, 3])]} in the observation"
                    places.append((t, order, f"{what} of {group.agents[a]} is {value} in environment {e}, step {t}"))
        return f"{min(places)[2]} of the rollout" if places else None


def to_device(rows: Mapping, device: torch.device) -> dict:
    """A nested dict of tensors on another device."""
    return {k: v.to(device) if isinstance(v, Tensor) else to_device(v, device) for k, v in rows.items()}
