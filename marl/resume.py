"""Resuming: which checkpoint a run goes on from, and what of its configuration may have changed meanwhile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marl import checkpoint, device, distributed
from marl.errors import UserError
from marl.schema import show

# A change of these makes another run; what the checkpoint holds would contradict them, or silently win.
FIXED = ("seed", "task", "env", "data", "network", "critic_network", "objective", "optimizer", "scheduler", "groups")
FIXED_ALGO = ("critic", "share_actor", "share_critic", "policy", "std", "min_std", "init_std")
FIXED_ALGO += ("value_norm", "agent_ids", "normalize_observation", "reward_norm", "update")  # what a checkpoint holds
FREE_TASK = ("eval_episodes", "eval_deterministic", "workers", "pin_memory", "metrics")  # no number of training changes
QUIET = ("paths", "resume", "init_from", "strict", "ckpt", "experiment", "name")  # nothing learns from these


def resumed(config: Mapping[str, Any], run_dir: Path) -> dict[str, Any] | None:
    """The content of the checkpoint that a run in `run_dir` goes on from; None: it begins.

    With `resume=FILE` that file; with `resume=RUN_DIR`, or after a restart by torchrun or Slurm, the newest good one.
    Says what differs in the configuration. Raises UserError as `compare` and `checkpoint.newest`.
    """
    where = device.pick(config.get("device", "cpu"))
    if config["resume"] and Path(config["resume"]).is_file():
        content = checkpoint.load(config["resume"], where)
    elif config["resume"] or distributed.restarted():
        content = (checkpoint.newest(run_dir, where) or (None, None))[1]
    else:
        content = None
    if content is None:  # or killed before its first checkpoint: it begins anew
        return None
    lines = compare(config, content["config"])
    if distributed.main():
        print(f"resuming after iteration {content['iteration']}", *lines, sep="\n  ", flush=True)
    return content


def compare(config: Mapping[str, Any], resumed: Mapping[str, Any]) -> list[str]:
    """What differs between a configuration and that of the checkpoint it resumes, one line per key.

    Raises UserError where a key differs that a resumed run may not change; it names all that differ.
    """
    found = differences(resumed, config)
    lines = [f"{key}: {show(old)} -> {show(new)}" for key, (old, new) in found.items()]
    fixed = [line for key, line in zip(found, lines, strict=True) if refused(key)]
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
    found = {}
    for key in dict.fromkeys([*old, *new]):
        if not prefix and key in QUIET:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def refused(key: str) -> bool:
    """Whether a resumed run may not change the dotted `key`."""
    group, _, rest = key.partition(".")
    if group == "task":
        return rest not in FREE_TASK
    return group in FIXED or (group == "algo" and rest in FIXED_ALGO)
