"""Judges a trained run: python scripts/evaluate.py ckpt=RUN_DIR [option=value …] [configuration key=value …]

  ckpt=RUN_DIR|FILE    a run directory, one of its checkpoints, or zoo/NAME (required)
  which=last           last | best: which checkpoint of a run directory
  policy=trained       trained | untrained (fresh networks) | random (uniform actions): baselines for comparison
  episodes=null        episodes, played at once; null: as many as in the run's own evaluations (200)
  deterministic=null   true: the policy's mode | false: samples; null: as in the run's own evaluations (true)
  seed=null            seed of the episodes; null: that of the run's own evaluations, which gives the same numbers
  out=null             where to write the result; null: evaluation.json beside the checkpoint
  absolute=false       true: the absolute metric (Gorsane et al. 2022): the best checkpoint, ten times the episodes of
                       the run's own evaluations, episodes that no evaluation has seen; evaluation_absolute.json

Robustness: the policy as it was trained, in conditions that it was not trained in; robustness_WHAT.json and .png

  vary=null            observation_noise (standard deviation, in the observation's units) | action_noise (standard
                       deviation as a share of half the range; discrete actions: probability of a random one) |
                       frozen (agents that never act) | n_agents | any key, such as env.scenario_kwargs.package_mass
  values=null          the values to go through, such as values=[0,0.1,0.2]

Any other key=value changes the run's configuration, for example env.max_steps=200 or device=cpu. Another number of
agents, env.scenario_kwargs.n_agents=5, suits a policy that all agents share and whose observation stays as wide: an
MLP of each agent's own observation, or a network that reads the team (docs/guides/teams.md).
"""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from agents.collection.episode_infos import figure
from agents.evaluation.episodes import report
from agents.players.perturbation import Disturbance
from agents.tasks.episode_evaluation import EpisodeEvaluation
from marl.checkpoints import checkpoint_file, transfer
from marl.config.options import split
from marl.core import run_directory, terminal
from marl.core.errors import UserError
from marl.core.files import write_json
from marl.core.schema import check_arguments
from marl.launch import build, cli
from marl.report import matrix
from marl.task import Task

FRESH_SEEDS = 1_000_000  # the absolute metric's seeds begin here, so that they are no run's own


@dataclass
class Options:
    """The options above."""

    ckpt: str
    which: Literal["last", "best"] = "last"
    policy: Literal["trained", "untrained", "random"] = "trained"
    episodes: Annotated[int, Field(ge=1)] | None = None
    deterministic: bool | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    out: str | None = None
    absolute: bool = False
    vary: str | None = None
    values: list[Any] | None = None


def parse(arguments: list[str]) -> tuple[Options, list[str]]:
    """Options and, apart, the overrides of the run's configuration. Raises UserError for a wrong option."""
    values, overrides = split(Options, arguments)
    if ("vary" in values) != ("values" in values):
        raise UserError("vary and values go together: vary=action_noise values=[0,0.1,0.2]")
    if "values" in values and not values["values"]:
        raise UserError("values=[]: at least one value is needed, as in values=[0,0.1,0.2]")
    decided = {"which": "best", "policy": "trained"} | dict.fromkeys(("episodes", "deterministic", "seed", "vary"))
    for name, fixed in decided.items() if values.get("absolute") else ():
        if values.get(name, fixed) != fixed:
            value = json.dumps(values[name]).strip('"')
            raise UserError(f"{name}={value}: absolute=true decides that by itself")
    for override in overrides if values.get("absolute") else ():
        if not re.match(r"[+~]*(device|env\.fast|task\.eval_episodes|trainer(\.\w+)?)=", override):
            raise UserError(f"{override}: the absolute metric is of the run as it was trained; leave out absolute=true")
    return Options(**values), overrides


def evaluate(options: Options, overrides: list[str]) -> dict:
    """Rebuild the task of a run, load its weights, evaluate, print a table and write the JSON file.

    Returns:
        What was written: for agents the block of `agents.evaluation.episodes.report`, for models the figures per split.

    Raises:
        UserError: no such checkpoint, or overrides that don't fit it.
    """
    path = run_directory.find(options.ckpt, "best" if options.absolute else options.which)
    if options.vary:
        return robustness(path, options, overrides)
    trained = options.policy == "trained"
    changed = trained and any(o.startswith(("env", "++env")) for o in overrides)  # agents may be others: no critic then
    config, task = build.rebuild(path, overrides, weights=trained and not changed)
    if changed and isinstance(task, EpisodeEvaluation):
        load_actors(task, path, " ".join(overrides))
    elif changed:
        transfer.load_weights(task, path)
    if options.absolute:
        episodes = 10 * agents(task, "absolute=true").eval_episodes
        options = replace(options, episodes=episodes, seed=FRESH_SEEDS + config["seed"])
    figures = judge(task, options)

    kind = "absolute" if options.absolute else options.policy
    name = "evaluation.json" if kind == "trained" else f"evaluation_{kind}.json"
    out = Path(options.out) if options.out else run_directory.beside(options.ckpt, path) / name
    result = {**figures, "task": config["task"]["_target_"], "checkpoint": str(path), "options": asdict(options)}
    result |= {"overrides": overrides}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    show(figures, f"{options.policy}, {path}")
    print(f"written to {out}")
    return result


def robustness(path: Path, options: Options, overrides: list[str]) -> dict:
    """Evaluate once per value of what `options.vary` names; print a table, write JSON and a picture.

    Only the actors are loaded: a critic may see all agents, and is not needed.
    """
    key = {"n_agents": "env.scenario_kwargs.n_agents"}.get(options.vary, options.vary)
    disturbs, rows = key in {field.name for field in fields(Disturbance)}, []
    for value in options.values:
        setting = f"{key}={json.dumps(value)}"
        if disturbs:
            check_arguments(Disturbance, {key: value}, "")
        if not rows or not disturbs:
            changed = overrides if disturbs else [*overrides, setting]
            task = agents(build.rebuild(path, changed, weights=False)[1], f"vary={options.vary}")
            if options.policy == "trained":
                load_actors(task, path, setting)
        disturbance = Disturbance(**{key: value}) if disturbs else None
        random = options.policy == "random"
        played = task.run_episodes(options.episodes, options.seed, options.deterministic, random, disturbance)
        rows.append({"value": value, **report(played)})

    name = f"robustness_{options.vary.rpartition('.')[2]}.json"
    out = Path(options.out) if options.out else run_directory.beside(options.ckpt, path) / name
    result = {"vary": key, "rows": rows, "checkpoint": str(path), "options": asdict(options)}
    result |= {"overrides": overrides}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    returns = [row["episode_return"] for row in rows]
    table = terminal.table(options.vary, "mean return", "95 % interval", "IQM", "episodes", title=str(path))
    for value, one in zip(options.values, returns, strict=True):
        low, high = one["ci95"]
        numbers = (f"{one['mean']:.3f}", f"{low:.3f} to {high:.3f}", f"{one['iqm']:.3f}", str(one["episodes"]))
        table.add_row(str(value), *numbers)
    terminal.console().print(table)
    matrix.line(options.values, returns, options.vary, out.with_suffix(".png"))
    print(f"written to {out} and {out.with_suffix('.png').name}")
    return result


def agents(task: Task, option: str) -> EpisodeEvaluation:
    """`task`, which has agents. Raises UserError where it has none."""
    if not isinstance(task, EpisodeEvaluation):
        raise UserError(f"{option}: only agents play episodes; this run's task is {task.name}")
    return task


def load_actors(task: EpisodeEvaluation, path: Path, setting: str) -> None:
    """Put the actors of a checkpoint into `task`. Raises UserError where they don't fit what `setting` made of it."""
    if described := checkpoint_file.description(path):  # a policy of the zoo
        state, trained = checkpoint_file.load_weights(path, task.device), described["spec"]["groups"]
    else:
        saved = checkpoint_file.load(path, task.device)
        state, trained = saved["loss"], saved["processes"][0]["task"].get("spec", {"groups": {}})["groups"]
    actors = {key.removeprefix("actors."): value for key, value in state.items() if key.startswith("actors.")}
    for name, group in task.spec.groups.items():
        before, now = trained.get(name), group.observation_size
        if before and before["observation_size"] != now:
            raise UserError(
                f"{setting}: agents of {name} see {now} numbers then, and the policy of {path} reads "
                f"{before['observation_size']}; only a policy whose observation keeps its size can be played so"
            )
        if before and len(before["agents"]) != group.n_agents:
            if any(key.startswith(f"{name}.network.networks.1.") for key in actors):
                raise UserError(
                    f"{setting}: makes {group.n_agents} agents of {name}, and the policy of {path} has a network for "
                    f"each of its {len(before['agents'])}; only a policy that all share can be played so"
                )
            if task.loss.actors[name].inputs.ids is not None:
                raise UserError(
                    f"{setting}: makes {group.n_agents} agents of {name}, and the policy of {path} knows its "
                    f"{len(before['agents'])} by their ids (algo.agent_ids=true), which others don't have"
                )
    try:
        task.loss.actors.load_state_dict(actors)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise UserError(f"{setting}: the policy of {path} does not fit then: {why[:200]}") from error


def judge(task: Task, options: Options) -> dict:
    """The figures of `task` as it stands: of episodes where agents play, else of the validation and test data."""
    if isinstance(task, EpisodeEvaluation):
        random = options.policy == "random"
        return report(task.run_episodes(options.episodes, options.seed, options.deterministic, random))
    for key in ("episodes", "deterministic", "seed"):
        if getattr(options, key) is not None:
            agents(task, f"{key}=…")
    if options.policy == "random":
        agents(task, "policy=random")
    return task.summary(task.evaluate())


def show(figures: dict, title: str) -> None:
    """Print a table: the return of all, of each group and of each agent; then single figures."""
    console = terminal.console()
    table = terminal.table("episode return", "mean", "IQM", "std", "95 % interval of the mean", "episodes", title=title)
    for name, row in rows(figures):
        low, high = row["ci95"]
        numbers = [f"{row[key]:.3f}" for key in ("mean", "iqm", "std")]
        table.add_row(name, *numbers, f"{low:.3f} to {high:.3f}", str(row["episodes"]))
    if table.row_count:
        console.print(table)
    plain = {key: value for key, value in figures.items() if isinstance(value, float)}
    if "episode_length" in figures:
        plain["episode_length"] = figures["episode_length"]["mean"]
    for name, group in figures.get("groups", {}).items():
        plain |= {figure(name, key, figures["groups"]): value for key, value in group["info"].items()}
    table = terminal.table("figure", "mean")
    for key, value in plain.items():
        table.add_row(key, f"{value:.4f}")
    console.print(table)


def rows(figures: dict) -> list[tuple[str, dict]]:
    """Named statistics of the episode return: of all, then group by group with their agents."""
    named_returns = [("all", figures["episode_return"])] if "episode_return" in figures else []
    for name, group in figures.get("groups", {}).items():
        named_returns.append((name, group["episode_return"]))
        named_returns += [(f"  {agent}", values) for agent, values in group["agents"].items()]
    return named_returns


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: evaluate(*parse(arguments)))
