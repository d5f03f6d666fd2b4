"""What readers of files share: the lines of a CSV file, which columns are inputs, and what targets may be."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from marl.errors import UserError

ALLOWED = {"binary": "0 or 1", "classification": "whole numbers from 0 on"}


def lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """The header, then the rows of a CSV file, each with the number of its line; empty ones are left out.

    Raises UserError where the file can't be read, or a line has more or fewer cells than the header.
    """
    try:
        # Spreadsheets put a byte order mark before the first name; it is no part of it.
        with open(Path(path).expanduser(), encoding="utf-8-sig", newline="") as file:
            reader, width = csv.reader(file), None
            for row in reader:
                width = width or len(row)
                if row and len(row) != width:
                    raise UserError(f"{path}: line {reader.line_num} has {len(row)} cells, the header {width}")
                if row:
                    yield reader.line_num, row
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.path={path}: is no text in UTF-8 ({error.reason}); save it as that") from error
    except csv.Error as error:
        raise UserError(f"data.path={path}: is no CSV file ({error})") from error


def inputs(path: str | Path, header: Sequence[str], targets: Sequence[str], drop: Sequence[str] = ()) -> list[str]:
    """The columns that are neither targets nor dropped. Raises UserError for names that say no one column."""
    for key, names in (("target", targets), ("drop", drop)):
        if missing := [name for name in names if name not in header]:
            raise UserError(f"data.{key}={missing}: {path} has the columns {', '.join(header)}")
    counts = Counter(name for name in header if name in targets or name not in drop)
    if double := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"data.path={path}: several columns are called {', '.join(map(repr, double))}; must differ")
    if found := [name for name in counts if name not in targets]:
        return found
    raise UserError(f"data.target={list(targets)}: {path} has no further column, to be an input")


def check_labels(y: Tensor, kind: str, path: str | Path) -> None:
    """Raises UserError where targets y, float or int of any shape, are no labels of that kind."""
    if kind in ALLOWED:
        fits = (y == 0) | (y == 1) if kind == "binary" else (y >= 0) & (y % 1 == 0)
        if not fits.all():
            raise UserError(f"data.kind={kind}: the targets in {path} must be {ALLOWED[kind]}, not {y[~fits][0]:g}")


def classes(largest: float, rows: int, path: str | Path) -> int:
    """How many classes the labels 0 to `largest` make. Raises UserError where they are more than rows."""
    number = int(largest) + 1
    if number > rows:  # codes or identities: a model would get an output for each number up to the largest
        raise UserError(
            f"data.path={path}: the label {number - 1} means {number} classes, more than the {rows} rows; "
            "number the classes 0, 1, 2 and so on"
        )
    return number
