"""How a run's versions compare: python scripts/elo.py RUN_DIR… [option=value …] [configuration key=value …]

  RUN_DIR…             runs on the same competitive scenario that kept versions: a pool (groups.GROUP.past, policy=pool)
                       or checkpoints (trainer.keep_every)
  versions=8           versions of each run at most, spread evenly from the first to the last; >= 2
  opponents=[random]   players without training: random | still | simple_tag | heuristic | a dotted path
  side=null            the group that one player of a game plays, the other plays all others; null: the first one
  outcome=auto         who wins: difference = whose return is larger | median = the side, where its return is above the
                       median of all games | auto = difference where the teams have one size, else median
  episodes=100         per pair, played at once; >= 2
  deterministic=false  true: the policies' modes | false: samples
  seed=0               of the episodes: all pairs start from the same states
  reps=300             resamples behind the intervals; >= 100
  out=elo              folder for elo.json, elo.md, elo.csv and elo.png

Where the teams have one size a version plays both sides and has one rating; where they differ each side has its own.
Ratings are the most likely ones about a mean of 0, with 95 % intervals over the episodes.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agents.analysis import past_versions
from agents.evaluation.episodes import env_for, evaluate
from agents.models.actor import Actor
from agents.players import scripted
from agents.players.scripted import Player
from marl.config.options import parse_runs
from marl.core import terminal
from marl.core.errors import UserError
from marl.core.files import write_json
from marl.core.seeding import derive
from marl.launch import cli
from marl.report import elo, matrix
from marl.report.tables import Table


@dataclass
class Options:
    """The options above."""

    versions: Annotated[int, Field(ge=2)] = 8
    opponents: list[str] = field(default_factory=lambda: ["random"])
    side: str | None = None
    outcome: Literal["auto", "difference", "median"] = "auto"
    episodes: Annotated[int, Field(ge=2)] = 100
    deterministic: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    reps: Annotated[int, Field(ge=100)] = 300
    out: str = "elo"


def parse(arguments: list[str]) -> tuple[list[str], Options, list[str]]:
    """Runs, options, and overrides of the runs' configurations. Raises UserError for wrong ones."""
    return parse_runs(Options, arguments, "whose versions play")


def rate(runs: list[str], options: Options, overrides: list[str]) -> dict:
    """Play all pairs, rate the players, print and write; returns what was written to elo.json.

    Raises:
        UserError: one team only, runs of other teams, sizes or environments, no versions, an unknown side or opponent.
    """
    tasks = [past_versions.load(run, overrides=overrides) for run in runs]
    first, groups = tasks[0], list(tasks[0].env.spec.groups)
    if len(groups) < 2:
        raise UserError(f"{runs[0]}: has one group of agents, {groups[0]}; there is no other group to play against")
    side = options.side or groups[0]
    if side not in groups:
        raise UserError(f"side={side}: there are {', '.join(groups)}")
    make = partial(first.make_env, seed=derive(options.seed, "evaluation"), device=first.device)
    env = env_for(make, options.episodes)
    teams: dict[str, dict[str, Actor | Player]] = {}
    for i, (run, task) in enumerate(zip(runs, tasks, strict=True)):
        if past_versions.sizes(task.env) != past_versions.sizes(first.env):
            raise UserError(f"{run}: its teams {past_versions.sizes(task.env)} differ from those of {runs[0]}")
        prefix = f"{i}: " if len(runs) > 1 else ""
        teams |= {f"{prefix}{n}": players for n, players in past_versions.kept(run, task, options.versions).items()}
    past_versions.same_env(runs, overrides)
    teams |= {name: {group: scripted.make(name, env, group) for group in groups} for name in options.opponents}

    equal_teams = len(set(past_versions.sizes(env).values())) == 1
    names, pairs, scores, resets = played(teams, side, env, options, equal_teams)
    rating, bounds = elo.with_intervals(np.array(pairs), scores, len(names), options.reps, options.seed, resets)
    rows = [
        {"player": name, "elo": float(r), "ci95": b.tolist(), "games": int(count * options.episodes)}
        for name, r, b, count in zip(names, rating, bounds, np.bincount(np.array(pairs).flatten()), strict=True)
    ]
    outcome = options.outcome if options.outcome != "auto" else "difference" if equal_teams else "median"
    result = {"side": side, "outcome": outcome, "players": rows, "runs": runs, "options": asdict(options)}
    write(result, Path(options.out))
    return result


def played(
    teams: dict, side: str, env, options: Options, equal_teams: bool
) -> tuple[list[str], list, np.ndarray, np.ndarray | None]:
    """Names of the players, who met whom, the scores [P, E] of the first (1 won, 0.5 drawn, 0 lost), games' resets."""
    labels, others = list(teams), [group for group in env.spec.groups if group != side]
    opposite = others[0] if len(others) == 1 else "the others"
    names = labels if equal_teams else [f"{side} {n}" for n in labels] + [f"{opposite} {n}" for n in labels]
    pairs, ours, theirs, resets = [], [], [], None
    for i, row in enumerate(labels):
        for j, column in enumerate(labels):
            if equal_teams and i == j:
                continue
            players = {group: teams[row if group == side else column][group] for group in env.spec.groups}
            how = (derive(options.seed, "evaluation"), options.deterministic)
            episodes = evaluate(env, players, *how, episodes=options.episodes)
            pairs.append((i, j if equal_teams else len(labels) + j))
            ours.append(episodes.returns[side].mean(-1))
            theirs.append(np.mean([episodes.returns[group].mean(-1) for group in others], axis=0))
            resets = episodes.resets  # of all pairs: they play from the same seeds
    ours, theirs = np.array(ours), np.array(theirs)
    median = options.outcome == "median" or (options.outcome == "auto" and not equal_teams)
    lead = ours - (np.median(ours) if median else theirs)
    return names, pairs, (np.sign(lead) + 1) / 2, resets


def write(result: dict, out: Path) -> None:
    """elo.json, a table as Markdown and CSV, a figure; and the table on the terminal."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "elo.json", result)
    rows = [
        [p["player"], f"{p['elo']:.0f}", f"{p['ci95'][0]:.0f} to {p['ci95'][1]:.0f}", str(p["games"])]
        for p in result["players"]
    ]
    caption = f"Elo about a mean of 0 ({result['outcome']} of returns decides), 95 % intervals."
    table = Table(caption, ["player", "Elo", "95 % interval", "games"], rows)
    (out / "elo.md").write_text(table.markdown())
    (out / "elo.csv").write_text(table.csv())
    drawn = [{"mean": p["elo"], "ci95": p["ci95"]} for p in result["players"]]
    matrix.line([p["player"] for p in result["players"]], drawn, "player", out / "elo.png", "Elo (95 % interval)")
    terminal.show_table(table.columns, table.rows)
    print(f"written to {out}")


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: rate(*parse(arguments)))
