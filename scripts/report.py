"""Compares runs: python scripts/report.py RUNS… [option=value …]

  RUNS…                run directories, sweeps or other folders of runs, globs, and marl-eval's JSON files (BenchMARL's)
  out=report           folder for report.html, report.md, figures/, tables/ and metrics.json (marl-eval's format)
  metric=episode_return  figure of the evaluations that is compared; more is better
  score=auto           a run's score: final (last evaluation) | best | absolute | auto: absolute where all have it
  bounds={}            what becomes 0 and 1 when scores are normalised: bounds={balance: [0, 60]}; else the extremes
  imported=null        what to put behind the names of algorithms from marl-eval files, such as imported=BenchMARL;
                       null: "imported", and only where a run of ours has the same name
  title=null           heading of the page; null: made from the tasks
  reps=2000            resamples of the bootstrap (five times as many for single figures); at least 100
  seed=0               of the bootstrap

Curves over frames and over seconds, aggregates, performance profiles, probability of improvement, sample efficiency,
returns of groups and agents.
"""

import csv
import os.path
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from marl.config.options import split
from marl.core import terminal
from marl.core.errors import UserError, closest
from marl.launch import cli
from marl.report import marl_eval, page
from marl.report.compare import Comparison
from marl.report.find import find


@dataclass
class Options:
    """The options above."""

    out: str = "report"
    metric: str = "episode_return"
    score: Literal["auto", "final", "best", "absolute"] = "auto"
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    imported: str | None = None
    title: str | None = None
    reps: Annotated[int, Field(ge=100)] = 2000
    seed: Annotated[int, Field(ge=0)] = 0


def parse(arguments: list[str]) -> tuple[list[str], Options]:
    """Places of runs, and options. Raises UserError for a wrong option, or no places."""
    names = [field.name for field in fields(Options)]
    values, places = split(Options, arguments)
    for argument in places:
        name, equals, _ = argument.partition("=")
        if equals and name.isidentifier() and not os.path.exists(argument):
            raise UserError(f"unknown option '{name}'{closest(name, names)} (there are {', '.join(names)})")
    if not places:
        raise UserError("name the runs to report on: folders, globs or marl-eval files")
    return places, Options(**values)


def report(places: list[str], options: Options) -> Comparison:
    """Read, compare, write, print the table of scores."""
    runs, left_out = find(places, options.imported)
    bounds = {task: tuple(pair) for task, pair in options.bounds.items()}
    comparison = Comparison(runs, options.metric, options.score, bounds, options.reps, options.seed)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    title = options.title or f"{', '.join(comparison.algorithms)} on {', '.join(comparison.tasks)}"
    written = page.write(out, title, comparison, left_out)
    marl_eval.write(out / "metrics.json", runs)
    for sentence in page.facts(comparison, left_out):
        print(terminal.fit(sentence))
    with open(out / "tables" / "scores.csv", newline="") as file:
        columns, *rows = csv.reader(file)
    terminal.show_table(columns, rows)
    print(f"{len(written) + 1} files in {out}; open {out / 'report.html'}")
    return comparison


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: report(*parse(arguments)))
