"""What may stand where in a configuration: only classes of the kind that their place asks for are ever called.

A configuration may come from anywhere: with a run directory, a checkpoint, a policy file. So a `_target_` names a
class, and the parameter that the object is for says of which kind, by its annotation: `objective: nn.Module`,
`env: Callable[..., Env]`, `augment: Sequence[Augment]`. Where nothing is said, it is a `torch.nn.Module`.
"""

import collections.abc
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Union, get_args, get_origin

from torch import Tensor, nn

from marl.core.errors import UserError
from marl.core.imports import OWN_OF_PYTHON, resolve
from marl.core.schema import HYDRA_KEYS, TopLevel, check_arguments, returned, show, signature

# The groups of a configuration that are not parts of the task, by what they build: MODULE.CLASS of our own.
GROUPS = {
    "task": "marl.task.Task",
    "trainer": "marl.engine.trainer.Trainer",
    "optimizer": "marl.optim.optimizer_config.OptimizerConfig",
}
GROUPS |= {"scheduler": "marl.optim.lr_schedule.ScheduleConfig"}
NAMED = {"callbacks": "marl.callbacks.base.Callback", "logger": "marl.loggers.loggers.Logger"}  # mappings {name: node}
ANY = nn.Module
SCALARS = (str, int, float, bool, complex, bytes, type(None), Tensor, object)


def validate(cfg: Mapping[str, Any]) -> None:
    """Check a whole configuration: plain, resolved dicts, lists and scalars. Nothing is called.

    Every node with a `_target_` names a class of its place's kind and is compared with that class's signature: names
    of keys, missing keys (not where `_partial_: true`), types and ranges of values by the annotations; the top level
    with `marl.core.schema.TopLevel`. The task's parts (`env`, `network`, `seed`, …) are other nodes of the tree, so it
    may lack them. Of a group that the task does not take, so that it is never built, only the signature is looked at.

    Raises:
        UserError: the first mistake found, in one sentence that names the key, its value and what is allowed.
    """
    check_arguments(TopLevel, cfg, "")
    group_kinds = {key: resolve(path, key) for key, path in GROUPS.items()}
    for key, kind in group_kinds.items():
        required(cfg[key], kind, key, given=cfg if key == "task" else ())
    for key, path in NAMED.items():
        for name, node in (cfg.get(key) or {}).items():
            if node is not None:
                required(node, resolve(path, key), f"{key}.{name}")
    parts = signature(resolve(cfg["task"]["_target_"], "task._target_"))
    for key, value in cfg.items():
        if key not in group_kinds and key not in NAMED:
            check(value, parts[key].annotation if key in parts else Unbuilt, key)


class Unbuilt:
    """The annotation of what no code calls: any class may be named."""


def required(node: Any, annotation: Any, key: str, given: Iterable[str] = ()) -> None:
    """`check`, of a place where a node must stand. Raises UserError."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        message = f"must be a node with a _target_ that names a {' or '.join(map(_called, kinds(annotation)))}"
        raise UserError(f"{key}={show(node)}: {message}")
    check(node, annotation, key, given)


def check(value: Any, annotation: Any, key: str, given: Iterable[str] = ()) -> None:
    """Check every node in `value`, which is for a parameter with this annotation; `given` are filled in by code.

    Raises:
        UserError: a target of another kind, or a key or value that its signature refuses.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        target = admitted(value["_target_"], annotation, key)
        check_arguments(target, value, key, given)
        parameters = signature(target)
        rest = next((p.annotation for p in parameters.values() if p.kind is p.VAR_KEYWORD), Any)
        for name, child in value.items():
            if name not in HYDRA_KEYS:
                expected = parameters[name].annotation if name in parameters else rest
                check(child, Unbuilt if annotation is Unbuilt else expected, f"{key}.{name}")
        ordered = [p.annotation for p in parameters.values()]
        for i, child in enumerate(value.get("_args_") or ()):
            expected = Unbuilt if annotation is Unbuilt else (ordered[i] if i < len(ordered) else Any)
            check(child, expected, f"{key}._args_[{i}]")
    elif isinstance(value, Mapping):
        for name, child in value.items():
            check(child, annotation, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            check(child, annotation, f"{key}[{i}]")


def admitted(path: Any, annotation: Any, key: str) -> Callable:
    """What `path` names, of a kind that the annotation allows.

    Raises:
        UserError: there is none such, or it is no class, or of another kind.
    """
    target = resolve(path, f"{key}._target_")
    if annotation is Unbuilt:
        return target
    allowed = kinds(annotation)
    if not isinstance(target, type) or not any(_is(target, kind) for kind in allowed):
        names = " or ".join(map(_called, allowed))
        raise UserError(f"{key}._target_={path}: must be a class of the kind {names}" if allowed else
                        f"{key}._target_={path}: {key} takes a plain value, no node")  # fmt: skip
    return target


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The classes that a parameter's annotation allows nodes of; () where only plain values go.

    Containers stand for what they hold, `Callable[..., C]` for a C to be built later, or for an object that is called
    with such arguments.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (inspect.Parameter.empty, Any, dict, list, tuple, Mapping, Callable):
        return (ANY,)
    if origin is Annotated:
        return kinds(arguments[0])
    if origin in (Union, types.UnionType):
        allowed = [kind for each in arguments if each is not type(None) for kind in kinds(each)]
        return tuple(dict.fromkeys(allowed))
    if origin is collections.abc.Callable:
        result = kinds(arguments[-1]) if arguments else (ANY,)
        return result or ((annotation,) if isinstance(arguments[0], list) else ())
    if origin is not None and isinstance(origin, type) and issubclass(origin, collections.abc.Collection):
        contents = arguments[1:] if issubclass(origin, Mapping) else arguments
        return tuple(dict.fromkeys(kind for each in contents if each is not ... for kind in kinds(each)))
    kind = origin or annotation
    return (kind,) if isinstance(kind, type) and not issubclass(kind, SCALARS[:-1]) and kind is not object else ()


def _is(target: type, kind: Any) -> bool:
    """Whether a class is of a kind: a subclass; of a protocol, with its methods; of a callable, with its arguments."""
    if getattr(kind, "_is_protocol", False):
        needed = [name for name, method in vars(kind).items() if inspect.isfunction(method) and name[0] != "_"]
        return all(callable(getattr(target, name, None)) for name in needed)
    if isinstance(kind, type):
        return issubclass(target, kind)
    called = getattr(target, "__call__", None)  # noqa: B004 - of the class, whose instances are to be called
    return inspect.isfunction(called) and fits(partial(called, None), len(get_args(kind)[0]))


def function(path: Any, key: str, count: int) -> Callable:
    """The function (or class) with a dotted path, to be called with `count` arguments, which no file decides.

    Raises:
        UserError: there is none such, it is Python's own, written in C, or takes other arguments.
    """
    target = resolve(path, key)
    home = str(getattr(target, "__module__", "")).partition(".")[0]
    written = isinstance(target, type) or inspect.isfunction(target)
    if not written or home in OWN_OF_PYTHON or not fits(target, count):
        raise UserError(f"{key}={path}: must be a function or class of your own that takes {count} arguments")
    return target


def maker(path: Any, key: str, kind: type, conventional: str = "") -> Callable:
    """The class of a kind with a dotted path, or a function that makes one and says so: `def make(…) -> Kind`.

    conventional: the name of functions that are known to make one without saying so.

    Raises:
        UserError: there is none such, or what it names may make anything.
    """
    target = resolve(path, key)
    if isinstance(target, type) and _is(target, kind):
        return target
    home = str(getattr(target, "__module__", "")).partition(".")[0]
    if inspect.isfunction(target) and home not in OWN_OF_PYTHON:
        results = [one for one in kinds(returned(target)) if isinstance(one, type)]
        if any(_is(one, kind) for one in results) or (conventional and str(path).endswith(f".{conventional}")):
            return target
    hint = f", or called {conventional}" if conventional else ""
    raise UserError(
        f"{key}={path}: must be a subclass of {_called(kind)}, or a function that says it makes one, "
        f"def make(…) -> {kind.__name__}{hint}"
    )


def fits(called: Callable, count: int) -> bool:
    """Whether something can be called with `count` positional arguments."""
    try:
        inspect.signature(called).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """What a checked node stands for, called with `arguments` too; nodes in it are built first.

    `_partial_: true` gives the class with its arguments, to be called later; `_args_` are positional ones.
    """
    target = resolve(node["_target_"], "_target_")
    keywords = {key: _built(value) for key, value in node.items() if key not in HYDRA_KEYS} | arguments
    positional = [_built(value) for value in node.get("_args_") or ()]
    return partial(target, *positional, **keywords) if node.get("_partial_") else target(*positional, **keywords)


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _built(child) for key, child in value.items()}
    return [_built(child) for child in value] if isinstance(value, list | tuple) else value


def _called(kind: Any) -> str:
    if not isinstance(kind, type):
        return f"object that is called with {len(get_args(kind)[0])} arguments"
    return f"{kind.__module__}.{kind.__qualname__}".replace("torch.nn.modules.module.", "torch.nn.")
