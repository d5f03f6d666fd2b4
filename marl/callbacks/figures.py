"""Pictures of what a model learned, at the end of a run: learning curves, confusion matrix, wrongly classified rows."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from marl.callbacks.base import Callback
from marl.core.look.figures import style
from marl.core.look.tokens import LIGHT
from marl.engine.run_view import RunView
from marl.loggers.loggers import TensorBoardLogger
from marl.supervised.metrics import confusion
from marl.supervised.task import Supervised

CURVES = ("loss", "accuracy", "episode_return", "error", "r2", "mae", "f1")


class Pictures(Callback):
    """Writes `figures/*.png` into the run directory, and into TensorBoard.

    curves: loss, accuracy, return and the like over the run, of training, validation and test: every task has some.
    confusion: how often each class was called which, of the split that judges the model; classification only.
    wrong: how many of its wrongly classified rows to show, the most confident mistakes first; 0: none. Pictures are
        drawn, other inputs as bars.
    """

    def __init__(self, curves: bool = True, confusion: bool = True, wrong: Annotated[int, Field(ge=0)] = 16) -> None:
        self.curves, self.confusion, self.wrong = curves, confusion, wrong
        self.records: list[dict[str, float]] = []

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        names = [name for name in record if name.split("/")[-1].removeprefix("test_") in CURVES]
        figures = {name: float(record[name]) for name in names if name.count("/") <= name.startswith("eval/")}
        self.records.append({trainer.task.unit: float(trainer.units), **figures})

    def on_end(self, trainer: RunView) -> None:
        """Also of a run that failed, as far as it came."""
        if not self.records:
            return
        import matplotlib  # half a second, that only a run's end takes

        with matplotlib.rc_context(style()):
            drawn = {"curves": draw_curves(self.records)} if self.curves else {}
            task = trainer.task
            if isinstance(task, Supervised) and task.kind == "classification" and trainer.evaluation:
                with trainer.averaged():  # as it was evaluated
                    drawn |= self._classes(task)
            self._save(trainer, drawn)

    def _save(self, trainer: RunView, drawn: dict[str, Any]) -> None:
        for name, figure in drawn.items():
            path = Path(trainer.run_dir) / "figures" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, dpi=110)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.writer.add_image(name, pixels(figure), trainer.units, dataformats="HWC")

    def _classes(self, task: Supervised) -> dict[str, Any]:
        rows = task.held_out.get("test_", task.held_out[""])
        outputs, drawn = task.outputs_of(rows["x"]).float().cpu(), {}
        y, predicted = rows["y"].cpu(), outputs.argmax(-1)
        if self.confusion:
            drawn["confusion"] = draw_confusion(confusion(predicted, y, outputs.shape[-1]).numpy())
        if self.wrong:
            sure = outputs.softmax(-1).amax(-1).masked_fill(predicted == y, -1.0)
            worst = sure.argsort(descending=True)[: min(self.wrong, int((predicted != y).sum()))]
            if len(worst):
                drawn["wrong"] = draw_wrong(np.asarray(rows["x"].cpu()[worst]), y[worst], predicted[worst], sure[worst])
        return drawn

    def state_dict(self) -> dict:
        return {"records": self.records}

    def load_state_dict(self, state: dict) -> None:
        self.records = state["records"]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: nothing is kept, and no screen is asked for

    return Figure((width, height), layout="constrained")


def pixels(figure: Any) -> np.ndarray:
    """What a figure looks like: uint8 [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_curves(records: list[dict[str, float]]) -> Any:
    """A panel per figure, a line per split; the first key of a record is the horizontal axis."""
    unit = next(iter(records[0]))
    names = dict.fromkeys(name for record in records for name in record if name != unit)
    kinds = list(dict.fromkeys(name.removeprefix("eval/").removeprefix("test_") for name in names))
    figure = _figure(4.2 * max(1, len(kinds)), 3.2)
    for i, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), i + 1)
        splits = ((kind, "training"), (f"eval/{kind}", "evaluation"), (f"eval/test_{kind}", "test"))
        for color, (name, label) in enumerate(splits):
            points = [(r[unit], r[name]) for r in records if name in r]
            if points:
                marker = "." if len(points) < 30 else None
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, color=f"C{color}")
        axes.set(xlabel=unit, title=kind.replace("_", " "))
        axes.legend()
    return figure


def draw_confusion(counts: np.ndarray) -> Any:
    """counts int [K, K]: true classes down, predicted ones across; shade by the share of the row."""
    K = len(counts)
    figure = _figure(1.6 + 0.42 * K, 1.4 + 0.42 * K)
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(counts), strict=True) if K <= 30 else ():
        colour = LIGHT["stage" if share[i, j] > 0.5 else "ink"]
        axes.text(j, i, counts[i, j], ha="center", va="center", fontsize=8, color=colour)
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(K), yticks=range(K))
    return figure


def draw_wrong(x: np.ndarray, y: torch.Tensor, predicted: torch.Tensor, sure: torch.Tensor) -> Any:
    """One panel per row of x [N, ...]: what it is, what it was taken for, and how sure the model was."""
    columns = min(8, len(x))
    lines = -(-len(x) // columns)
    figure = _figure(1.25 * columns, 1.5 * lines)
    for i, row in enumerate(x):
        axes = figure.add_subplot(lines, columns, i + 1)
        if row.ndim == 3:
            picture = row[0] if len(row) != 3 else row.transpose(1, 2, 0) / max(float(row.max()), 1e-9)
            axes.imshow(picture, cmap=None if len(row) == 3 else "gray")
        else:
            axes.bar(range(row.size), row.flatten())
        axes.set_title(f"{int(y[i])} not {int(predicted[i])}\n{float(sure[i]):.0%}", fontsize=8)
        axes.axis("off")
    return figure
