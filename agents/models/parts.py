"""What networks are told of observations' parts, and what users are told of pictures that no network reads as such."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from envs.observation_parts import WHOLE
from envs.spec import EnvSpec, GroupSpec, ObservationPart, describe
from marl.core.errors import UserError
from marl.networks import Part, reads_parts, with_parts

IDS, STATE = "agent_ids", "global_state"  # parts of a network's input that are no part of an observation


class FlattenedPicture(UserWarning):
    """A network reads a picture's pixels as one row of numbers."""


def observation_parts(spec: GroupSpec, kept: Sequence[int] | None = None) -> tuple[ObservationPart, ...]:
    """A group's parts, or all its features as one vector. kept: only these features, of vectors (see `keep`)."""
    parts = spec.parts or (ObservationPart(WHOLE, (spec.observation_size,)),)
    if kept is None:
        return parts
    left, begin = [], 0
    for part in parts:
        size = sum(begin <= feature < begin + part.size for feature in kept)
        begin += part.size
        if size:
            left.append(part if size == part.size else replace(part, shape=(size,)))
    return tuple(left)


def keep(spec: GroupSpec) -> list[int]:
    """Features that the global state does not repeat; pictures and sets, which would lose their shape, are whole."""
    features, begin = [], 0
    for part in observation_parts(spec):
        places = range(begin, begin + part.size)
        features += [f for f in places if part.kind != "vector" or f not in spec.in_state]
        begin += part.size
    return features


def told(parts: Sequence[ObservationPart]) -> tuple[Part, ...]:
    """Parts as `marl.networks` knows them: what they are divided by is done before."""
    return tuple(Part(part.name, part.shape, part.kind) for part in parts)


def with_names(network: Callable[..., nn.Module], spec: EnvSpec) -> Callable[..., nn.Module]:
    """The factory, told of all names that the networks of any group may meet."""
    names = [part.name for group in spec.groups.values() for part in observation_parts(group)]
    return with_parts(network, names=dict.fromkeys([*names, IDS, STATE]))


def same_agents(one: EnvSpec, other: EnvSpec) -> bool:
    """Whether two environments have the same groups: agents, observations and actions.

    What was saved before observations had parts knows of none, and what tells of the agents' deaths is left out.
    """
    ours, theirs = (describe(spec)["groups"] for spec in (one, other))
    for group in (*ours.values(), *theirs.values()):
        group.pop("ends", None)
        group["masks"] = [kind for kind in group["masks"] if kind != "alive"]
    for name in ours.keys() & theirs.keys():
        if not (one.groups[name].parts and other.groups[name].parts):
            ours[name].pop("parts", None)
            theirs[name].pop("parts", None)
    return ours == theirs


def check_saved(saved: Mapping[str, Any], spec: EnvSpec) -> None:
    """Refuse a run of a version without parts (`envs.spec.describe`'s), which saw pictures in other numbers.

    Raises:
        UserError: a group sees pictures, and the run knew of no parts.
    """
    for name, group in spec.groups.items():
        pictures = [part.name for part in group.parts if part.kind == "picture"]
        if pictures and not saved["groups"].get(name, {}).get("parts"):
            raise UserError(
                f"group {name}: saved before observations had parts, this run saw the pixels of {pictures[0]} in "
                "another order and scale; train it again"
            )


def warn_of_pictures(spec: EnvSpec, network: Callable[..., nn.Module]) -> None:
    """One sentence where a network reads pictures as rows of numbers."""
    if reads_parts(network):
        return
    for name, group in spec.groups.items():
        for part in [part for part in group.parts if part.kind == "picture"]:
            warnings.warn(
                f"group {name}: the picture {part.name!r} {list(part.shape)} is read as one row of {part.size} "
                "numbers; network=multi gives it an encoder of its own",
                FlattenedPicture,
                stacklevel=3,
            )
            return
