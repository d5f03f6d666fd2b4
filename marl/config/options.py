"""Options of the scripts that work on finished runs: key=value, checked against a dataclass."""

import os.path
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

import yaml

from marl.config.overrides import plain
from marl.core.errors import UserError, closest
from marl.core.schema import TopLevel, check_arguments

SHOWN = {"ckpt": "RUN_DIR", "study": "NAME"}  # required options, as help shows them
CONFIGURATION = {field.name for field in fields(TopLevel)} | {"debug"}


def split(options: type, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of those `key=value` that the dataclass `options` names, checked, and all other arguments.

    Text stays as it is, all else is YAML.

    Raises:
        UserError: a required key is missing, or a value has a wrong type or range.
    """
    hints, values, rest = get_type_hints(options), {}, []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in hints:
            rest.append(argument)
            continue
        written = hints[key] is str or set(get_args(hints[key])) == {str, type(None)}
        try:
            values[key] = (None if text == "null" else plain(text)) if written else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # more digits or brackets than Python reads
            raise UserError(
                f"cannot read {argument!r}: write key=value, with quotes around special characters"
            ) from None
    not_paths = [argument for argument in rest if not os.path.exists(argument)]  # never raises, however long the name
    for field in fields(options):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            near = [a.partition("=")[2] for a in not_paths if closest(a.partition("=")[0], [field.name]) and "=" in a]
            near += [a for a in rest if "=" not in a or a not in not_paths]
            hint = f"; did you mean '{field.name}={near[0]}'?" if near else ""
            raise UserError(f"{field.name}={SHOWN.get(field.name, '…')} is needed{hint}")
    check_arguments(options, values, "")
    for key in [argument.partition("=")[0] for argument in not_paths if "=" in argument]:
        if key.isidentifier() and key not in CONFIGURATION and closest(key, hints):
            raise UserError(f"unknown option '{key}'{closest(key, hints)} (there are {', '.join(hints)})")
    return values, rest


def parse(options: type, arguments: Sequence[str]) -> Any:
    """An instance of the dataclass `options`, of scripts that take nothing else (`split`).

    Raises:
        UserError: no key=value, an unknown key, a missing one, or a value of a wrong type or range.
    """
    names = [field.name for field in fields(options)]
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals and not os.path.exists(argument):
            raise UserError(f"cannot read {argument!r}: write key=value")
        if equals and key not in names:
            raise UserError(f"unknown key '{key}'{closest(key, names)} (allowed are {', '.join(names)})")
    values, places = split(options, arguments)
    if places:
        raise UserError(f"cannot read {places[0]!r}: write key=value")
    return options(**values)


def parse_runs(options: type, arguments: Sequence[str], which: str) -> tuple[list[str], Any, list[str]]:
    """Runs, an instance of `options`, and overrides of the runs' configurations.

    Raises:
        UserError: no runs (`which` says what they are for), or as `split`.
    """
    values, rest = split(options, arguments)
    runs = [a for a in rest if "=" not in a or os.path.exists(a)]
    if not runs:
        raise UserError(f"name the runs {which}: RUN_DIR…")
    return runs, options(**values), [a for a in rest if a not in runs]
