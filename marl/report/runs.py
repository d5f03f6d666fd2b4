"""A run to report on: what it trained on what, and its evaluations, read from a run directory."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from marl.core.moved import update_config
from marl.core.zoo import index as zoo

# What may differ between runs that are still the same algorithm on the same task: keys of the configuration.
SAME = ("seed", "name", "paths", "resume", "init_from", "init_map", "ckpt", "experiment", "logger", "device")
TECHNICAL = {  # the same below groups: how a run is watched, kept and computed, not what it learns
    "trainer": (
        *("progress", "threads", "helpers", "compile", "capture", "recompute", "deterministic", "strategy"),
        *("keep_every", "keep_last", "checkpoint_every", "evaluate_every"),
    ),
    "task": ("eval_episodes", "workers", "pin_memory"),
    "env": ("fast", "workers"),
    "data": ("fold",),  # folds of a cross-validation are runs of one kind, as seeds are
}
ONLOOKERS = ("Replay", "Pictures", "Reconstructions", "Histograms", "Profiler")  # callbacks that change no number
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with it
# Names of algorithms by their class and a setting of it; null: any other value. A class of one's own goes by its name.
ALGORITHMS = {
    "PPO": ("critic", {"local": "ippo", None: "mappo"}),
    "QLearning": ("mixer", {"none": "iql", "sum": "vdn", "monotonic": "qmix"}),
    "DDPG": ("critic", {"local": "iddpg", None: "maddpg"}),
    "SAC": ("critic", {"local": "isac", None: "masac"}),
    "PQN": ("mixer", {"none": "pqn", "sum": "pqn_vdn"}),
    "SHAC": ("bootstrap", {False: "apg", None: "shac"}),
}


@dataclass
class Run:
    """One training run.

    Attributes:
        algorithm, environment, task, seed: what was trained on what.
        units: float [N] frames (or epochs) at each evaluation; seconds: float [N] of wall-clock, NaN if unknown.
        curves: {metric: float [N]} of the evaluations, such as "episode_return", "agents/agent_0/episode_return".
        absolute: {metric: value} of the absolute metric (best checkpoint, ten times the episodes, fresh seeds).
        settings: the configuration with flat keys, for telling variants apart. source: where it was read.
        variant: what sets it apart, where that is too long for a name.
    """

    algorithm: str
    environment: str
    task: str
    seed: int
    units: np.ndarray
    seconds: np.ndarray
    curves: dict[str, np.ndarray]
    absolute: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    source: str = ""
    unit: str = "frames"
    variant: str = ""

    def score(self, metric: str, which: str) -> float:
        """The run in one number: its "final" or "best" evaluation, or the "absolute" metric."""
        if which == "absolute":
            return self.absolute[metric]
        values = self.curves[metric]
        return float(values[-1] if which == "final" else np.nanmax(values))


class Damaged(ValueError):
    """A file of a run that can't be read."""


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Name the file in what it raises: one damaged run is no reason to report on none."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error, yaml.YAMLError) as error:
        what = " ".join(str(error).split())[:200]
        raise Damaged(f"{name} can't be read ({type(error).__name__}: {what})") from error


def read(folder: Path) -> Run | str:
    """A run directory; a sentence where it can't be reported on."""
    try:
        return _read(folder)
    except Damaged as error:
        return f"{folder}: {error}"


def _read(folder: Path) -> Run | str:
    with _reading("job.json"):
        job = json.loads((folder / "job.json").read_text()) if (folder / "job.json").is_file() else {}
        failed = job.get("status") == "failed"
    if not (folder / "summary.json").is_file() and (failed or job):
        return f"{folder}: failed: {str(job.get('reason')).rstrip('.')}" if failed else f"{folder}: unfinished"
    if not (folder / "config.yaml").is_file():
        return f"{folder}: has no config.yaml"
    if not (folder / "summary.json").is_file():
        return f"{folder}: unfinished"
    if not (folder / "metrics.csv").is_file():
        return f"{folder}: has no metrics.csv (logger.csv off)"
    with _reading("config.yaml"):
        config = update_config(yaml.load((folder / "config.yaml").read_text(), LOADER))
        rl = config.get("algo") is not None
        environment, task = _where(config["env"]) if rl else ("supervised", _class(config["data"]))
        algorithm = algorithm_of(config["algo"]) if rl else "supervised"
        seed, settings = int(config["seed"]), dict(flat(_decisive(config)))
        config["paths"]  # the last key: a file that was cut short has none
    with _reading("metrics.csv"), open(folder / "metrics.csv", newline="") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or () if name.startswith("eval/")]
        rows = [row for row in reader if any(row[name] for name in names)]
        if not rows:
            return f"{folder}: never evaluated"
        numbers = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
        unit = next((unit for unit in ("frames", "epochs", "batches") if unit in rows[0]), "frames")
        units = np.array([float(row[unit]) for row in rows])
        seconds = np.array([float(row.get("seconds") or "nan") for row in rows])
    return Run(
        algorithm=algorithm,
        environment=environment,
        task=task,
        seed=seed,
        units=units,
        seconds=seconds,
        curves={name.removeprefix("eval/"): values for name, values in numbers.items()},
        absolute=_absolute(folder),
        settings=settings,
        source=str(folder),
        unit=unit,
    )


def algorithm_of(algo: Mapping) -> str:
    """The name of an algorithm from its settings, as `algo=` has it: "mappo", "qmix"."""
    kind = _class(algo)
    if kind not in ALGORITHMS:
        return kind.lower()
    key, names = ALGORITHMS[kind]
    name = names.get(algo[key]) or names[None]
    return "matd3" if name == "maddpg" and algo["twin"] and algo["policy_every"] > 1 else name


def _where(env: Mapping) -> tuple[str, str]:
    """The library and the task of an environment: ("vmas", "balance"), ("gymnasium", "CartPole-v1")."""
    name = _class(env)
    task = next((env[key] for key in ("scenario", "id", "env") if env.get(key)), name)
    return name.removeprefix("From").removesuffix("Env").lower(), str(task)


def _class(node: Mapping) -> str:
    return node["_target_"].rpartition(".")[2]


def _decisive(config: Mapping) -> dict:
    """What tells one kind of run from another."""
    settings = {key: value for key, value in config.items() if key not in SAME}
    if not zoo.plays(config):
        settings.pop("zoo", None)
    for group, names in TECHNICAL.items():
        if settings.get(group):
            settings[group] = {key: value for key, value in settings[group].items() if key not in names}
    callbacks = (config.get("callbacks") or {}).items()
    return settings | {"callbacks": {name: node for name, node in callbacks if node and _class(node) not in ONLOOKERS}}


def _absolute(folder: Path) -> dict[str, float]:
    path = folder / "checkpoints" / "evaluation_absolute.json"
    if not path.is_file():
        return {}
    with _reading(f"checkpoints/{path.name}"):
        content = json.loads(path.read_text())
        figures = {"episode_return": content["episode_return"]["mean"]}
        for name, group in content["groups"].items():
            figures[f"{name}/episode_return"] = group["episode_return"]["mean"]
            figures |= {f"{name}/{agent}/episode_return": values["mean"] for agent, values in group["agents"].items()}
    return figures


def flat(tree: Mapping, prefix: str = ""):
    """Leaves of a nested mapping as ("a.b", text) pairs."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if not isinstance(value, str) else value
