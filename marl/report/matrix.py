"""Two small figures for evaluations: a return against a condition, and a matrix of teams against teams."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from marl.core.look.figures import FIGURES
from marl.core.look.tokens import LIGHT, SERIES
from marl.report.tables import Table, number

# {"mean", "ci95": [low, high], …} of `agents.evaluation.episodes.statistics`
Statistics = Mapping[str, float | Sequence[float]]


def line(
    values: Sequence, returns: Sequence[Statistics], name: str, path: Path,
    label: str = "episode return (mean, 95 % interval)",
) -> None:  # fmt: skip
    """Draw means (of returns, or what `label` says) with their 95 % intervals over `values` of the condition `name`."""
    numeric = all(isinstance(value, int | float) for value in values)
    x = list(values) if numeric else list(range(len(values)))
    means = np.array([one["mean"] for one in returns])
    low, high = np.array([one["ci95"] for one in returns], float).T
    with matplotlib.rc_context(FIGURES):
        figure = Figure(figsize=(4.5, 3), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(x, means, [means - low, high - means], marker="o", capsize=3, color=SERIES[0])
        axes.set(xlabel=name.replace("_", " "), ylabel=label)
        if not numeric:
            turn = {"rotation": 40, "ha": "right"} if len(values) > 6 else {}
            axes.set_xticks(x, [str(value) for value in values], **turn)
        figure.savefig(path, dpi=200)


def table(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Statistics]], caption: str) -> Table:
    """Mean and 95 % interval of every pair."""
    text = [
        [name, *(f"{number(c['mean'])} [{number(c['ci95'][0])}, {number(c['ci95'][1])}]" for c in row)]
        for name, row in zip(rows, cells, strict=True)
    ]
    return Table(caption, ["", *columns], text)


def heat(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Statistics]], sides: tuple[str, str],
    whose: str, path: Path,
) -> None:  # fmt: skip
    """Draw the matrix: colour by the mean return of the group `whose`, intervals in the cells."""
    means = np.array([[cell["mean"] for cell in row] for row in cells])
    with matplotlib.rc_context({**FIGURES, "axes.grid": False}):
        figure = Figure(figsize=(2 + 1.3 * len(columns), 1.2 + 0.6 * len(rows)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(means, cmap="cividis", aspect="auto")
        middle = (means.min() + means.max()) / 2
        for i, row in enumerate(cells):
            for j, cell in enumerate(row):
                low, high = (number(bound) for bound in cell["ci95"])
                colour = LIGHT["stage" if cell["mean"] < middle else "ink"]
                text = f"{number(cell['mean'])}\n[{low}, {high}]"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylabel=sides[0], xlabel=sides[1])
        figure.colorbar(image, label=f"return of {whose}")
        figure.savefig(path, dpi=200)
