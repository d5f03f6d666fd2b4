"""Presets (experiment=NAME) with another algorithm than their own: what the chosen one has not is left out."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from marl.core.imports import resolve
from marl.core.schema import signature


class LeftOut(UserWarning):
    """A preset's settings are of another algorithm than the one that was chosen."""


def left_out(chosen: Mapping[str, Any] | None, preset: Mapping[str, Any] | None, overrides: Sequence[str]) -> list[str]:
    """Keys of `chosen`, the settings of an algorithm, that a preset gave them for its own and it does not take.

    A warning says which. Only what the preset's own algorithm takes: a slip in a preset stays one, and so does a key
    that `overrides` set.

    Raises:
        UserError: an algorithm's dotted path leads nowhere.
    """
    if not chosen or not preset or chosen["_target_"] == preset["_target_"]:
        return []
    takes, took = (signature(resolve(node["_target_"], "algo._target_")) for node in (chosen, preset))
    given = {text.partition("=")[0].lstrip("+~") for text in overrides}
    names = [key for key in chosen if key in preset and key in took and key not in takes and f"algo.{key}" not in given]
    if names:
        kind, own = (node["_target_"].rpartition(".")[2] for node in (chosen, preset))
        keys = ", ".join(f"algo.{name}" for name in names)
        warnings.warn(f"the preset sets {keys}, which {own} has and {kind} has not: left out", LeftOut, stacklevel=3)
    return names
