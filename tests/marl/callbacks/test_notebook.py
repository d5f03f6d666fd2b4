"""The bar below a notebook's cell, as HTML and as text; tests/docs/test_notebook.py sees it in a kernel."""

import sys
from types import SimpleNamespace

from marl.callbacks import progress
from marl.callbacks.notebook import NotebookBar, clock, in_notebook, picture


def test_a_bar_says_how_far_a_run_is():
    shown = picture("<team>", 20, 200, "0:10, 1:30 left", "27,000 frames/s  loss 0.5")
    assert shown["text/plain"] == "<team>  20/200  0:10, 1:30 left  27,000 frames/s  loss 0.5"
    assert '&lt;team&gt; <progress value="20" max="200"' in shown["text/html"]
    assert shown["text/html"].endswith("20/200 · 0:10, 1:30 left · 27,000 frames/s · loss 0.5</div>")


def test_its_text_fits_80_columns():
    lines = picture("team", 1, 2, "0:01", "  ".join(f"figure_{i} {i}" for i in range(8)))["text/plain"].splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 80 and lines[1].startswith("  ")


def test_a_bar_before_the_first_iteration_has_no_figures():
    assert picture("team", 0, 2, "0:00", "")["text/plain"] == "team  0/2  0:00"


def test_a_run_that_ends_early_leaves_where_it_came_to(monkeypatch):
    drawn = []
    cell = SimpleNamespace(update=lambda content, raw: drawn.append(content["text/plain"]))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=lambda *_, **__: cell))
    bar = NotebookBar("team", 200)
    for done in (1, 2, 3):  # within a fifth of a second
        bar.update(done, f"loss {done}")
    bar.end()
    assert "3/200" in drawn[-1] and drawn[-1].endswith("loss 3")


def test_times_are_minutes_and_seconds():
    assert [clock(seconds) for seconds in (0, 59.6, 125, 3600)] == ["0:00", "1:00", "2:05", "60:00"]


def test_here_is_no_notebook_and_no_terminal():
    """pytest catches what is printed: lines, as before."""
    assert not in_notebook() and progress.ProgressBar().mode == "plain"
