"""Teams against teams: python scripts/crossplay.py RUN_DIR… [option=value …] [configuration key=value …]

  RUN_DIR…             runs (or checkpoints) in the same competitive environment: each has trained every team
  opponents=[random]   opponents without training: random | still | simple_tag (scripted, for mpe/simple_tag) |
                       heuristic (VMAS's) | a dotted path of a class of yours, see agents/players/scripted.py
  side=null            the group that the rows play, the columns play all others; null: the first one
  which=last           last | best: which checkpoint of a run directory
  episodes=200         episodes per pair, played at once
  deterministic=true   true: the policies' modes | false: samples
  seed=0               of the episodes: all pairs start from the same states
  out=crossplay        folder for crossplay.json, .md, .csv, .tex and a picture for each side

Rows play one side and columns the other, so the matrix needs no symmetry; cells are mean returns with 95 % intervals.
Where agents act in turn, crossplay.json also holds the shares of games won, drawn and lost; and where they are all of
one group (a policy that was trained against itself), the row plays one of them, each by turns, and the column the rest.
Any other key=value changes the runs' configuration, for example env.max_steps=200.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agents.analysis import past_versions
from agents.evaluation.episodes import env_for, evaluate, report
from agents.evaluation.game_outcomes import OUTCOMES
from agents.models.actor import Actor
from agents.players import scripted
from agents.players.scripted import Player
from agents.players.seats import Seats
from marl.config import compose
from marl.config.options import parse_runs
from marl.core import run_directory, terminal
from marl.core.errors import UserError
from marl.core.files import write_json
from marl.core.seeding import derive
from marl.launch import cli
from marl.report import matrix
from marl.report.runs import algorithm_of

Team = dict[str, Actor | Player]  # who plays each group


@dataclass
class Options:
    """The options above."""

    opponents: list[str] = field(default_factory=lambda: ["random"])
    side: str | None = None
    which: Literal["last", "best"] = "last"
    episodes: Annotated[int, Field(ge=2)] = 200
    deterministic: bool = True
    seed: Annotated[int, Field(ge=0)] = 0
    out: str = "crossplay"


def parse(arguments: list[str]) -> tuple[list[str], Options, list[str]]:
    """Runs, options, and overrides of the runs' configurations. Raises UserError for wrong ones."""
    return parse_runs(Options, arguments, "that play")


def labels(runs: list[str], options: Options) -> list[str]:
    """Short names of runs that tell them apart: algorithm, algorithm and seed, or the last parts of their paths."""
    configs = [compose.saved(run_directory.find(run, options.which)) for run in runs]
    algorithms = [algorithm_of(cfg.algo) if cfg.algo else "" for cfg in configs]
    seeds = [f"{name} {cfg.seed}" for name, cfg in zip(algorithms, configs, strict=True)]
    parts = [Path(run).resolve().parts for run in runs]
    paths = (["/".join(p[-count:]) for p in parts] for count in range(1, max(map(len, parts)) + 1))
    for names in (algorithms, seeds, *paths):
        if len({*names, *options.opponents}) == len(names) + len(options.opponents):
            return names
    return [f"{run} ({i})" for i, run in enumerate(runs)]  # one run given twice


def crossplay(runs: list[str], options: Options, overrides: list[str]) -> dict:
    """Play every pair, print and write the matrices; returns what was written to crossplay.json.

    Raises:
        UserError: one team only, runs of other teams, sizes or environments, an unknown side or opponent.
    """
    tasks = [past_versions.load(run, options.which, overrides) for run in runs]
    first, groups = tasks[0], list(tasks[0].env.spec.groups)
    if len(groups) < 2:
        only = tasks[0].env.spec.groups[groups[0]]
        if only.n_agents < 2 or "turn" not in only.masks:
            raise UserError(f"{runs[0]}: has one group of agents, {groups[0]}; there is no other group to play against")
    for run, task in zip(runs, tasks, strict=True):
        if past_versions.sizes(task.env) != past_versions.sizes(first.env):
            mine, theirs = past_versions.sizes(task.env), past_versions.sizes(first.env)
            raise UserError(f"{run}: its teams {mine} differ from {theirs} of {runs[0]}")
    past_versions.same_env([run_directory.find(run, options.which) for run in runs], overrides)
    side = options.side or groups[0]
    if side not in groups:
        raise UserError(f"side={side}: there are {', '.join(groups)}")
    make = partial(first.make_env, seed=derive(options.seed, "evaluation"), device=first.device)
    env = env_for(make, options.episodes)
    n_agents = env.spec.groups[side].n_agents
    teams: dict[str, Team] = dict(zip(labels(runs, options), map(past_versions.team, tasks), strict=True))
    teams |= {name: {group: scripted.make(name, env, group) for group in groups} for name in options.opponents}

    cells = []
    for row in teams.values():
        cells.append([])
        for column in teams.values():
            players = {group: (row if group == side else column)[group] for group in groups}
            if len(groups) == 1:
                players = {side: Seats(row[side], column[side], env.num_envs, n_agents, env.device)}
            how = (derive(options.seed, "evaluation"), options.deterministic)
            played = report(evaluate(env, players, *how, episodes=options.episodes))["groups"]
            cells[-1].append({group: played[group]["episode_return"] | games(played[group]) for group in groups})

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    names, others = list(teams), ", ".join(group for group in groups if group != side) or "the others of them"
    result = {"side": side, "groups": groups, "teams": names, "cells": cells, "runs": runs, "options": asdict(options)}
    write_json(out / "crossplay.json", result)
    text, shown = [], []
    for group in groups:
        one = [[cell[group] for cell in row] for row in cells]
        caption = f"Episode return of {group}; rows play {side}, columns play {others}."
        table = matrix.table(names, names, one, caption)
        (out / f"{group}.csv").write_text(table.csv())
        (out / f"{group}.tex").write_text(table.latex())
        matrix.heat(names, names, one, (f"{side}", f"{others}"), group, out / f"{group}.png")
        text.append(f"{caption}\n\n{table.markdown()}")
        shown.append((caption, table))
    (out / "crossplay.md").write_text("\n".join(text))
    for caption, table in shown:
        print(terminal.fit(caption))
        terminal.show_table(table.columns, table.rows)
    print(f"written to {out}")
    return result


def games(group: dict) -> dict[str, float]:
    """Shares of games won, drawn and lost, of a group's block of `report`; {} without any."""
    return {key: group["info"][key] for key in OUTCOMES if key in group["info"]}


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: crossplay(*parse(arguments)))
