"""Where the classes and functions that files of earlier versions name by dotted paths are now."""

from collections.abc import Mapping
from typing import Any

# Module or MODULE.NAME as an earlier version had it -> as it is now. Entries are for good: runs are kept for years.
MOVED: dict[str, str] = {
    "agents.schedules.KLAdaptive": "agents.kl_adaptive.KLAdaptive",
    "marl.callbacks.EarlyStopping": "marl.early_stopping.EarlyStopping",
    "marl.optim.ScheduleConfig": "marl.schedule.ScheduleConfig",
}
NAMING = ("_target_", "lr_lambda")  # keys of a configuration under which a class or function of ours may stand


def current(path: str) -> str:
    """The dotted path under which a class or function is found now; one that never moved stays as it is.

    The longest entry of `MOVED` that the path begins with decides. A number after a space stays: a checkpoint tells
    several callbacks of one class apart by it.
    """
    name, space, number = path.partition(" ")
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        old = ".".join(parts[:end])
        new = MOVED.get(old)
        # Where a module has become a package of its name, deeper paths are those of the package's own modules.
        if new is not None and (not new.startswith(f"{old}.") or len(parts) == end + 1):
            return ".".join([new, *parts[end:]]) + space + number
    return path


def update_config(node: Any) -> Any:
    """A configuration, or a part of one, in which every class and function stands under its path of now."""
    if isinstance(node, Mapping):
        return {
            key: current(value) if key in NAMING and isinstance(value, str) else update_config(value)
            for key, value in node.items()
        }
    return type(node)(map(update_config, node)) if isinstance(node, list | tuple) else node


def update_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content whose configuration and callbacks, keyed by class, have their names of now."""
    updated = dict(state)
    if "config" in state:
        updated["config"] = update_config(state["config"])
    if isinstance(state.get("callbacks"), Mapping):
        updated["callbacks"] = {current(name): kept for name, kept in state["callbacks"].items()}
    return updated
