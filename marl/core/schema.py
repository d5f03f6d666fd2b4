"""Checks keys and values against a signature: names, types and ranges, each mistake in one sentence."""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from marl.core.errors import UserError, closest

HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
Node = dict[str, Any] | None
UNREADABLE = (NameError, AttributeError, SyntaxError)  # what evaluating an annotation may raise
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


@dataclass
class TopLevel:
    """The top of the configuration tree. Groups are checked against the classes they name, not here."""

    name: str
    seed: Annotated[int, Field(ge=0)]
    device: str
    task: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    trainer: dict[str, Any]
    frames: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    ckpt: str | None = None
    resume: str | None = None
    init_from: str | None = None
    strict: bool = True
    init_map: Node = None
    experiment: str | None = None
    env: Node = None
    algo: Node = None
    network: Node = None
    critic_network: Node = None
    data: Node = None
    objective: Node = None
    logger: Node = None
    callbacks: Node = None
    groups: Node = None
    curriculum: Node = None
    paths: Node = None
    zoo: Node = None


def check_arguments(target: Callable, node: Mapping[str, Any], path: str, given: Iterable[str] = ()) -> None:
    """Compare the keys and values of `node` with the signature of `target`; `given` are filled in by code.

    Raises:
        UserError: an unknown or missing key, or a value of a wrong type or out of range.
    """
    parameters = signature(target)
    named = {k: p for k, p in parameters.items() if p.kind not in (*POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    prefix = f"{path}." if path else ""
    keys = [k for k in node if k not in HYDRA_KEYS]
    for key in keys:
        if key not in named and not takes_any:
            allowed = ", ".join(named) or "none"
            raise UserError(f"unknown key '{prefix}{key}'{closest(key, named)} (allowed are {allowed})")
    if not node.get("_partial_") and not node.get("_args_"):
        for key, parameter in named.items():
            if parameter.default is parameter.empty and key not in node and key not in given:
                raise UserError(f"missing key '{prefix}{key}', which {target.__name__} needs")
    for key in keys:
        parameter = named.get(key)
        if parameter is None or parameter.annotation is parameter.empty or _has_target(node[key]):
            continue
        if parameter.default is not parameter.empty and _same(node[key], parameter.default):
            continue  # libraries annotate `x: float = None`: a default is always allowed
        check_value(parameter.annotation, node[key], f"{prefix}{key}")


def check_value(annotation: Any, value: Any, key: str) -> None:
    """Compare one plain value with a type annotation, strictly: `true` is no number, `1.5` no whole number.

    Raises:
        UserError: for example `algo.gamma=1.5: must be at most 1`.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return
    try:
        # JSON mode: strict about scalars, yet a YAML list may fill a tuple and a YAML string a Path
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise UserError(_sentence(error, value, key)) from None


def show(value: Any) -> str:
    """A value as one writes it on the command line: `null`, `true`, `text`, `[1,2]`."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def signature(target: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function by name, with their annotations evaluated where that is possible."""
    try:
        return dict(inspect.signature(target, eval_str=True).parameters)
    except UNREADABLE:  # a library's annotation that exists for type checkers only: names are still checked
        parameters = dict(inspect.signature(target).parameters)
        text = {k: p for k, p in parameters.items() if isinstance(p.annotation, str)}
        return parameters | {k: p.replace(annotation=p.empty) for k, p in text.items()}
    except ValueError:  # a class written in C may have no signature: anything goes
        return {"any": inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)}


def returned(function: Callable) -> Any:
    """What a function says it returns; `inspect.Signature.empty` where it says nothing that can be read."""
    try:
        return inspect.signature(function, eval_str=True).return_annotation
    except (*UNREADABLE, ValueError):
        return inspect.Signature.empty


def _adapter(annotation: Any) -> TypeAdapter | None:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # not hashable: a Field with a list in it
        return _new_adapter(annotation)


def _new_adapter(annotation: Any) -> TypeAdapter | None:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code == "type-adapter-config-unused":  # a dataclass or a model brings its own configuration
            return TypeAdapter(annotation)
        if isinstance(error, PydanticSchemaGenerationError):  # an exotic annotation: nothing to check
            return None
        raise


_cached_adapter = cache(_new_adapter)


def _has_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _same(value: Any, default: Any) -> bool:
    scalar = isinstance(value, (str, int, float, type(None)))
    return scalar and type(value) is type(default) and value == default


WORDS = {
    "Input should be ": "must be ",
    "Input should ": "must ",
    "less than or equal to": "at most",
    "greater than or equal to": "at least",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid array": "a list",
    "a valid dictionary": "a mapping of keys to values",
    "an object": "a mapping of keys to values",
    "must be None": "must be null",
    "List should have": "must have",
    " after validation, not 0": "",
}
RANGES = ("greater_than", "less_than", "multiple_of", "too_short", "too_long", "finite")


def _sentence(error: ValidationError, value: Any, key: str) -> str:
    errors = error.errors(include_url=False)
    python_only = [e for e in errors if e["type"] not in ("needs_python_object", "is_instance_of")]
    ranges = [e for e in errors if any(word in e["type"] for word in RANGES)]
    errors = ranges or python_only or errors
    key, value = _locate(errors[0]["loc"], value, key)
    phrases = [_phrase(item, value) for item in errors]
    phrases = phrases[:1] + [phrase.removeprefix("must be ") for phrase in phrases[1:]]
    expected = [item.get("ctx", {})["expected"] for item in errors if item["type"] == "literal_error"]
    hint = closest(value, ", ".join(expected).replace(" or ", ", ").replace("'", "").split(", "))
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) and "number" in phrases[0]:
        mantissa, power = value.lower().split("e")
        hint = f" (YAML takes it for text: write {float(mantissa)}e{int(power):+d})"
    return f"{key}={show(value)}: {' or '.join(dict.fromkeys(phrases))}{hint}"


def _phrase(item: Mapping[str, Any], value: Any) -> str:
    phrase = item["msg"]
    for old, new in WORDS.items():
        phrase = phrase.replace(old, new)
    if item["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        phrase += f" (write {value:.0f})"
    if item["type"] in ("needs_python_object", "is_instance_of"):
        phrase = "must be an object, made by a node with a _target_"
    return phrase


def _locate(location: tuple, value: Any, key: str) -> tuple[str, Any]:
    """Follow pydantic's location into lists and mappings, passing over its labels of union members."""
    for step in location:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            key, value = f"{key}[{step}]", value[step]
        elif isinstance(value, Mapping) and step in value:
            key, value = f"{key}.{step}", value[step]
    return key, value
