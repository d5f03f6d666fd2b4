"""The configuration that objects of Python stand for: what `config.yaml` must say to build them again."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

from marl.core.errors import UserError
from marl.core.imports import resolve
from marl.core.schema import TopLevel

TOP = frozenset(field.name for field in fields(TopLevel))
PLAIN = (str, int, float, bool, type(None))


def remembers_arguments(init: Callable) -> Callable:
    """Decorates an `__init__`: the object keeps what it was built with in `built_with`, for `node_of`.

    Of a subclass with an `__init__` of its own, that one must be decorated.
    """

    @wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is wrapped:
            self.built_with = args, kwargs
        init(self, *args, **kwargs)

    return wrapped


def node_of(value: Any, key: str) -> Any:
    """What a configuration says to build `value` again: plain values, and mappings with a `_target_`.

    Raises:
        UserError: no configuration can name it; the sentence begins with `key`.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Path | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): node_of(child, f"{key}.{name}") for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [node_of(child, f"{key}[{i}]") for i, child in enumerate(value)]
    if isinstance(value, type):
        return {"_target_": path_of(value, key), "_partial_": True}
    if isinstance(value, partial):
        arguments = _bound(value.func, value.args, value.keywords, key)
        return {"_target_": path_of(value.func, key), "_partial_": True} | _nodes(arguments, key)
    if is_dataclass(value):
        arguments = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    elif hasattr(value, "built_with"):
        args, kwargs = value.built_with
        arguments = _bound(type(value), args, kwargs, key, defaults=True)
    else:
        raise UserError(f"{key}: an object of {type(value).__name__}, of which nothing says how it was built; give a "
                        "class, a functools.partial of one or a dataclass")  # fmt: skip
    return {"_target_": path_of(type(value), key)} | _nodes(arguments, key)


def path_of(kind: Any, key: str) -> str:
    """The dotted path of a class or function. Raises UserError where another process could not import it by that."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__ == "__main__" or "<" in path:
        raise UserError(f"{key}={path}: lies in no module that another process could import; put it into a file of its "
                        "own")  # fmt: skip
    if resolve(path, key) is not kind:
        raise UserError(f"{key}={path}: is not what that path names")
    return path


def config_of_run(task: object, trainer: object, optimizer: object, schedule: object, **more: Any) -> dict[str, Any]:
    """The whole configuration of a run, as `marl.config.compose.check` returns one; `more` are further keys of it.

    Raises:
        UserError: one of the parts cannot be described.
    """
    whole = node_of(task, "task")
    top = {key: value for key, value in whole.items() if key in TOP}
    name = (top.get("env") or {}).get("scenario", "run")
    config = {"name": name, "seed": 0, "frames": None, "epochs": None, "device": "cpu", "ckpt": None, "resume": None}
    config |= {"init_from": None, "strict": True, "init_map": {}, "experiment": None, "env": None, "algo": None}
    config |= {"network": None, "critic_network": None, "data": None, "objective": None, "callbacks": {}, "logger": {}}
    config |= {**top, "groups": top.get("groups") or {}, "curriculum": top.get("curriculum") or {}}
    config["task"] = {key: value for key, value in whole.items() if key not in TOP}
    parts = {"trainer": trainer, "optimizer": optimizer, "scheduler": schedule}
    return config | {key: node_of(part, key) for key, part in parts.items()} | more


def _bound(target: Callable, args: tuple, kwargs: Mapping, key: str, defaults: bool = False) -> dict[str, Any]:
    try:
        bound = inspect.signature(target).bind_partial(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{key}: {target.__name__} was not built with its own arguments: {error}") from error
    if defaults:
        bound.apply_defaults()
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    if any(kinds[name] is inspect.Parameter.VAR_POSITIONAL and value for name, value in bound.arguments.items()):
        raise UserError(f"{key}: {target.__name__} takes arguments without names, which a configuration has not")
    rest = {name for name in bound.arguments if kinds[name] is inspect.Parameter.VAR_KEYWORD}
    named = {name: value for name, value in bound.arguments.items() if name not in rest}
    return named | {name: value for each in rest for name, value in bound.arguments[each].items()}


def _nodes(arguments: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: node_of(value, f"{key}.{name}") for name, value in arguments.items()}
