"""A progress bar below a notebook's cell: one line that is drawn over, without widgets."""

import html
import sys
import textwrap
import time

EVERY = 0.2  # seconds between two pictures of the bar
COLUMNS = 80  # of the bar as text


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this process (Jupyter, VS Code, Colab)."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)  # without IPython there is no notebook
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


class NotebookBar:
    """Iterations done, time taken and left, and figures, as one output of the cell that runs.

    It is kept with the notebook as it looked last: as HTML, and as text for where HTML is not shown.

    Args:
        name: what it begins with. total: iterations. done: those before this run, of a run that goes on.
    """

    def __init__(self, name: str, total: int, done: int = 0):
        from IPython.display import display

        self.name, self.total, self.first, self.began, self.drawn = name, total, done, time.perf_counter(), 0.0
        handle = display(picture(name, done, total, "0:00", ""), raw=True, display_id=True)
        self.latest = (done, "")
        assert handle is not None  # asked for by display_id
        self.handle = handle

    def update(self, done: int, figures: str, at_once: bool = False) -> None:
        """Draw it, at most every 0.2 s, after the last iteration, and where that is asked for."""
        now, self.latest = time.perf_counter(), (done, figures)
        if at_once or now - self.drawn > EVERY or done >= self.total:
            self.drawn, taken = now, now - self.began
            left = taken / max(done - self.first, 1) * (self.total - done)
            times = clock(taken) + (f", {clock(left)} left" if done < self.total else "")
            self.handle.update(picture(self.name, done, self.total, times, figures), raw=True)

    def end(self) -> None:
        """The run is over, early perhaps: what is left to see is where it came to."""
        self.update(*self.latest, at_once=True)


def picture(name: str, done: int, total: int, times: str, figures: str) -> dict[str, str]:
    """The bar as {type: content}, for IPython's display."""
    parts = [f"{done}/{total}", times, *figures.split("  ")]
    words = html.escape(" \N{MIDDLE DOT} ".join(filter(None, parts)))
    bar = f'<progress value="{done}" max="{total}" style="width: 16em"></progress>'
    line = "  ".join(filter(None, [name, *parts]))
    return {
        "text/html": f'<div style="font-variant-numeric: tabular-nums">{html.escape(name)} {bar} {words}</div>',
        "text/plain": textwrap.fill(line, COLUMNS, subsequent_indent="  ", break_on_hyphens=False),
    }


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 2:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
