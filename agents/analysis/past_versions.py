"""Runs that are to play against each other: their task with its trained actors, and the versions they kept."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from agents.models.actor import Actor
from agents.policies.group_settings import everyone
from agents.tasks.rl_task import RLTask
from envs.base import Env
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import build
from marl.report.runs import TECHNICAL, flat

# How an environment is computed, not what it is.
COMPUTED = {f"env.{key}" for key in (*TECHNICAL["env"], "num_envs", "pool_every", "pool_size")}


def load(run: str, which: str = "last", overrides: Sequence[str] = ()) -> RLTask:
    """The task of a run (or checkpoint) with its trained actors. Raises UserError where no agents play."""
    _, task = build.rebuild(run_directory.find(run, which), overrides)
    if not isinstance(task, RLTask):
        raise UserError(f"{run}: only agents play; this run's task is {task.name}")
    return task


def team(task: RLTask) -> dict[str, Actor]:
    """{group: actor} of all groups. Raises UserError where this run has no policy for one of them."""
    return everyone(task.lineup.settings, task.loss.actors, task.loss.critics)[0]


def sizes(env: Env) -> dict[str, tuple]:
    """What two runs must share to meet."""
    groups = env.spec.groups.items()
    return {name: (g.n_agents, g.observation_size, g.action.kind, g.action.size) for name, g in groups}


def same_env(runs: Sequence[str | Path], overrides: Sequence[str] = ()) -> None:
    """Raises UserError where runs, with `overrides` on top, differ in what their agents live in."""
    first: dict[str, str] = {}
    for run in runs:
        env = compose.check(compose.saved(run, overrides))["env"]
        settings = {key: text for key, text in flat(env, "env.") if key not in COMPUTED}
        first = first or settings
        differ = [key for key in {**first, **settings} if first.get(key) != settings.get(key)]
        if differ:
            differences = ", ".join(f"{k}={settings.get(k, 'unset')}, not {first.get(k, 'unset')}" for k in differ[:4])
            raise UserError(
                f"{run}: its environment differs from that of {runs[0]} ({differences}); "
                f"{differ[0]}=VALUE sets one for all"
            )


def kept(run: str | Path, task: RLTask, most: int) -> dict[int, dict[str, Actor]]:
    """{iteration: {group: actor}} of the versions that a run kept, at most `most` of them, spread evenly.

    Those of its pools where it played against its past, else its checkpoints `iteration_N.pt`
    (trainer.keep_every), and in either case its last one.

    Raises:
        UserError: there is nothing but the last one, or a file is damaged.
    """
    config = run_directory.config_of(run)
    if config is None:
        raise UserError(
            f"{run}: is no run directory, and so kept no versions; scripts/crossplay.py plays single policies"
        )
    folder = config.parent
    pools = {name: pool for name, pool in task.lineup.pools.items() if (folder / "pool" / name).is_dir()}
    if pools:
        per_group = [{int(p.stem) for p in (folder / "pool" / n).glob("*.safetensors")} for n in pools]
        iterations = sorted(set.intersection(*per_group))
    else:
        matches = [re.fullmatch(r"iteration_(\d+)\.pt", p.name) for p in (folder / "checkpoints").glob("*.pt")]
        iterations = sorted(int(m[1]) for m in matches if m)
    if not iterations:
        raise UserError(f"{run}: kept no versions; a pool (groups.GROUP.past) or trainer.keep_every=10 keeps some")
    last = checkpoint_file.load(run_directory.find(folder))
    iterations = [version for version in iterations if version < last["iteration"]]
    count = min(len(iterations), most - 1)
    chosen = {iterations[round(i * (len(iterations) - 1) / max(count - 1, 1))] for i in range(count)}
    versions = {}
    for version in sorted(chosen):
        actors = copy.deepcopy(task.loss.actors)
        if pools:
            for name in pools:
                path = folder / "pool" / name / f"{version:06d}.safetensors"
                group = task.lineup.settings[name].of or name
                actors[group].load_state_dict(checkpoint_file.load_weights(path, task.device))
        else:
            weights = checkpoint_file.load_weights(folder / "checkpoints" / f"iteration_{version}.pt", task.device)
            actors.load_state_dict(_below(weights, "actors."))
        versions[version] = everyone(task.lineup.settings, dict(actors), dict(actors))[0]
    return versions | {last["iteration"]: team(task)}


def _below(weights: Mapping, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
