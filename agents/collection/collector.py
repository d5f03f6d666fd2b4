"""Collection: steps all environments under the current policies and stores what happens in a rollout buffer.

Shapes: T time, E environments, A agents in a group, F features, D action dimensions, S global state features.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.collection.rollout_buffer import RolloutBuffer
from agents.models.actor import Actor
from agents.models.critic import Critic
from agents.models.hidden_state import Memories
from envs.base import Env
from marl.capture.cuda_graph import GraphedWork, NotCaptured
from marl.capture.op_graph import GraphedFunction, made_of_tensors, replayable
from marl.engine.spans import span

# Puts what is not the actors' doing into their actions {group: [E, A, D]}, given observations and masks of actions.
Others = Callable[[dict[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]], None]


class Collector:
    """Plays T steps per rollout, always on from where the last one ended.

    Attributes:
        graph: rollouts on a GPU as one CUDA graph (`use_graph`); None: step by step so far.
        memories: {"actor" | "critic": `agents.models.hidden_state.Memories`}: what networks remember before the next
            rollout's first step (the critics' are moved on by `agents.collection.value_estimates.values_of`).

    Args:
        env: the environments.
        actors: who plays, by group; other groups are played by `others`.
        rollout: where it is stored; the environments write into it directly (`Env.bind_rollout`).
        critics: by group, where they may have a memory.
        others: see `Others`.
    """

    def __init__(
        self,
        env: Env,
        actors: Mapping[str, Actor],
        rollout: RolloutBuffer,
        critics: Mapping[str, Critic] | None = None,
        others: Others | None = None,
    ):
        self.env, self.actors, self.rollout, self.others = env, actors, rollout, others
        modules = {"actor": actors, "critic": critics or {}}
        self.memories = {kind: Memories(networks, env.num_envs, env.device) for kind, networks in modules.items()}
        self.graph: GraphedWork | None = None
        self._captures, self._told = False, False
        self.masked = any(rollout.masks.values())
        self.recurrent = any(memories.now for memories in self.memories.values())
        self._graphed = {
            name: GraphedFunction(partial(_choose, actor, actor), actor)
            for name, actor in actors.items()
            if name not in self.memories["actor"].now and replayable(actor)
        }
        # What an actor sees at each step and where its parameters and actions go: taken apart once, not at every step.
        self._at = {
            name: list(zip(rollout.observed[name], rollout.params[name], rollout.action[name], strict=False))
            for name in rollout.action
        }
        after = {name: value[1:] for name, value in rollout.observed.items()}
        states = (None, None) if rollout.states is None else (rollout.states[1:], rollout.next_states)
        ends = {name: (flags["terminated"], flags["truncated"]) for name, flags in rollout.ends.items()}
        flags = rollout.terminated, rollout.truncated
        more = {"ends": ends} if ends else {}
        env.bind_rollout(after, rollout.next, rollout.reward, *flags, *states, info=rollout.info, **more)

    def reset(self, seed: int | None = None) -> None:
        """Reset every environment; the first observation waits for `collect`."""
        self.rollout.write_first(*self.env.reset(seed))
        self._read_masks(-1)
        for memories in self.memories.values():
            memories.clear()

    def _read_masks(self, t: int) -> None:
        """Store the environment's masks of what is observed at t."""
        if self.masked:
            self.rollout.write_masks(t, self.env.masks())

    @torch.no_grad()
    def collect(self, generator: torch.Generator | None = None) -> TensorDict:
        """Play T steps; returns the buffer's `data`, overwritten."""
        rollout, noise = self.rollout, []
        self.env.prepare(rollout.steps)
        for name, actor in self.actors.items():
            shape = (rollout.steps, self.env.num_envs, self.env.spec.groups[name].n_agents)
            noise.append(actor.head.noise(shape, self.env.device, generator))
        if self._captures:
            self._play_captured(noise)
        else:
            self._play(*noise)
        return rollout.data

    def _play_captured(self, noise: list[Tensor]) -> None:
        """As `_play`, by the graph where this rollout can be one."""
        state = self.env.device_state()
        why = self.env.why_not_captured if state is None else self._why_step_by_step()
        name = f"a rollout of {type(self.env).__name__}"
        if state is None or why:
            if why and not self._told:
                self._told = True
                warnings.warn(f"{name}: no CUDA graph, {why}", NotCaptured, stacklevel=3)
            self._play(*noise)
            return
        if self.graph is None:
            self.graph = GraphedWork(self._play, name, state.generators)
        training = tuple(actor.training for actor in self.actors.values())
        weights = [value for actor in self.actors.values() for value in (*actor.parameters(), *actor.buffers())]
        memory = [*self.rollout.tensors(), *self.memories["actor"].stay(), *map(Tensor.detach, weights)]
        self.graph(noise, [*memory, *state.tensors], (state.key, training))

    def _why_step_by_step(self) -> str:
        if self.others is not None:
            return "not all groups learn"
        if not all(map(made_of_tensors, self.actors.values())):
            return "a network has modules that are not torch's"
        return ""

    def use_graph(self, enabled: bool) -> None:
        """Whether rollouts on a GPU are captured as one CUDA graph each, where nothing in them is the host's."""
        self.graph, self._captures = None, enabled and self.env.device.type == "cuda"

    def settle(self) -> None:
        """See `GraphedWork.settle`; between rollouts, since it may wait for the device."""
        if self.graph is not None:
            self.graph.settle()

    def _play(self, *drawn: Tensor) -> tuple[()]:
        """Play T steps with noise [T, E, A, N] of each actor."""
        rollout, memories = self.rollout, self.memories["actor"]
        rollout.carry_over()
        actors = dict(self.actors.items())
        noise = {name: each.unbind() for name, each in zip(self.actors, drawn, strict=True)}
        for t in range(rollout.steps):
            for name, memory in memories.now.items():
                rollout.write_memory(t, "actor", name, memory)
            actions = {name: self._act(t, name, actor, noise[name][t]) for name, actor in actors.items()}
            if self.others is not None:
                masks = {name: kinds["action"][t] for name, kinds in rollout.masks.items() if "action" in kinds}
                self.others(actions, {name: value[t] for name, value in rollout.observed.items()}, masks)
            with span("simulation"):
                self.env.step_into(t, actions)
            if self.masked:
                self._read_masks(t + 1)
            if rollout.next_masks:
                rollout.write_final_masks(t, self.env.final_masks())
            if memories.now:
                over = rollout.terminated[t] | rollout.truncated[t]
                memories.forget(over | rollout.idle(t) if rollout.lives else over, rollout.forgetful(t))
        for name, actor in self.actors.items():  # once for the whole rollout, outside of the loop
            rollout.log_prob[name].copy_(actor.head.log_prob(rollout.params[name], rollout.action[name]))
        if self.graph is not None:
            memories.stay()  # where the graph's next replay looks
        rollout.finish()
        return ()

    def _act(self, t: int, name: str, actor: Actor, noise: Tensor) -> Tensor:
        """A group's actions [E, A, D] at step t, for the environment; parameters and raw actions are stored."""
        mask = self.rollout.masks[name].get("action")
        observation, params_at, action_at = self._at[name][t]
        inputs = (observation, noise) if mask is None else (observation, noise, mask[t])
        if name in self._graphed:
            params, raw, action = self._graphed[name](inputs, actor.training)
            action = action.clone()  # environments may keep it, and a replay writes to one place
        else:
            params, raw, action = _choose(partial(self.memories["actor"].params, name, actor), actor, *inputs)
        params_at.copy_(params)
        action_at.copy_(raw)
        return action

    def state_dict(self) -> dict:
        """What the next rollout starts from: the environment, what the policy will see first, and memories."""
        rollout = self.rollout
        state = {"env": self.env.snapshot()}
        state["observation"] = {name: value[-1].clone() for name, value in rollout.observed.items()}
        state["masks"] = {
            name: {kind: mask[-1].clone() for kind, mask in masks.items()} for name, masks in rollout.masks.items()
        }
        if rollout.states is not None:
            state["state"] = rollout.states[-1].clone()
        if self.recurrent:
            state["memory"] = {
                kind: {name: memory.clone() for name, memory in memories.now.items()}
                for kind, memories in self.memories.items()
            }
        return state

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identically."""
        self.env.restore(state["env"])
        self._read_masks(-1)  # for states from before the environment told its masks
        self.rollout.write_first(state["observation"], state.get("state"))
        self.rollout.write_masks(-1, state["masks"])
        for kind, memories in self.memories.items():
            for name, memory in list(memories.now.items()):
                memories.set(name, state["memory"][kind][name].to(memory.device, copy=True))


def _choose(
    network: Callable[..., Tensor], actor: Actor, observation: Tensor, noise: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters of the policy, the raw action drawn from it, and the environment's: [E, A, ...] each."""
    params = network(observation, mask)
    raw = actor.head.draw(params, noise)
    return params, raw, actor.head.to_env(raw)
