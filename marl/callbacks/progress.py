"""Progress on the terminal or in a notebook: a live bar, or plain lines where the output is neither."""

import sys
import time
from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from marl.callbacks.base import Callback
from marl.callbacks.notebook import NotebookBar, in_notebook
from marl.core import terminal
from marl.core.errors import UserError, closest
from marl.engine.run_view import RunView


def describe(record: dict, unit: str, monitor: str, show: Sequence[str] = ()) -> str:
    """One short line of what a person wants to see: speed, what is asked for, the figure of merit, the loss."""
    shown = [f"{record[f'{unit}_per_second']:,.0f} {unit}/s"] if unit == "frames" else []
    asked = [name for key in show for name in (key, f"eval/{key}")]
    keys = (*asked, monitor, f"eval/{monitor}", "accuracy", "eval/accuracy", "loss")
    for key in dict.fromkeys(keys):
        if key in record and record[key] == record[key]:
            shown.append(f"{key} {record[key]:.4g}")
    return "  ".join(shown)


class ProgressBar(Callback):
    """Iteration, speed, remaining time and the current return or accuracy. `mode`: auto, rich, plain or off.

    show: names of figures that are shown too, as the run logs them and as its evaluations give them.
    """

    def __init__(self, mode: str = "auto", show: Sequence[str] = (), every_seconds: float = 5.0):
        self.mode, self.show, self.every_seconds = mode, show, every_seconds
        if mode == "auto":
            self.mode = "rich" if sys.stdout.isatty() or in_notebook() else "plain"
        self.bar: Progress | None = None
        self.cell: NotebookBar | None = None

    def on_start(self, trainer: RunView) -> None:
        self.printed, self.first, self.started = 0.0, trainer.iteration, time.perf_counter()
        if self.mode == "rich" and in_notebook():  # rich would want ipywidgets
            self.cell = NotebookBar(trainer.task.name, trainer.iterations, trainer.iteration)
        elif self.mode == "rich":
            columns = [TextColumn("[bold]{task.description}"), BarColumn(None), MofNCompleteColumn()]
            columns += [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}")]
            self.bar = Progress(*columns, console=terminal.console())
            self.bar.start()
            self.id = self.bar.add_task(trainer.task.name, total=trainer.iterations, figures="")
            self.bar.update(self.id, completed=trainer.iteration)

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        if any(key.startswith("eval/") for key in record):
            self._check(record, last=trainer.iteration >= trainer.iterations)
        text = describe(record, trainer.task.unit, trainer.monitor, self.show)
        if self.cell is not None:
            self.cell.update(trainer.iteration, text)
            return
        if self.bar is not None:
            self.bar.update(self.id, completed=trainer.iteration, figures=text)
            return
        now, evaluated = time.perf_counter(), any(key.startswith("eval/") for key in record)
        last = trainer.iteration == trainer.iterations
        if self.mode == "plain" and (evaluated or last or now - self.printed > self.every_seconds):
            self.printed = now
            done = trainer.iteration - self.first
            left = (now - self.started) / done * (trainer.iterations - trainer.iteration)
            units = record[trainer.task.unit]
            done = f"iteration {trainer.iteration}/{trainer.iterations}  {units:,.0f} {trainer.task.unit}"
            print(terminal.fit(f"{done}  {text}  ETA {left:.0f} s"), flush=True)

    def _check(self, record: dict, last: bool) -> None:
        """Raises UserError for a figure to show that neither the iterations nor the evaluations have.

        last: the run is done; it does not fail for a line of its progress.
        """
        names = {key.removeprefix("eval/") for key in record}
        for key in self.show:
            if key not in record and f"eval/{key}" not in record:
                message = f"trainer.show={key}: is not logged{closest(key, names)}; there are {sorted(names)}"
                if not last:
                    raise UserError(message)
                print(f"warning: {message}", file=sys.stderr, flush=True)

    def on_end(self, trainer: RunView) -> None:
        if self.cell is not None:
            self.cell.end()
            self.cell = None
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
