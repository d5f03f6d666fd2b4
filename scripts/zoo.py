"""The zoo of trained policies: python scripts/zoo.py list|verify|add [option=value …]

  list                 the policies: scenario, algorithm, return with its 95 % interval, frames, size
  verify [NAME…]       plays the card's episodes again: is its return met? all policies if none is named; exit code 1
                       where one is not
  add RUN_DIR…         puts the policies of runs into the zoo, evaluated again, with a card; of runs that get the
                       same name the one whose own evaluation is best

  name={scenario}      what a policy is called; {scenario} and {algorithm} are filled in
  which=last           last | best: which checkpoint of a run
  episodes=1000        episodes behind the card's figures, played at once; >= 2
  critics=true         false: without them: half the size, and init_from=zoo/NAME needs strict=false
  replace=false        true: in the place of a policy that has the name
  zoo.url=docs/zoo     of all scripts: where the zoo is, a folder or, to read from, an address (https://…)

Every script takes one as ckpt=zoo/NAME, training as init_from=zoo/NAME and groups.GROUP.policy=zoo/NAME:

  python scripts/play.py ckpt=zoo/navigation
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agents.deploy import zoo_card
from agents.policies.policy import Policy
from marl.config import options
from marl.core import terminal
from marl.core.errors import UserError, closest
from marl.core.zoo import index as zoo
from marl.launch import cli

VERBS = ("list", "verify", "add")
NARROW = 4  # columns of the list that fit into 80 characters; a wider terminal has all


@dataclass
class Options:
    """The options above."""

    name: str | None = None
    which: Literal["last", "best"] = "last"
    episodes: Annotated[int, Field(ge=2)] = zoo_card.EPISODES
    critics: bool = True
    replace: bool = False


def interval(row: dict) -> str:
    """A mean return with its interval."""
    low, high = row["ci95"]
    return f"{row['mean']:.4g} [{low:.4g}, {high:.4g}]"


def cells(card: dict) -> list[str]:
    """What the list tells of a policy, by its card."""
    evaluated, frames = card["evaluated"], card["trained"]["frames"]
    return [
        str(card["scenario"]),
        str(card["algorithm"]),
        interval(evaluated[evaluated["quoted"]][zoo_card.ALL]),
        str(evaluated["quoted"]),
        f"{evaluated['random'][zoo_card.ALL]['mean']:.4g}",
        "–" if frames is None else f"{frames:,}",
    ]


def show() -> None:
    """Print the table of the policies."""
    rows = []
    for name, entry in zoo.entries().items():
        try:
            rows.append([name, *cells(zoo.card(name)), f"{entry.bytes / 1000:,.0f} kB"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"zoo/{name}: its card lacks what the list tells: {error!r}") from error
    columns = ["policy", "scenario", "algorithm", "return [95 %]", "acts by", "random", "frames", "size"]
    if (terminal.width() or terminal.WIDE) < terminal.WIDE:
        columns, rows = columns[:NARROW], [row[:NARROW] for row in rows]
    terminal.show_table(columns, rows)


def verify(names: list[str]) -> bool:
    """Print for each policy whether its figures are met again; returns whether all are."""
    rows, all_met = [], True
    for name in names or zoo.entries():
        for row in zoo_card.verified(name.removeprefix(zoo.PREFIX)):
            all_met = all_met and row["met"]
            said = interval({"mean": row["said"], "ci95": row["ci95"]})
            rows.append([name, row["group"], said, f"{row['found']:.4g}", "met" if row["met"] else "NOT MET"])
    terminal.show_table(["policy", "return of", "the card says [95 %]", "found again", ""], rows)
    return all_met


def add(runs: list[str], chosen: Options) -> list[str]:
    """Add the best run of each name; returns the names.

    Raises:
        UserError: a name that is taken, or as `agents.deploy.zoo_card.add`.
    """
    best: dict[str, tuple[float, str]] = {}
    for run in runs:
        name = zoo_card.name_of(run, chosen.which, chosen.name)
        evaluation = (Policy.load(run, chosen.which).metadata.get("run") or {}).get("evaluation") or {}
        score = float(evaluation.get("episode_return", -math.inf))
        if name not in best or score > best[name][0]:
            best[name] = score, run
    taken = sorted(best.keys() & zoo.entries().keys()) if (Path(zoo.place()) / zoo.INDEX).is_file() else []
    if taken and not chosen.replace:
        raise UserError(f"name={taken[0]}: is in {zoo.place()} already; replace=true puts this one in its place")
    for name, (_, run) in best.items():
        card = zoo_card.add(run, name, chosen.which, chosen.episodes, chosen.critics)
        evaluated = card["evaluated"]
        for how in ("mode", "samples", "random"):
            print(f"zoo/{name}, {how}: {interval(evaluated[how][zoo_card.ALL])}", flush=True)
        print(f"{Path(zoo.place()) / name}.safetensors ({card['bytes'] / 1000:.0f} kB) and its card", flush=True)
    return list(best)


def run(arguments: list[str]) -> None:
    """Do what the first argument says. Raises UserError for an unknown one, and for options that it does not take."""
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"cannot do {verb!r}{closest(verb, VERBS)} (there are {', '.join(VERBS)})")
    if verb == "add":
        runs, chosen, unknown = options.parse_runs(Options, rest, "whose policies are added")
        if unknown:
            raise UserError(f"{unknown[0]}: is no option of add (there are {', '.join(Options.__annotations__)})")
        add(runs, chosen)
        return
    if verb == "list" and rest or any("=" in argument for argument in rest):
        raise UserError(f"{rest[0]}: {verb} takes {'nothing' if verb == 'list' else 'names'} (and zoo.url=…)")
    if verb == "list":
        show()
    elif not verify(rest):
        sys.exit(1)


if __name__ == "__main__":
    cli.main(__doc__, run)
