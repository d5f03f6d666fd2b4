"""Resuming: which checkpoint a run goes on from, and what of its configuration may have changed meanwhile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marl.checkpoints import attachments, checkpoint_file
from marl.core import device, distributed
from marl.core.errors import UserError
from marl.core.imports import resolve
from marl.core.schema import show
from marl.core.zoo import index as zoo

# A change of these makes another run; what the checkpoint holds would contradict them, or silently win.
FIXED = ("seed", "data", "network", "critic_network", "objective", "optimizer", "scheduler", "groups", "curriculum")
ASKED = ("task", "env", "algo")  # the class that such a node names says which of its settings must stay
# Nothing learns from these.
QUIET = ("paths", "resume", "init_from", "init_map", "strict", "ckpt", "experiment", "name")


def resumed(config: Mapping[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """The content of the checkpoint that a run in `run_dir` goes on from; None: it begins.

    With `resume=FILE` that file, later ones being set aside; with `resume=RUN_DIR`, or after a restart by torchrun or
    Slurm, the newest good one. Says what differs in the configuration. Raises UserError as `compare` and
    `checkpoint.newest`, where a run's checkpoints are gone though it had some, and where a file that the checkpoint
    refers to (`marl.checkpoints.attachments`) is missing or damaged.
    """
    where = device.pick(config.get("device", "cpu"))
    file = Path(config["resume"]) if config["resume"] and Path(config["resume"]).is_file() else None
    if file:
        content = checkpoint_file.load(file, where)
    elif config["resume"] or distributed.restarted():
        content = (checkpoint_file.newest(run_dir, where) or (None, None))[1]
    else:
        return None
    if content is None:
        _begin_again(run_dir)
        return None
    lines = compare(config, content["config"])
    attachments.check(content, run_dir)  # before anything is moved
    later = checkpoint_file.branch(run_dir, file, content["iteration"]) if file and distributed.main() else []
    if distributed.agree(any(path.stem == "best" for path in later)):
        content["best"] = None  # the best so far has been written over by a later one
    if distributed.main():
        lines += [f"{path.name}, of a later iteration: moved to {path.parent / 'abandoned'}" for path in later]
        print(f"resuming after iteration {content['iteration']}", *lines, sep="\n  ", flush=True)
    return content


def _begin_again(run_dir: Path) -> None:
    """A run killed before its first checkpoint begins again, and says so. Raises UserError if it had got further.

    A best one that it had evaluated by then is kept in checkpoints/abandoned.
    """
    best = run_dir / "checkpoints" / "best.pt"
    early = best.is_file() and _before_the_first(checkpoint_file.load(best), run_dir / "metrics.csv")
    left = [path for path in (run_dir / "summary.json", best) if path.is_file() and not (early and path == best)]
    if left:
        raise UserError(
            f"resume={run_dir}: no checkpoint to go on from (checkpoints/last.pt, last-1.pt, …) is there, but "
            f"{left[0].name} is, and would be overwritten; init_from=… starts a new run from saved weights"
        )
    distributed.largest(0)  # all have looked
    if distributed.main():
        moved = f"; {best.name} is moved to {best.parent / 'abandoned'}" if early else ""
        if early:
            checkpoint_file.abandon([best])
        print(f"no checkpoint yet: the run begins from scratch{moved}", flush=True)


def _before_the_first(best: Mapping[str, Any], metrics: Path) -> bool:
    """Whether a run with a `best.pt` of this content was killed before its first `last.pt` was due.

    metrics: its metrics.csv, which has a line per iteration.
    """
    every = (best["config"].get("trainer") or {}).get("checkpoint_every")
    if not every:
        return every == 0
    logged = len(metrics.read_bytes().splitlines()) - 1 if metrics.is_file() else 0
    return max(best["iteration"], logged) <= every


def compare(config: Mapping[str, Any], resumed: Mapping[str, Any]) -> list[str]:
    """What differs between a configuration and that of the checkpoint it resumes, one line per key.

    Raises UserError where a key differs that a resumed run may not change; it names all that differ.
    """
    changed = differences(resumed, config)
    lines = [f"{key}: {show(old)} -> {show(new)}" for key, (old, new) in changed.items()]
    by_step = (config.get("scheduler") or {}).get("interval") == "step"
    fixed_keys = [refused(key, config) or (by_step and key in per_iteration(config)) for key in changed]
    fixed = [line for line, keeps in zip(lines, fixed_keys, strict=True) if keeps]
    if fixed:
        rest = [line for line in lines if line not in fixed]
        allowed = f" (allowed, had it been alone: {', '.join(rest)})" if rest else ""
        raise UserError(
            f"resume=…: {', '.join(fixed)}: refused, a resumed run keeps these{allowed}; "
            f"init_from=RUN_DIR starts a new run from its weights"
        )
    return lines


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old value, new value)} of two configurations, leaf by leaf; keys of QUIET are left out."""
    changed = {}
    for key in dict.fromkeys([*old, *new]):
        if not prefix and (key in QUIET or key == "zoo" and not zoo.plays(new)):
            continue
        before, after = old.get(key), new.get(key)
        if before in (None, {}) and after in (None, {}):  # an earlier version may not have had it
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changed[f"{prefix}{key}"] = (before, after)
    return changed


def per_iteration(config: Mapping[str, Any]) -> set[str]:
    """Keys that decide how many optimiser steps an iteration has, and so how long a schedule by steps is."""
    node = config.get("algo")
    names = resolve(node["_target_"], "algo._target_").per_iteration if isinstance(node, Mapping) else ()
    return {"trainer.accumulate", *(f"algo.{name}" for name in names)}


def refused(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a resumed run of `config` may not change the dotted `key`."""
    group, _, rest = key.partition(".")
    if group not in ASKED:
        return group in FIXED
    node = config.get(group)
    if not isinstance(node, Mapping):  # there was such a node, and now is none
        return True
    kind = resolve(node["_target_"], f"{group}._target_")
    return kind.keeps_on_resume(rest.partition(".")[0])
