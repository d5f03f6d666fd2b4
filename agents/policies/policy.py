"""A saved policy: observations to actions, without training code, Hydra or a simulator.

Shapes: A agents in a group, F features, D action dimensions, S global state features, `...` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from agents.models import hidden_state as memories
from agents.models.actor import Actor
from agents.models.actor_critic import build_networks
from agents.models.architecture import Architecture
from agents.models.critic import Critic
from agents.policies import policy_file
from agents.policies.group_settings import algorithms, everyone, read, source
from envs.spec import EnvSpec, spec_of
from marl.core.errors import UserError
from marl.core.kinds import build, required
from marl.core.moved import update_config


class Policy(nn.Module):
    """The actors of all groups that learnt, and their critics.

    metadata: what the file says: "spec", "algo", "network", "critic_network", "groups" (configuration nodes), "critics"
    (whether there are values of states; an algorithm may have none) and, for
    people and other programs, "env" (how its environment is built), "run" (seed, frames so far, evaluation).

    Raises:
        UserError: the description names networks that can't be built here.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.metadata = metadata = update_config(dict(metadata))
        self.spec = spec_of(metadata["spec"])
        network = _factory(metadata["network"], "network")
        critic_node = metadata.get("critic_network")
        critic_network = _factory(critic_node, "critic_network") if critic_node else None
        settings = read(metadata.get("groups"), self.spec)
        architecture = Architecture.of(metadata["algo"])
        groups = algorithms(architecture, settings)
        valued = metadata.get("critics", True)
        actors, critics = build_networks(architecture, self.spec, network, critic_network, groups, valued)
        self.actors, self.critics = nn.ModuleDict(actors), nn.ModuleDict(critics)
        self.settings = settings
        acting = {n: group for n, group in self.spec.groups.items() if n in actors}
        self.spec = EnvSpec(acting, self.spec.state_size, self.spec.max_steps)
        self.eval()

    def everyone(self) -> tuple[dict[str, Actor], dict[str, Critic]]:
        """Actors and critics of all groups of the environment; see `agents.policies.group_settings.everyone`."""
        return everyone(self.settings, dict(self.actors.items()), dict(self.critics.items()))

    @classmethod
    def load(cls, path: str | Path, which: str = "last", device: str | torch.device = "cpu") -> Policy:
        """Read a policy file (`save`), a checkpoint, the `which` checkpoint of a run directory, or `zoo/NAME`.

        Raises:
            UserError: there is none, it can't be read, or it holds no agents.
        """
        metadata, weights, path = policy_file.read(path, which)
        try:
            policy = cls(metadata)
        except KeyError as error:
            raise UserError(f"{path} can't be read as a policy: its description lacks {error}") from error
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{path} can't be read as a policy: its description holds values of other kinds ({error})"
            ) from error
        policy._fill(weights, path)
        return policy.to(device)

    def _fill(self, weights: dict[str, Tensor], path: Path) -> None:
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{path}: its weights don't fit the networks it names: {' '.join(str(error).split())[:300]}"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write a policy file (safetensors with a description in JSON and a digest), whole or not at all."""
        policy_file.write(path, self.metadata, self.state_dict())

    @overload
    def act(
        self,
        observation: Tensor,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        memory: None = None,
    ) -> Tensor: ...

    @overload
    def act(
        self,
        observation: Tensor,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        *,
        memory: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def act(
        self,
        observation: Mapping[str, Tensor],
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        memory: None = None,
    ) -> dict[str, Tensor]: ...

    @overload
    def act(
        self,
        observation: Mapping[str, Tensor],
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        *,
        memory: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Tensor] | Tensor,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        memory: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor] | Tensor | tuple[dict[str, Tensor] | Tensor, dict[str, Tensor]]:
        """Actions in the environment's units: {group: [..., A, F]} -> {group: [..., A, D]}.

        A tensor instead of a dict stands for the only group, and gets a tensor back. deterministic: the policy's mode.
        masks: as `Env.masks` returns them; without them every action is taken to be allowed. Where agents' episodes
            end each on its own, the dead of "alive" remember nothing.
        memory: what the actors remember of the episode so far, {group: [..., A, M]}: `memory(...)` at its beginning,
        from then on what the step before returned (with `forget` where episodes end). With it the result is a pair,
        actions and memory after the step. Policies that remember nothing neither need nor mind it ({}).

        Raises:
            UserError: a tensor where there are several groups, another shape than the policy was trained on, or no
                memory where it has one.
        """
        if isinstance(observation, Tensor):
            if len(self.actors) > 1:
                raise UserError(f"observation: this policy has the groups {', '.join(self.actors)}; give a dict")
            only = next(iter(self.actors))
            if memory is None:
                return self.act({only: observation}, deterministic, generator, masks)[only]
            acts, after = self.act({only: observation}, deterministic, generator, masks, memory=memory)
            return acts[only], after
        actions, after = {}, {}
        for name, actor in self._present(self.actors, observation).items():
            features, group = observation[name].float(), self.spec.groups[source(self.settings, name)]
            if features.shape[-2:] != (group.n_agents, group.observation_size):
                raise UserError(
                    f"observation of {name}: shape {tuple(features.shape)}; it must end with the agents and "
                    f"features {(group.n_agents, group.observation_size)}"
                )
            kinds = (masks or {}).get(name, {})
            mask = kinds.get("action")
            if actor.memory_shape is None:
                params = actor(features, mask)
            else:
                params, after[name] = actor.remember(features, _remembered(memory, name, "memory"), mask)
                if actor.ends and "alive" in kinds:
                    after[name] = memories.forget(after[name], ~kinds["alive"])
            actions[name] = actor.head.to_env(actor.choose(params, deterministic, generator)[0])
        return actions if memory is None else (actions, after)

    @torch.no_grad()
    def values(
        self,
        observation: Mapping[str, Tensor],
        state: Tensor | None = None,
        memory: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The returns that the critics expect: {group: [..., A, F]} and, where read, state [..., S] -> [..., A].

        memory: as in `act`, but the critics' own, which begins as `critic_memory(...)`. masks: as in `act`.
        """
        values, after = {}, {}
        for name, critic in self._present(self.critics, observation).items():
            if critic.memory_shape is None:
                value = critic(observation[name], state)
            else:
                before = _remembered(memory, name, "critic_memory")
                now = None if state is None else state.unsqueeze(0)
                value, after[name] = (x[0] for x in critic.unroll(observation[name].unsqueeze(0), now, before))
                alive = (masks or {}).get(name, {}).get("alive")
                if critic.per_agent and alive is not None:
                    after[name] = memories.forget(after[name], ~alive)
            values[name] = critic.denormalize(value)
        return values if memory is None else (values, after)

    def _present(self, modules: nn.ModuleDict, observation: Mapping[str, Tensor]) -> dict[str, Any]:
        """Actors or critics of the groups that learnt, and of those observed that are played by their past versions."""
        sources = {n: source(self.settings, n) for n in self.settings if n in modules or n in observation}
        return {name: modules[of] for name, of in sources.items() if of in modules}

    def memory(self, *leading: int) -> dict[str, Tensor]:
        """What the actors remember at an episode's beginning: zeros [*leading, A, M] by group; {} if never anything."""
        return self._zeros(self.actors, leading)

    def critic_memory(self, *leading: int) -> dict[str, Tensor]:
        """The same of the critics."""
        return self._zeros(self.critics, leading)

    def _zeros(self, modules: nn.ModuleDict, leading: tuple[int, ...]) -> dict[str, Tensor]:
        shapes: dict[str, Any] = {name: module.memory_shape for name, module in modules.items() if module.memory_shape}
        device = next(self.parameters()).device
        return {name: torch.zeros(*leading, *shape, device=device) for name, shape in shapes.items()}


def forget(memory: Mapping[str, Tensor], done: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Memory {group: [E, ...]} with zeros where an episode has ended, done bool [E].

    done: or {group: bool [E, A]}, of groups whose agents' episodes end each on its own.
    """
    ended = dict.fromkeys(memory, done) if isinstance(done, Tensor) else done
    return {name: memories.forget(value, ended[name]) for name, value in memory.items()}


def _remembered(memory: Mapping[str, Tensor] | None, name: str, beginning: str) -> Tensor:
    if memory is None or name not in memory:
        raise UserError(
            f"memory: this policy remembers what {name} saw; give memory=policy.{beginning}(E) at the beginning of "
            "episodes, then what came back beside the result"
        )
    return memory[name]


def _factory(node: Mapping[str, Any], key: str) -> Callable[..., nn.Module]:
    """`network(in_shape, out_features)` of a configuration node; classes of other kinds are refused, uncalled."""
    required({**node, "_partial_": True}, Callable[..., nn.Module], key)
    return build({**node, "_partial_": True})
