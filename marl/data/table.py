"""What readers of files share: one sentence for what can't be read, the lines of a CSV file, what numbers may be."""

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from marl.core.errors import UserError

ALLOWED = {"binary": "0 or 1", "classification": "whole numbers from 0 on"}
LARGEST = torch.finfo(torch.float32).max
Place = Callable[[Sequence[int]], str]  # the name of an array's element, from its indices


@contextmanager
def reading(where: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever reading a file raises into one UserError: `where` it is, what it should be and why it isn't."""
    try:
        yield
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is no text in UTF-8 ({error.reason}); save it as that") from error
    except MemoryError as error:
        raise UserError(f"{where}: does not fit into memory") from error
    except OSError as error:
        why = f"cannot be read: {error.strerror}" if error.strerror else f"is no {kind} ({error})"
        raise UserError(f"{where}: {why}") from error
    except Exception as error:  # readers of zip files and pictures raise anything where a file is damaged
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{where}: is no {kind} ({why})") from error


def located(where: str, path: str | Path) -> Path:
    """`path` with a home directory in place of ~. Raises UserError, beginning with `where`, for what is no path."""
    with reading(where, "path"):
        place = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(place)  # refuses names that no file can have
    return place


def refuse_too_large(need: int, path: str | Path, what: str) -> None:
    """Raises UserError where `need` bytes are more than this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > memory:
        size = f"{need / 1e9:.3g} GB, more than this machine's memory of {memory / 1e9:.3g} GB"
        raise UserError(f"{path}: {what} would take {size}")


def check_finite(values: Tensor, place: Place) -> None:
    """Raises UserError, naming the place, where a number of `values` (of any shape and type) is not finite."""
    if values.is_floating_point() and not (finite := torch.isfinite(values)).all():
        first = (~finite).nonzero()[0].tolist()
        raise UserError(f"{place(first)} is {values[tuple(first)].item():g}; numbers must be finite, below 3.4e38")


def lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """The header, then the rows of a CSV file, each with the number of its line; empty ones are left out.

    Raises UserError where the file can't be read, or a line has more or fewer cells than the header.
    """
    # Spreadsheets put a byte order mark before the first name; it is no part of it.
    with (
        reading(f"data.path={path}", "CSV file"),
        open(located(f"data.path={path}", path), encoding="utf-8-sig", newline="") as file,
    ):
        reader, width = csv.reader(file), None
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                raise UserError(f"{path}: line {reader.line_num} has {len(row)} cells, the header {width}")
            if row:
                yield reader.line_num, row


def inputs(path: str | Path, header: Sequence[str], targets: Sequence[str], drop: Sequence[str] = ()) -> list[str]:
    """The columns that are neither targets nor dropped. Raises UserError for names that say no one column."""
    if not header:
        raise UserError(f"data.path={path}: has no header; the first line must name the columns")
    if not targets:
        raise UserError("data.target=[]: names no column to predict")
    for key, names in (("target", targets), ("drop", drop)):
        if missing := [name for name in names if name not in header]:
            raise UserError(f"data.{key}={missing}: {path} has the columns {', '.join(header)[:500]}")
    counts = Counter(name for name in header if name in targets or name not in drop)
    if double := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"data.path={path}: several columns are called {', '.join(map(repr, double))}; must differ")
    if unused := [name for name in counts if name not in targets]:
        return unused
    raise UserError(f"data.target={list(targets)}: {path} has no further column, to be an input")


class Cells:
    """The cells of a CSV file's columns `names` as numbers, line by line.

    hint: what to do about a cell that is no number at all, behind the sentence on it; "{name}" is the column's.
    """

    def __init__(self, path: str | Path, header: Sequence[str], names: Sequence[str], hint: str) -> None:
        self.path, self.names, self.hint = path, names, hint
        self.places = [header.index(name) for name in names]

    def read(self, line: int, row: Sequence[str]) -> list[float]:
        """The numbers of one line. Raises UserError, naming line and column, for what is no finite number."""
        try:
            values = [float(row[place]) for place in self.places]
        except ValueError:
            self._refuse(line, row)
        if not all(-LARGEST <= value <= LARGEST for value in values):
            self._refuse(line, row)
        return values

    def _refuse(self, line: int, row: Sequence[str]) -> None:
        for name, place in zip(self.names, self.places, strict=True):
            text = row[place] if len(row[place]) <= 40 else f"{row[place][:40]}…"
            where = f"{self.path}: line {line}, column {name!r}: {text!r}"
            try:
                value = float(row[place])
            except ValueError:
                raise UserError(f"{where} is no number; {self.hint.format(name=name)}") from None
            if not -LARGEST <= value <= LARGEST:
                kind = "too large for float32" if math.isfinite(value) else "not finite"
                raise UserError(f"{where} is {kind}; leave the line out, or fill the cell in")


def target_hint(kind: str) -> str:
    """What to do about a target that is no number."""
    if kind == "classification":  # of streams, which can't know the words beforehand
        return "classes are whole numbers from 0 on here; data=csv takes words"
    return f"data.kind={kind} takes numbers, data.kind=classification words too"


def check_labels(y: Tensor, kind: str, place: Place) -> None:
    """Raises UserError, naming the place, where targets y, float or int of any shape, are no labels of that kind."""
    if kind in ALLOWED:
        fits = (y == 0) | (y == 1) if kind == "binary" else (y >= 0) & (y % 1 == 0)
        if not fits.all():
            first = (~fits).nonzero()[0].tolist()
            raise UserError(
                f"data.kind={kind}: targets must be {ALLOWED[kind]}, but {place(first)} is {y[tuple(first)].item():g}"
            )


def classes(largest: float, rows: int, path: str | Path) -> int:
    """How many classes the labels 0 to `largest` make. Raises UserError where they are more than rows."""
    number = int(largest) + 1
    if number > rows:  # codes or identities: a model would get an output for each number up to the largest
        raise UserError(
            f"data.path={path}: the label {number - 1} means {number} classes, more than the {rows} rows; "
            "number the classes 0, 1, 2 and so on"
        )
    return number
