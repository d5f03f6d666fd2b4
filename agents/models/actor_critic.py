"""The one place where actors and critics are built."""

from collections.abc import Callable, Mapping

from torch import nn

from agents.models.actor import Actor
from agents.models.architecture import Architecture
from agents.models.critic import Critic
from agents.models.parts import with_names
from envs.spec import EnvSpec


def build_networks(
    architecture: Architecture,
    spec: EnvSpec,
    network: Callable[..., nn.Module],
    critic_network: Callable[..., nn.Module] | None = None,
    groups: Mapping[str, Architecture] | None = None,
    with_critics: bool = True,
) -> tuple[dict[str, Actor], dict[str, Critic]]:
    """Actors and critics of an environment's groups, by group; the random numbers are drawn group by group.

    Args:
        architecture: of all groups.
        spec: the environment.
        network: factory `network(in_shape, out_features) -> nn.Module` of the actors.
        critic_network: the same of the critics; None = `network`.
        groups: {group: its own architecture} of those that get networks; None = all groups, with the common one.
        with_critics: False = actors only.

    Raises:
        UserError: the policy does not fit the actions, or the critic needs a state the environment lacks.
    """
    network = with_names(network, spec)
    critic_network = with_names(critic_network, spec) if critic_network else network
    actors, critics = {}, {}
    for name, group_architecture in (dict.fromkeys(spec.groups, architecture) if groups is None else groups).items():
        actors[name] = Actor(spec.groups[name], network, group_architecture)
        if with_critics:
            critics[name] = Critic(spec.groups[name], critic_network, group_architecture, spec.state_size)
    return actors, critics
