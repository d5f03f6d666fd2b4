"""Collection: T steps of every environment under the current policy, written into tensors allocated once.

Shapes: T time, E environments, A agents in a group, F features, D action dimensions, S global state features.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.actor import Actor
from agents.critic import Critic
from agents.memory import Memories
from envs.base import Env
from marl.recorder import GraphedFunction, replayable
from marl.spans import span

# Puts what is not the actors' doing into their actions {group: [E, A, D]}, given observations and masks of actions.
Others = Callable[[dict[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]], None]


class Rollout:
    """Preallocated storage for a rollout, and the loop that fills it.

    Groups without an actor of their own are played by `others`; of them there are observations and rewards only.

    Attributes:
        data: TensorDict [T, E] under TorchRL's keys: (group, "observation" | "action" | "log_prob"), and under
            "next" the true next observation, the reward [T, E, A, 1] and done, terminated, truncated [T, E, 1].
            "action" is the raw action (the pre-tanh sample of a squashed Gaussian).
        observed: {group: [T + 1, E, A, F]}: what the policy saw, with what it will see next at the end.
        masks: {group: {"action": bool [T + 1, E, A, sum(nvec)], "alive": bool [T + 1, E, A]}} of `observed`, where the
            environment has them (`Env.masks`); under "action_mask" and "alive" in `data`.
        states: global state [T + 1, E, S] likewise, or None.
        memories: {"actor" | "critic": `agents.memory.Memories`}: what networks remember before the next rollout's first
            step (the critics' are moved on by `agents.values.values_of`).
        kept: {"actor" | "critic": {group: float32 [K, E, *memory_shape]}}: the same before the steps of `marks`.
        starts: bool [T + 1, E], True where an episode began after this rollout's first step: there memories are zeros
            (also after a step that belongs to no episode, see `idle`).

    Args:
        env: the environments.
        actors: who plays, by group.
        steps: T.
        critics: by group, where they may have a memory.
        marks: {t: numbers k below K}: the memory of before step t is kept as the k-th.
    """

    def __init__(
        self,
        env: Env,
        actors: Mapping[str, Actor],
        steps: int,
        critics: Mapping[str, Critic] | None = None,
        marks: Mapping[int, list[int]] | None = None,
        others: Others | None = None,
    ):
        self.env, self.actors, self.steps, self.marks, self.others = env, actors, steps, marks or {}, others
        E, device = env.num_envs, env.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.masks: dict[str, dict[str, Tensor]] = {}
        self.observed, self.params, self.action, self.log_prob, self.reward, self.next = {}, {}, {}, {}, {}, {}
        for name, group in env.spec.groups.items():
            A, F = group.n_agents, group.observation_size
            self.observed[name] = zeros(steps + 1, E, A, F)
            sizes = {"action": (A, sum(group.action.nvec)), "alive": (A,)}
            self.masks[name] = {kind: zeros(steps + 1, E, *sizes[kind], dtype=torch.bool) for kind in group.masks}
            self.next[name] = zeros(steps, E, A, F)
            self.reward[name] = zeros(steps, E, A)
            if name in actors:
                head = actors[name].head
                self.params[name] = zeros(steps, E, A, head.n_features)
                self.action[name] = zeros(steps, E, A, head.raw_size, dtype=head.raw_dtype)
                self.log_prob[name] = zeros(steps, E, A)
        self.masked = any(self.masks.values())
        lives = [kinds.get("alive") for kinds in self.masks.values()]
        self.lives = [] if any(alive is None for alive in lives) else lives  # of all groups, where all of them may die
        S = env.spec.state_size
        self.states = zeros(steps + 1, E, S) if S else None
        self.next_states = zeros(steps, E, S) if S else None
        self.terminated = zeros(steps, E, dtype=torch.bool)
        self.truncated = zeros(steps, E, dtype=torch.bool)
        self.done = zeros(steps, E, dtype=torch.bool)
        self.starts = zeros(steps + 1, E, dtype=torch.bool)
        modules = {"actor": actors, "critic": critics or {}}
        self.memories = {kind: Memories(made, E, device) for kind, made in modules.items()}
        K = 1 + max((k for ks in self.marks.values() for k in ks), default=-1)
        self.kept = {
            kind: {name: zeros(K, *memory.shape) for name, memory in memories.now.items()}
            for kind, memories in self.memories.items()
        }
        self.recurrent = any(memories.now for memories in self.memories.values())
        self._replayed = {
            name: GraphedFunction(partial(_choose, actor, actor), actor)
            for name, actor in actors.items()
            if name not in self.memories["actor"].now and replayable(actor)
        }
        self.data = self._views(steps, E, device)
        # What an actor sees at each step and where its parameters and actions go: taken apart once, not at every step.
        self._at = {n: list(zip(self.observed[n], self.params[n], self.action[n], strict=False)) for n in self.action}
        after = {name: value[1:] for name, value in self.observed.items()}
        states = (None, None) if self.states is None else (self.states[1:], self.next_states)
        env.bind_rollout(after, self.next, self.reward, self.terminated, self.truncated, *states)

    def _views(self, T: int, E: int, device: torch.device) -> TensorDict:
        groups, after = {}, {}
        for name in self.observed:
            groups[name] = {"observation": self.observed[name][:T]}
            if name in self.action:
                groups[name] |= {"action": self.action[name], "log_prob": self.log_prob[name]}
            names = {"action": "action_mask", "alive": "alive"}
            groups[name] |= {names[kind]: mask[:T] for kind, mask in self.masks[name].items()}
            after[name] = {"observation": self.next[name], "reward": self.reward[name].unsqueeze(-1)}
        for key in ("done", "terminated", "truncated"):
            after[key] = getattr(self, key).unsqueeze(-1)
        if self.states is not None:
            groups["state"], after["state"] = self.states[:T], self.next_states
        return TensorDict({**groups, "next": after}, batch_size=[T, E], device=device)

    def reset(self, seed: int | None = None) -> None:
        """Reset every environment; the first observation waits at time 0."""
        observation, state = self.env.reset(seed)
        for name, value in observation.items():
            self.observed[name][-1].copy_(value)
        if self.states is not None:
            self.states[-1].copy_(state)
        self._read_masks(-1)
        for memories in self.memories.values():
            memories.clear()

    def _read_masks(self, t: int) -> None:
        """Keep the environment's masks of what is `observed` at t."""
        if self.masked:
            masks = self.env.masks()
            for name, kinds in self.masks.items():
                for kind, buffer in kinds.items():
                    buffer[t].copy_(masks[name][kind])

    @torch.no_grad()
    def collect(self, generator: torch.Generator | None = None) -> TensorDict:
        """Play T steps on from where the last rollout ended; returns `data`, overwritten."""
        E, device = self.env.num_envs, self.env.device
        noise = {}
        for name, observed in self.observed.items():
            for buffer in (observed, *self.masks[name].values()):
                buffer[0].copy_(buffer[-1])
        for name, actor in self.actors.items():
            A = self.env.spec.groups[name].n_agents
            noise[name] = actor.head.noise((self.steps, E, A), device, generator).unbind()
        if self.states is not None:
            self.states[0].copy_(self.states[-1])
        memories, kept = self.memories["actor"], self.kept["actor"]
        for t in range(self.steps):
            actions = {}
            for k in self.marks.get(t, ()):
                for name, memory in memories.now.items():
                    kept[name][k].copy_(memory)
            for name, actor in self.actors.items():
                (seen, params, action), mask = self._at[name][t], self.masks[name].get("action")
                given = (seen, noise[name][t]) if mask is None else (seen, noise[name][t], mask[t])
                if name in self._replayed:
                    made, raw, handed = self._replayed[name](given, actor.training)
                    handed = handed.clone()  # environments may keep it, and a replay writes to one place
                else:
                    made, raw, handed = _choose(partial(memories.params, name, actor), actor, *given)
                params.copy_(made)
                action.copy_(raw)
                actions[name] = handed
            if self.others is not None:
                masks = {name: kinds["action"][t] for name, kinds in self.masks.items() if "action" in kinds}
                self.others(actions, {name: value[t] for name, value in self.observed.items()}, masks)
            with span("simulation"):
                self.env.step_into(t, actions)
            self._read_masks(t + 1)
            if memories.now:
                over = self.terminated[t] | self.truncated[t]
                memories.forget(over | self.idle(t) if self.lives else over)
        for name, actor in self.actors.items():  # once for the whole rollout, outside of the loop
            self.log_prob[name].copy_(actor.head.log_prob(self.params[name], self.action[name]))
        torch.logical_or(self.terminated, self.truncated, out=self.done)
        torch.logical_or(self.done, self.idle(slice(0, -1)), out=self.starts[1:])
        return self.data

    def idle(self, t: int | slice) -> Tensor:
        """Where nobody is alive, so that the step belongs to no episode, bool [E] or [T, E]: the environment only
        resets itself (`envs.vector_env`)."""
        if not self.lives:
            return torch.zeros_like(self.starts[t])
        return ~torch.cat([alive[t] for alive in self.lives], -1).any(-1)

    def not_finite(self) -> str | None:
        """The first number that is not finite: what it is, whose, in which environment and step."""
        found = []
        for name, group in self.env.spec.groups.items():
            held = {"observation": self.observed, "action": self.action, "reward": self.reward}
            for order, (what, tensors) in enumerate(held.items()):
                if name not in tensors:
                    continue
                bad = (~torch.isfinite(tensors[name])).nonzero()
                if len(bad):
                    t, e, a = bad[0, :3].tolist()
                    value = tensors[name][tuple(bad[0])].item()
                    found.append((t, order, f"{what} of {group.agents[a]} is {value} in environment {e}, step {t}"))
        return f"{min(found)[2]} of the rollout" if found else None

    def state_dict(self) -> dict:
        """What the next rollout starts from: the environment and what the policy will see first."""
        state = {"env": self.env.snapshot()}
        state["observation"] = {name: value[-1].clone() for name, value in self.observed.items()}
        state["masks"] = {
            n: {kind: mask[-1].clone() for kind, mask in masks.items()} for n, masks in self.masks.items()
        }
        if self.states is not None:
            state["state"] = self.states[-1].clone()
        if self.recurrent:
            state["memory"] = {
                kind: {name: memory.clone() for name, memory in memories.now.items()}
                for kind, memories in self.memories.items()
            }
        return state

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, to the same bits."""
        self.env.restore(state["env"])
        self._read_masks(-1)  # for states from before the environment told its masks
        for name, value in state["observation"].items():
            self.observed[name][-1].copy_(value)
            for kind, mask in state["masks"][name].items():
                self.masks[name][kind][-1].copy_(mask)
        if self.states is not None:
            self.states[-1].copy_(state["state"])
        for kind, memories in self.memories.items():
            for name, memory in memories.now.items():
                memories.now[name] = state["memory"][kind][name].to(memory.device, copy=True)


def _choose(
    network: Callable[..., Tensor], actor: Actor, observation: Tensor, noise: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters of the policy, the raw action drawn from it, and the environment's: [E, A, ...] each."""
    params = network(observation, mask)
    raw = actor.head.draw(params, noise)
    return params, raw, actor.head.to_env(raw)


class EpisodeReturns:
    """Returns and lengths of the episodes that end within a rollout, carried over from one rollout to the next.

    Vectorised over the rollout: a running sum less its value at the previous end, no work inside the hot loop.
    """

    def __init__(self, n_envs: int, n_agents: int, device: torch.device):
        self.carry = torch.zeros(n_envs, n_agents, device=device)

    @torch.no_grad()
    def add(self, reward: Tensor, done: Tensor) -> Tensor:
        """Undiscounted return of the episode up to and including each step.

        Args:
            reward: float32 [T, E, A].
            done: bool [T, E].

        Returns:
            float32 [T, E, A]: at steps where `done`, the whole episode's return.
        """
        T = len(reward)
        total = reward.cumsum(0) + self.carry
        time = torch.arange(T, device=reward.device).unsqueeze(-1)
        ended = torch.where(done, time, -1).cummax(0).values  # [T, E]: latest end up to and including t

        def before(last: Tensor) -> Tensor:
            """The running sum at step `last` [..., E] (0 where there is none)."""
            index = last.clamp(min=0).unsqueeze(-1).expand(*last.shape, reward.shape[-1])
            return total.gather(0, index).mul_((last >= 0).unsqueeze(-1))

        previous = torch.cat([torch.full_like(ended[:1], -1), ended[:-1]])
        self.carry = (total[-1:] - before(ended[-1:]))[0]
        return total - before(previous)


def take(rows: Mapping, index: Tensor) -> dict:
    """The rows `index` (int64 [B]) of a nested dict of tensors, copied; several times faster than `tensor[index]`."""
    return {k: v.index_select(0, index) if isinstance(v, Tensor) else take(v, index) for k, v in rows.items()}
