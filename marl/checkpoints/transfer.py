"""Transfer: a new run that starts from saved weights, all of them or those that fit."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marl.checkpoints import checkpoint_file, mapping
from marl.core import distributed, run_directory
from marl.core.errors import UserError
from marl.core.schema import show
from marl.task import Task


@dataclass
class Loaded:
    """What became of each name: loaded {target: source}, skipped (in the file only), missing (in the task only),
    mismatched {target: (saved shape, the task's shape)}; and notes, sentences on what was changed to fit."""

    loaded: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line per kind that occurred."""
        shapes = [f"{name} {old} -> {new}" for name, (old, new) in self.mismatched.items()]
        kinds = {"loaded": list(self.loaded), "skipped (not in this task)": self.skipped}
        kinds |= {"missing (keeps its initial values)": self.missing, "mismatched (keeps its initial values)": shapes}
        return self.notes + [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def begin_from(task: Task, source: str, strict: bool, init_map: Mapping[str, Any] | None = None) -> None:
    """Load the weights that `init_from` names, and say what was loaded unless it is everything.

    init_map: groups under other names, features in other places (`marl.checkpoints.mapping.read`).
    """
    path = run_directory.find(source)
    if init_map:
        lines = load_mapped(task, path, init_map, strict)
    else:
        loaded = load_weights(task, path, strict)
        lines = loaded.notes if strict else loaded.lines()
    if lines and distributed.main():
        print(f"init_from={path}:", *lines, sep="\n  ", flush=True)


def load_weights(task: Task, path: str | Path, strict: bool = True) -> Loaded:
    """Put the weights of a checkpoint or a `.safetensors` file into `task.loss`.

    strict: all of them and nothing else, or UserError. Otherwise what fits by name and shape; then a network per agent
    that the file lacks is filled with its first one, and a supervised model is put into every actor (its input scaling
    becomes part of its first layer).

    Raises UserError where the file can't be read, doesn't fit (strict), or nothing of it fits.
    """
    saved = checkpoint_file.load_weights(path, next(task.loss.parameters()).device)
    if not strict:
        return load_fitting(task.loss, saved, path)
    notes = _complete(task.loss, saved)
    try:
        task.loss.load_state_dict(saved)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        why = message.partition(f"{type(task.loss).__name__}: ")[2] or message
        short = why if len(why) <= 300 else f"{why[:300].rpartition(' ')[0]} …"
        raise UserError(
            f"{path} does not fit this task's networks: {short} (init_from with strict=false loads what fits)"
        ) from error
    return Loaded({name: name for name in saved}, notes=notes)


def _complete(module: nn.Module, saved: dict[str, Tensor]) -> list[str]:
    """Let a loss that knows how (`complete`) change `saved` so that it fits; sentences on what it changed."""
    complete: Callable[..., list[str] | None] | None = getattr(module, "complete", None)
    return (complete(saved) if complete else None) or []


def load_policy(task: Task, path: str | Path) -> None:
    """Put the weights of a policy file into a task that is to be judged: its actors, and the critics that it has.

    Raises UserError where the file can't be read, holds anything else, or lacks a weight of an actor.
    """
    saved = checkpoint_file.load_weights(path, next(task.loss.parameters()).device)
    _complete(task.loss, saved)
    try:
        missing, others = task.loss.load_state_dict(saved, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this task's networks: {' '.join(str(error).split())[:300]}") from error
    lacking = [*(name for name in missing if name.startswith("actors.")), *others]
    if lacking:
        raise UserError(f"{path} does not fit this task's networks: {', '.join(lacking)[:300]}")


def load_mapped(task: Task, path: str | Path, init_map: Mapping[str, Any], strict: bool = True) -> list[str]:
    """Put the weights of groups that `init_map` names into the task's; one sentence each on what was taken and not.

    strict: all weights of these groups must come from the file; else those that fit.

    Raises:
        UserError: the task has no groups, or as `mapping.read`, `load_weights` and `load_fitting`.
    """
    if not hasattr(task.loss, "actors") or not hasattr(task, "spec"):
        raise UserError(f"init_map={show(init_map)}: maps groups of agents, of which this task has none")
    saved, described = checkpoint_file.load_weights(path, next(task.loss.parameters()).device), {}
    if Path(path).suffix != ".safetensors":
        described = checkpoint_file.load(path)["processes"][0]["task"].get("spec", {}).get("groups", {})
    there = dict.fromkeys(match[1] for match in (re.match(r"actors\.([^.]+)\.", name) for name in saved) if match)
    old = {name: mapping.side(described[name]) if name in described else _seen(saved, name) for name in there}
    of_agents: Any = task  # no kind of task is known here
    new = {name: mapping.side(of_agents.spec.groups[name]) for name in of_agents.loss.actors}
    maps = mapping.read(init_map, new, old)
    weights = task.loss.state_dict()
    renamed = mapping.mapped(saved, weights, maps)
    if strict:
        for one in maps:
            for name in (n for n in weights if n.split(".")[:2] in (["actors", one.group], ["critics", one.group])):
                source = next((s for s in _sources(name) if s in renamed), None)
                if source is None or renamed[source].shape != weights[name].shape:
                    shape = "is not in it" if source is None else f"is {list(renamed[source].shape)} there"
                    raise UserError(
                        f"init_map.{one.group}: {name} {list(weights[name].shape)} {shape}, and all weights of the "
                        "group must come from the file (strict=false takes what fits)"
                    )
    result = load_fitting(task.loss, renamed, path)
    groups = [f"{one.group} begins as {one.source}" for one in maps]
    left = [name for name in there if name not in {one.source for one in maps}]
    lines = [", ".join(groups), *(one.told() for one in maps if one.columns is not None)]
    return lines + [f"groups not taken: {', '.join(left)}"] * bool(left) + result.lines()


def _seen(saved: Mapping[str, Tensor], group: str) -> mapping.Side:
    """How a group was, as far as weights without a description tell: as wide as its actor's first layer."""
    body = [name for name, value in saved.items() if name.startswith(f"actors.{group}.network") and value.dim() == 2]
    if not body:
        raise UserError(f"init_map: the weights of {group} say nothing of its observations; give a checkpoint (.pt)")
    return mapping.Side(saved[min(body, key=_depth)].shape[1])


def _depth(name: str) -> tuple[bool, list[tuple[str, int]]]:
    """Sorts a network's weights by layers, its head last: a .safetensors file has no order of its own."""
    parts = name.split(".")
    return "head" in parts, [("", int(part)) if part.isdigit() else (part, 0) for part in parts]


def load_fitting(module: nn.Module, saved: Mapping[str, Tensor], path: str | Path) -> Loaded:
    """Copy into `module` whatever of `saved` fits; UserError naming `path` where nothing does."""
    saved = dict(saved)
    if any(name.startswith("model.") for name in saved) and hasattr(module, "actors"):
        saved = unscaled(saved, path)
    notes = _complete(module, saved)  # older files say less, and those of other algorithms something else
    result, used = Loaded(notes=notes), set()
    weights = module.state_dict()
    for name, value in weights.items():
        source = next((s for s in _sources(name) if s in saved), None)
        if source is None:
            result.missing.append(name)
        elif saved[source].shape != value.shape:
            result.mismatched[name] = (list(saved[source].shape), list(value.shape))
        else:
            value.copy_(saved[source])
            result.loaded[name] = source
        used.add(source)
    result.skipped = [name for name in saved if name not in used]
    if not result.loaded:
        raise UserError(f"{path}: nothing of it fits this task's networks; {'; '.join(result.lines())[:300]}")
    return result


def _sources(name: str) -> list[str]:
    """Names under which a file may hold the weight `name`, the best first."""
    first = re.sub(r"\.networks\.\d+\.", ".networks.0.", name)
    model = re.sub(r"^actors\.[^.]+\.network\.networks\.\d+\.", "model.", name)
    return list(dict.fromkeys([name, first, model]))


def unscaled(saved: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """A supervised model's weights with its scaling made part of its first and last layers, which must be linear."""
    saved = _targets_unscaled(saved, path)
    shift, scale = saved.pop("shift", torch.zeros(1)), saved.pop("scale", torch.ones(1))
    if not shift.any() and (scale == 1).all():
        return saved
    first = next((name for name in saved if name.startswith("model.") and name.endswith("weight")), "")
    bias = first.removesuffix("weight") + "bias"
    if not first or saved[first].dim() != 2 or bias not in saved:
        raise UserError(f"{path}: scales the inputs of a first layer that is not linear; train it with normalise=false")
    wide = saved[first].shape[1]
    try:
        shift, scale = (value.flatten().expand(wide) for value in (shift, scale))
    except RuntimeError as error:
        raise UserError(f"{path}: scales its inputs otherwise than its first layer reads them") from error
    saved[bias] = saved[bias] - saved[first] @ (shift / scale)
    saved[first] = saved[first] / scale
    return saved


def _targets_unscaled(saved: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The same of the scaling of its targets, y * scale + shift, in its last layer."""
    if "target_scale" not in saved:
        return saved
    shift, scale = saved.pop("target_shift"), saved.pop("target_scale")
    last = next((name for name in reversed(saved) if name.startswith("model.") and name.endswith("weight")), "")
    bias = last.removesuffix("weight") + "bias"
    if not last or saved[last].dim() != 2 or len(saved[last]) != len(scale) or bias not in saved:
        raise UserError(f"{path}: scales the outputs of a last layer that is not linear; train it with "
                        "data.standardize_targets=false")  # fmt: skip
    return saved | {last: saved[last] * scale.unsqueeze(1), bias: saved[bias] * scale + shift}
