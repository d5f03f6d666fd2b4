"""Draws docs/pictures/cloning.png, MAPPO from a clone.

Usage:

    python docs/scripts/cloning.py OUT.png TEACHER CLONE NAME=RUN,RUN,RUN …
"""

import json
import sys
from pathlib import Path

import matplotlib
from figures import curve
from matplotlib.figure import Figure

from marl.core.look.figures import style
from marl.core.look.tokens import LIGHT


def final(run: str) -> float:
    """The mean episode return after a run's last iteration."""
    return json.loads((Path(run) / "summary.json").read_text())["final"]["episode_return"]["mean"]


def main(out: str, teacher: str, clone: str, *named: str) -> None:
    """Every run's evaluations, and the first that reaches the teacher's return; prints those frames."""
    goal, begin = final(teacher), final(clone)
    figure = Figure((8, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(goal, color=LIGHT["soft"], linestyle=":", label=f"the teacher, {goal:.1f}")
    axes.plot(0, begin, "k*", markersize=11, label=f"its clone, {begin:.1f}", zorder=3)
    print(f"teacher {goal:.2f}, clone {begin:.2f}")
    for i, entry in enumerate(named):
        name, _, runs = entry.partition("=")
        for number, run in enumerate(runs.split(",")):
            frames, returns = curve(Path(run))
            reached = returns >= goal
            first = int(reached.argmax()) if reached.any() else None
            look = {"color": f"C{i}", "label": None if number else name}
            axes.plot(frames, returns, linewidth=1, alpha=0.8, **look)
            if first is not None:
                axes.plot(frames[first], returns[first], "o", color=f"C{i}", markersize=6, zorder=3)
            print(f"{name}: {run} reached it after {'-' if first is None else f'{frames[first]:,.0f}'} frames")
    axes.set(xlabel="environment frames", ylabel="episode return\n(200 deterministic episodes)")
    axes.legend()
    figure.savefig(out)


if __name__ == "__main__":
    with matplotlib.rc_context(style()):
        main(*sys.argv[1:])
