"""What people write on a command line, made into what Hydra reads: paths as they are, plain words for mistakes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict

from marl.config.conf_tree import CONF, group_options
from marl.core.errors import UserError, closest

# What needs no "+" to be added: keys below groups, curriculum, scenario_kwargs and the like, and mappings whose keys
# are names.
NAMES = r"unfreeze|(lr_)?per_part|categories|encoders|losses|weights|init|info|\w*kwargs"
FREE = re.compile(
    rf"^([\w.]*(kwargs|encoders)|groups|curriculum|init_map)\.\w|^(curriculum|init_map)=\{{|^[\w.]+\.({NAMES})=\{{"
)
PATH = re.compile(r"(^|\.)(resume|init_from|ckpt|out|\w*(folder|file|path|dir))$")  # keys whose values are paths
NEEDED = ("task", "trainer", "optimizer", "scheduler", "paths")  # groups that every run has
# What the agents live in, by the key that names it, and its keyword arguments.
KEYWORDS = {"env.scenario": "scenario_kwargs", "env.env": "kwargs", "env.id": "kwargs"}


def tidy(overrides: Sequence[str]) -> list[str]:
    """Command-line overrides as Hydra reads them; flags pass.

    Free-form keys need no "+", `env=null` empties a group as `~env` does, and a path may have any characters.

    Raises:
        UserError: what is no key=value, or a group whose option is no name.
    """
    return [text if text.startswith("-") else _tidied(text) for text in overrides]


def _tidied(text: str) -> str:
    key, equals, value = text.partition("=")
    bare = key.lstrip("+~")
    if equals and not re.fullmatch(r"[\w./$\-]+(@[\w./\-:]*)?", bare):
        raise UserError(f"cannot read {text!r}: write key=value, with quotes around special characters")
    if equals and bare == "hydra":
        raise UserError(f"{text}: hydra's own settings are single keys, such as hydra.run.dir=FOLDER")
    if equals and FREE.match(text.lstrip("+")) and not key.startswith("~"):
        return f"++{text.lstrip('+')}"
    group = bare.partition("@")[0]
    if equals and (CONF / group).is_dir() and "." not in group:
        return _of_group(text, key, group, value)
    return f"{key}={quoted(value)}" if PATH.search(bare) else text


def _of_group(text: str, key: str, group: str, value: str) -> str:
    """A choice of a group's option, or of none. Raises UserError where the option is a number, a list of such, …"""
    if value == "null" and "@" not in key:
        if group in NEEDED:
            raise UserError(f"{text}: every run has one; choose one of {', '.join(group_options(group))}")
        return f"~{key.lstrip('+~')}"
    try:
        override = OverridesParser.create().parse_override(text)
    except OverrideParseException:
        return text  # Hydra says what is wrong
    options = [] if override.is_sweep_override() or override.is_delete() else override.value()
    options = options if isinstance(options, list) else [options]
    for option in options:
        if option is not None and not isinstance(option, str):
            known = group_options(group)
            raise UserError(f"{group}={value}: no such option (there are {', '.join(known)})")
    return text


def quoted(value: str) -> str:
    """A path as Hydra reads it: in quotes where it would be read as something else, or not at all.

    What means something to Hydra (quotes of its own, a list, several values of a sweep) stays, unless a file or folder
    of that very name is there.
    """
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
        if not override.is_sweep_override() and override.value() == value or not _exists(value):
            return value
    except HydraException:
        pass
    inside = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)  # backslashes count before a quote only
    inside = re.sub(r"(\\+)$", lambda m: m[1] * 2, inside)
    return f"'{inside}'"


def _exists(value: str) -> bool:
    try:
        return bool(value) and Path(value).exists()
    except (OSError, ValueError):  # too long a name, a NUL
        return False


def plain(text: str) -> str:
    """A path that was written in quotes of its own, `ckpt='"my run"'`, without them; others as they are."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" and not _exists(text):
        try:
            return str(OverridesParser.create().parse_override(f"key={text}").value())
        except HydraException:
            return text
    return text


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """The last value that overrides give a key of text; None: none, or null."""
    values = [text.partition("=")[2] for text in overrides if text.partition("=")[0].lstrip("+") == key]
    return None if not values or values[-1] in ("", "null") else plain(values[-1])


def chosen(override: Override) -> bool:
    """Whether an override chooses an option of a group, such as `env=vmas/balance`."""
    return (CONF / override.key_or_group).is_dir() and not override.is_delete()


def named(overrides: Sequence[str]) -> list[str]:
    """The keys of KEYWORDS by which overrides name another scenario or environment."""
    keys = [text.partition("=")[0].lstrip("+") for text in overrides]
    return [key for key in KEYWORDS if key in keys]


def before(overrides: Sequence[str]) -> list[str]:
    """Overrides but for what they name by KEYWORDS, and the keyword arguments of that."""
    about = (*KEYWORDS, *(f"env.{kwargs}" for kwargs in KEYWORDS.values()))
    return [text for text in overrides if not re.match(rf"({'|'.join(about)})\b", text.lstrip("+~"))]


def drop_keywords(cfg: DictConfig, earlier: DictConfig, overrides: Sequence[str]) -> None:
    """Where `overrides` name another scenario than `earlier` has, leave only the keyword arguments that they give, too.

    Those of one scenario, or of one environment, mean nothing to another.
    """
    for key in named(overrides):
        node = f"env.{KEYWORDS[key]}"
        keywords = OmegaConf.select(cfg, node)
        if not keywords or OmegaConf.select(cfg, key) == OmegaConf.select(earlier, key):
            continue
        new_keywords = _given(node, overrides)
        with open_dict(cfg):
            for name in [name for name in keywords if name not in new_keywords]:
                del keywords[name]


def _given(node: str, overrides: Sequence[str]) -> set[str]:
    """The keys below a node of the configuration that overrides give."""
    keys: set[str] = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        if name == node and not override.is_delete():
            value: Any = override.value()
            keys |= set(value or {})
        elif name.startswith(f"{node}."):
            keys.add(name.removeprefix(f"{node}.").partition(".")[0])
    return keys


def same_task(one: DictConfig | None, other: DictConfig | None) -> bool:
    """Whether two nodes `env` are of one scenario or environment."""
    keys = ("_target_", *(key.removeprefix("env.") for key in KEYWORDS))
    return all(OmegaConf.select(one, key) == OmegaConf.select(other, key) for key in keys) if one and other else False


def take_task(env: DictConfig, own: DictConfig, overrides: Sequence[str]) -> None:
    """Make the task's settings in `env` those of `own`, its option: what a preset sets is of the preset's own task.

    They are the keyword arguments and the time limit; what `overrides` give stays.
    """
    given = _given("env", overrides)
    with open_dict(env):
        for node in {node for node in KEYWORDS.values() if node in env and node in own}:
            kept = _given(f"env.{node}", overrides)
            mine = {name: value for name, value in env[node].items() if name in kept}
            env[node] = {**own[node], **mine}
        if "max_steps" in own and "max_steps" not in given:
            env.max_steps = own.max_steps


def nearest(group: str, option: str) -> str:
    """A sentence about an option that a group lacks."""
    options = group_options(group)
    return f"{group}={option}: no such option{closest(option, options)} (there are {', '.join(options)})"
