"""What scripts print, as wide as the terminal and no wider: tables, help, lines of progress."""

import io
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 110  # columns of a table in a file, which has no width of its own


def width() -> int | None:
    """Columns of the terminal, or what the variable COLUMNS says; None where the output is a file or a pipe."""
    return shutil.get_terminal_size((0, 0)).columns or None


def console(file: IO[str] | None = None) -> Console:
    """Prints tables and trees, to `file` or to whatever stdout is."""
    return Console(width=width() or WIDE, file=file)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table whose cells are folded where they are too wide, so that nothing is cut off."""
    result = Table(title=title, title_justify="left")
    for name in columns:
        result.add_column(name, overflow="fold")
    return result


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of plain text."""
    shown = table(*columns)
    for row in rows:
        shown.add_row(*map(Text, row))
    console().print(shown)


@contextmanager
def fitted() -> Iterator[None]:
    """What is printed in the block is printed after it, as `fit` makes it."""
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        print(fit(output.getvalue()), end="")


def fit(text: str) -> str:
    """`text` with lines that are wider than the terminal wrapped; what follows is indented as their last column is."""
    columns = width()
    if columns is None:
        return text
    return "\n".join(_wrap(line, columns) if len(line) > columns else line for line in text.split("\n"))


def _wrap(line: str, columns: int) -> str:
    gaps = [gap.end() for gap in re.finditer(r"(?<=\S) {2,}(?=\S)", line)]
    indent = gaps[-1] if gaps else len(line) - len(line.lstrip()) + 2
    if indent > columns // 2:
        indent = 4
    return textwrap.fill(line, columns, subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False, drop_whitespace=True, replace_whitespace=False)  # fmt: skip
