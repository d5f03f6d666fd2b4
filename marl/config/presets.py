"""Options of `conf/` for Python: the objects that `algo=mappo` or `optimizer=adam` stand for, read without Hydra."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from marl.config.conf_tree import CONF, group_options
from marl.core.errors import UserError, closest
from marl.core.files import read_yaml
from marl.core.imports import require_checkout
from marl.core.kinds import Unbuilt, build, check

OVERRIDE = re.compile(r"override /(\w+)(?:@\S+)?")  # another group that an option chooses: the task, the network


def preset(option: str, **settings: Any) -> Any:
    """The object that an option of the configuration stands for, such as "algo/mappo" or "optimizer/adam".

    What is built later with a seed or sizes ("env/vmas/balance", "network/mlp") is a `functools.partial`, as the
    configuration's own `_partial_: true`.

    Args:
        option: GROUP/NAME, a file of `conf/` without its ending.
        settings: keys of that file with other values.

    Raises:
        UserError: no such option, an unknown key, or a value of a wrong type or out of range.
    """
    node = {**node_of_option(option), **settings}
    check(node, Unbuilt, option.partition("/")[0])
    return build(node)


def node_of_option(option: str) -> dict[str, Any]:
    """What the file of an option holds, with what it builds on. Raises UserError where it is none that builds one."""
    node = dict(_composed(option)[0])
    if "_target_" not in node:
        raise UserError(f"preset {option!r}: names no class, but settings of a whole run; python scripts/train.py has "
                        f"it: {option.replace('/', '=', 1)}")  # fmt: skip
    if unresolved := [key for key, value in _leaves(node) if isinstance(value, str) and "${" in value]:
        raise UserError(f"preset {option!r}: {unresolved[0]} is filled in from a whole configuration; give its value")
    return node


def choices_of(kind: type) -> dict[str, str]:
    """{group: option} that the configuration chooses beside an algorithm of this class, its bases included.

    "task" is always among them. Raises UserError for a class of which `conf/algo` has no option.
    """
    chosen = _choices()
    for each in kind.__mro__:
        path = f"{each.__module__}.{each.__qualname__}"
        if path in chosen:
            return {"task": "on_policy", "network": "mlp", "optimizer": "adam", **chosen[path]}
    raise UserError(f"algo: {kind.__name__} has no option in conf/algo; build its task yourself: OnPolicy(env, …)")


@cache
def _choices() -> dict[str, dict[str, str]]:
    """{path of an algorithm's class: what its first option chooses}."""
    chosen: dict[str, dict[str, str]] = {}
    for name in group_options("algo"):
        node, choices = _composed(f"algo/{name}")
        chosen.setdefault(node["_target_"], choices)
    return chosen


def _composed(option: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(the merged content of an option, {group: option} that it overrides)."""
    group, _, name = option.partition("/")
    path = CONF / f"{option}.yaml"
    if not name or not path.is_file():
        require_checkout()
        if not (CONF / group).is_dir():
            name, group = group, "conf"
            names = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
        else:
            names = group_options(group)
        what = f"{group} has no {name!r}{closest(name, names)}"
        raise UserError(f"preset {option!r}: {what}; there are {', '.join(names)}")
    content = read_yaml(path)
    entries = content.pop("defaults", [])
    node: dict[str, Any] = {}
    choices: dict[str, str] = {}
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        if isinstance(entry, Mapping):  # {override /task@…: off_policy}
            place, chosen = next(iter(entry.items()))
            if match := OVERRIDE.match(place):
                choices[match[1]] = chosen
        elif entry == "_self_":
            node = _merged(node, content)
        else:
            name = entry.partition("@")[0]
            below, earlier = _composed(name[1:] if name[0] == "/" else f"{path.parent.relative_to(CONF)}/{name}")
            node, choices = _merged(node, below), {**choices, **earlier}
    return node, choices


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nodes, one on the other: mappings are merged, everything else is replaced."""
    both = {
        key: _merged(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _leaves(child, f"{path}[{i}]")
    else:
        yield path, value
