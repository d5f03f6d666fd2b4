"""The figures of a report, drawn with Matplotlib: one function each, from numbers to a figure."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from marl.core.look.figures import FIGURES, LINES
from marl.core.look.tokens import LIGHT, SERIES
from marl.report.compare import Comparison, Curve, Estimate


def draw(comparison: Comparison) -> dict[str, Figure]:
    """All figures of a report by name, in the order in which they are shown."""
    figures = {}
    with matplotlib.rc_context(FIGURES):
        for task in comparison.tasks:
            figures[f"curves_{slug(task)}"] = curves(comparison, task)
        if comparison.complete:
            figures["aggregates"] = aggregates(comparison)
            figures["profiles"] = profiles(comparison)
            figures["sample_efficiency"] = sample_efficiency(comparison)
        if len(comparison.complete) > 1:
            figures["improvement"] = improvement(comparison)
        for task in comparison.tasks:
            figure = parts(comparison, task)
            if figure is not None:
                figures[f"agents_{slug(task)}"] = figure
    return figures


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png (300 dots per inch) and NAME.pdf."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(FIGURES):
        figure.savefig(folder / f"{name}.png", dpi=300)
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})


def svg(figure: Figure) -> bytes:
    """The figure as an SVG document."""
    with matplotlib.rc_context(FIGURES):
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-=." else "_" for c in text)


def look(comparison: Comparison, algorithm: str) -> dict:
    """Colour and line of an algorithm, the same in every figure."""
    i = comparison.algorithms.index(algorithm)
    return {"color": SERIES[i % len(SERIES)], "linestyle": LINES[i // len(SERIES) % len(LINES)]}


def room(names: Iterable[str], usual: int = 12) -> float:
    """Inches that the longest of `names` takes beyond a name of the `usual` number of letters."""
    return 0.075 * max(0, max(map(len, names), default=0) - usual)


def axis(comparison: Comparison, over: str) -> str:
    """The name of a horizontal axis."""
    if over == "seconds":
        return "wall-clock time, s"
    return "environment frames" if comparison.unit == "frames" else comparison.unit


def lines(axes: Axes, comparison: Comparison, by_algorithm: Mapping[str, Curve]) -> None:
    """Lines with their bands."""
    for algorithm, curve in by_algorithm.items():
        style = look(comparison, algorithm)
        axes.plot(curve.x, curve.value, label=f"{algorithm} ({curve.runs} runs)", **style)
        if np.isfinite(curve.low).any():
            axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)
    if not by_algorithm:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color=LIGHT["soft"])


def curves(comparison: Comparison, task: str) -> Figure:
    """Learning curves of one task over frames and over wall-clock time: IQM and 95 % bands."""
    figure = Figure(figsize=(8 + 2 * room(comparison.algorithms, 24), 3), layout="constrained")
    for axes, over in zip(figure.subplots(1, 2, sharey=True), ("units", "seconds"), strict=True):
        lines(axes, comparison, comparison.curves(task, over))
        axes.set(xlabel=axis(comparison, over))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.axes[0].set_ylabel(f"{comparison.metric.replace('_', ' ')} (IQM)")
    figure.axes[0].legend()
    figure.suptitle(task)
    return figure


def sample_efficiency(comparison: Comparison) -> Figure:
    """Normalised scores over all tasks, against frames and wall-clock time."""
    figure = Figure(figsize=(8 + 2 * room(comparison.algorithms, 24), 3), layout="constrained")
    for axes, over in zip(figure.subplots(1, 2, sharey=True), ("units", "seconds"), strict=True):
        lines(axes, comparison, comparison.overall(over))
        axes.set(xlabel=axis(comparison, over), ylim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.axes[0].set_ylabel("normalised score (IQM)")
    figure.axes[0].legend()
    return figure


def bars(axes: Axes, rows: list[tuple[str, Estimate, str]]) -> None:
    """Intervals as bars with the estimate as a stroke, a row each, the first on top."""
    for i, (_, one, colour) in enumerate(reversed(rows)):
        if np.isfinite(one.low):
            axes.barh(i, one.high - one.low, left=one.low, color=colour, alpha=0.6, height=0.55)
        axes.vlines(one.value, i - 0.27, i + 0.27, color=LIGHT["ink"], linewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.grid(False, axis="y")


def aggregates(comparison: Comparison) -> Figure:
    """Median, IQM, mean and optimality gap of normalised scores over all tasks."""
    intervals = comparison.aggregates()
    names = list(next(iter(intervals.values())))
    figure = Figure(figsize=(9 + room(intervals), 0.9 + 0.35 * len(intervals)), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        bars(axes, [(a, one[name], look(comparison, a)["color"]) for a, one in intervals.items()])
        axes.set_title(name)
    figure.supxlabel("normalised score")
    return figure


def profiles(comparison: Comparison) -> Figure:
    """Performance profiles: the share of runs whose normalised score exceeds a threshold."""
    figure = Figure(figsize=(5 + room(comparison.algorithms, 24), 3), layout="constrained")
    axes = figure.subplots()
    lines(axes, comparison, comparison.profiles())
    axes.set(xlabel="normalised score τ", ylabel="share of runs with score > τ", ylim=(-0.03, 1.03))
    axes.legend()
    return figure


def improvement(comparison: Comparison) -> Figure:
    """P(X > Y) for every pair of algorithms."""
    intervals = comparison.improvements()
    order = comparison.complete
    pairs = {(x, y): one for (x, y), one in intervals.items() if order.index(x) < order.index(y)}
    figure = Figure(figsize=(6 + 2 * room(order), 0.9 + 0.35 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    bars(axes, [(f"{x} > {y}", one, look(comparison, x)["color"]) for (x, y), one in pairs.items()])
    axes.axvline(0.5, color=LIGHT["edge"], linestyle="--", linewidth=1)
    axes.set(xlim=(-0.02, 1.02), xlabel="P(X > Y)")
    return figure


def parts(comparison: Comparison, task: str) -> Figure | None:
    """Learning curves of groups and agents, a panel per algorithm; None where all get the same."""
    names = comparison.parts(task)
    here = [run for run in comparison.runs if run.task == task]
    identical = all(
        np.allclose(run.curves[name], run.curves[names[0]], equal_nan=True)
        for run in here
        for name in names
        if name in run.curves and names[0] in run.curves
    )
    algorithms = [a for a in comparison.algorithms if (a, task) in comparison.groups]
    if len(names) < 2 or identical:
        return None
    figure = Figure(figsize=((4 + room(algorithms, 40)) * len(algorithms), 3), layout="constrained")
    panels = figure.subplots(1, len(algorithms), sharey=True, squeeze=False)[0]
    by_name = {name: comparison.curves(task, "units", name) for name in names}
    for axes, algorithm in zip(panels, algorithms, strict=True):
        for i, name in enumerate(names):
            curve = by_name[name].get(algorithm)
            if curve is not None:
                label = name.removesuffix("/episode_return")
                axes.plot(curve.x, curve.value, label=label, color=SERIES[i % len(SERIES)])
                axes.fill_between(curve.x, curve.low, curve.high, color=SERIES[i % len(SERIES)], alpha=0.15, lw=0)
        axes.set(title=algorithm, xlabel=axis(comparison, "units"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.axes[0].set_ylabel("episode return (IQM)")
    figure.axes[-1].legend(fontsize=7)
    figure.suptitle(f"{task}: groups and agents")
    return figure
