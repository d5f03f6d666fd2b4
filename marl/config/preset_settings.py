"""Presets (experiment=NAME) with another algorithm than their own: what the chosen one has not is left out."""

import warnings
from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from marl.core.imports import resolve
from marl.core.schema import signature


class LeftOut(UserWarning):
    """A preset's settings are of another algorithm than the one that was chosen."""


def drop_settings(cfg: DictConfig, preset: DictConfig, overrides: Sequence[str]) -> None:
    """Delete from `cfg.algo` what `preset` sets for its own algorithm and the chosen one does not take; say which.

    Only what the preset's own algorithm takes: a slip in a preset stays one, and so does a key that `overrides` set.

    Raises:
        UserError: an algorithm's dotted path leads nowhere.
    """
    if not cfg.algo or not preset.algo or cfg.algo._target_ == preset.algo._target_:
        return
    takes, took = (signature(resolve(node._target_, "algo._target_")) for node in (cfg.algo, preset.algo))
    given = {text.partition("=")[0].lstrip("+~") for text in overrides}
    names = [key for key in cfg.algo if key in preset.algo and key in took and key not in takes]
    names = [key for key in names if f"algo.{key}" not in given]
    if not names:
        return
    with open_dict(cfg):
        for name in names:
            del cfg.algo[name]
    kind, own = (node._target_.rpartition(".")[2] for node in (cfg.algo, preset.algo))
    keys = ", ".join(f"algo.{name}" for name in names)
    warnings.warn(f"the preset sets {keys}, which {own} has and {kind} has not: left out", LeftOut, stacklevel=2)
