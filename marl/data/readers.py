"""Your own data by configuration: CSV, npz, a folder of pictures, IDX files."""

import math
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from marl.core.errors import UserError
from marl.data.base import ArrayData, Count, Fold, Folds, Fraction, Kind, Seed, split
from marl.data.images import read_idx
from marl.data.table import (
    Cells,
    check_finite,
    check_labels,
    classes,
    inputs,
    lines,
    located,
    reading,
    refuse_too_large,
    target_hint,
)

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


class _Dealt(ArrayData):
    """Rows read from files, dealt at random into the three splits."""

    def _deal(
        self, source: str, kind: Kind, out: int, x: Tensor, y: Tensor, validation: float, test: float | None,
        seed: int, folds: int | None, fold: int, standardize_targets: bool = True,
    ) -> None:  # fmt: skip
        fractions = {"data.validation": validation} | ({} if test is None else {"data.test": test})
        labels = y.flatten().long() if kind != "regression" and out == 1 or kind == "classification" else None
        self.source = source
        parts = split(len(x), fractions, seed, labels, folds, fold)
        if not all(map(len, parts)):
            raise UserError(f"{source}: {len(x)} rows are too few to have some in each split")
        train, held_out, *last = ((x[index], y[index]) for index in parts)
        super().__init__(kind, out, train, held_out, last[0] if last else None, standardize_targets=standardize_targets)


class CSV(_Dealt):
    """A CSV file with a header: x [N, columns] of numbers, y from the column(s) `target`.

    kind: "regression": numbers; "binary": 0 or 1, a label per target; "classification": numbers or words, of which the
    sorted different ones are the classes (`classes`). `drop` names columns that are left out. `validation` and `test`
    (null: none) are fractions, dealt by `seed`; `folds` and `fold` as in `marl.data.base.split`;
    `standardize_targets`, of a regression, as in `marl.data.ArrayData`.
    Raises UserError where the file can't be read so, with line and column; numbers must be finite.
    """

    def __init__(
        self,
        path: str,
        target: str | Sequence[str],
        kind: Kind = "regression",
        drop: Sequence[str] = (),
        validation: Fraction = 0.15,
        test: Fraction | None = 0.15,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
        standardize_targets: bool = True,
    ) -> None:
        targets = [target] if isinstance(target, str) else list(target)
        (_, header), *rows = list(lines(path)) or [(1, [])]
        x = _numbers(path, header, rows, inputs(path, header, targets, drop), "data.drop=[{name}] leaves it out")
        if kind == "classification":
            if len(targets) > 1:
                raise UserError(f"data.target={targets}: a classification has one column of classes")
            words = [row[header.index(targets[0])] for _, row in rows]
            if "" in words:
                raise UserError(f"{path}: line {rows[words.index('')][0]}, column {targets[0]!r}: has no class")
            self.classes = sorted(set(words), key=lambda word: (not word.isdigit(), word.zfill(12)))
            y, out = torch.tensor([self.classes.index(word) for word in words]), len(self.classes)
        else:
            y, out = _numbers(path, header, rows, targets, target_hint(kind)), len(targets)
            check_labels(y, kind, lambda at: f"line {rows[at[0]][0]}, column {targets[at[1]]!r} of {path}")
        self._deal(path, kind, out, x, y, validation, test, seed, folds, fold, standardize_targets)


def _numbers(
    path: str, header: list[str], rows: list[tuple[int, list[str]]], names: Sequence[str], hint: str
) -> Tensor:
    cells = Cells(path, header, names, hint)
    return torch.tensor([cells.read(line, row) for line, row in rows]).reshape(len(rows), len(names))


class NPZ(_Dealt):
    """Arrays of a NumPy `.npz` file: x [N, ...] and y [N] or [N, O] under the names `x` and `y`.

    kind and the rest as for `CSV`; classes are whole numbers from 0 on. Nothing in the file is run (no pickles).
    Raises UserError where it can't be read so, naming the element; numbers must be finite.
    """

    def __init__(
        self,
        path: str,
        kind: Kind = "classification",
        x: str = "x",
        y: str = "y",
        validation: Fraction = 0.15,
        test: Fraction | None = 0.15,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
        standardize_targets: bool = True,
    ) -> None:
        read, known = _arrays(path, {"x": x, "y": y})
        with np.errstate(over="ignore"):  # what becomes infinite is told below, with its place
            values = torch.from_numpy(read.astype(np.float32))
            aims = torch.from_numpy(known.astype(np.float32 if known.dtype.kind == "f" else np.int64))
        wide, narrow = "[rows, numbers], or more dimensions", "[rows] or [rows, targets]"
        shapes = (("x", x, values, values.dim() > 1, wide), ("y", y, aims, aims.dim() in (1, 2), narrow))
        for key, name, array, fits, allowed in shapes:
            if not fits or not array.shape[1:].numel():
                raise UserError(f"data.{key}={name}: has the shape {list(array.shape)} in {path}; must be {allowed}")
        if len(values) != len(aims) or not len(aims):
            raise UserError(f"data.path={path}: {len(values)} inputs and {len(aims)} targets; must be equal, above 0")
        if kind == "classification" and (aims.is_floating_point() or aims.dim() != 1):
            raise UserError(f"data.y={y}: classes must be whole numbers from 0 on, one per row of {path}")
        check_finite(values, partial(_element, path, x))
        check_finite(aims, partial(_element, path, y))
        check_labels(aims, kind, partial(_element, path, y))
        if kind == "classification":
            out = classes(int(aims.max()), len(aims), path)
        else:
            out = 1 if aims.dim() == 1 else aims.shape[1]
        self._deal(path, kind, out, values, aims, validation, test, seed, folds, fold, standardize_targets)


def _element(path: str, name: str, at: Sequence[int]) -> str:
    return f"{name}{list(at)} of {path}"


def _arrays(path: str, names: Mapping[str, str]) -> Iterator[np.ndarray]:
    """The arrays `names` {key: name in the file} of real numbers.

    What an array's header states is compared with what the file holds before memory is asked for.
    """
    expected = "npz file of arrays of numbers"
    with reading(f"data.path={path}", expected), zipfile.ZipFile(located(f"data.path={path}", path)) as file:
        stored = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        for key, name in names.items():
            if name not in stored:
                raise UserError(f"data.{key}={name}: {path} holds {', '.join(stored)[:500] or 'nothing'}")
            with file.open(stored[name]) as member:
                shape, dtype = _header(member)
                if dtype.kind not in "biuf":
                    raise UserError(f"data.{key}={name}: holds {dtype} in {path}; must be real numbers")
                size = math.prod(shape) * dtype.itemsize
                if size > stored[name].file_size:
                    raise UserError(
                        f"data.{key}={name}: {path} states the shape {list(shape)}, {size:,} bytes, "
                        f"but holds {stored[name].file_size:,}"
                    )
                refuse_too_large(math.prod(shape) * max(4, dtype.itemsize), path, f"the array {name}")
            with file.open(stored[name]) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            yield array


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that an array of NumPy's format states."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {list(shape)}")
    return shape, dtype


class ImageFolder(_Dealt):
    """Pictures in a folder per class, FOLDER/CLASS/NAME.png: x [N, C, H, W] in [0, 1], classes in order of name.

    size: [height, width] to which all are scaled; null: they have one size. grey: one channel instead of three.
    The rest as for `CSV`. What has no name of a picture is left out, with a warning. Raises UserError where there are
    no pictures, or of several sizes.
    """

    def __init__(
        self,
        folder: str,
        size: tuple[Count, Count] | None = None,
        grey: bool = False,
        validation: Fraction = 0.15,
        test: Fraction | None = 0.15,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
    ) -> None:
        root = located(f"data.folder={folder}", folder)
        paths = sorted(p for p in root.glob("*/*") if p.suffix.lower() in PICTURES and p.is_file())
        others = sorted(set(root.glob("[!.]*/[!.]*")) - set(paths))
        if others:
            named = ", ".join(str(path.relative_to(root)) for path in others[:5])
            message = f"{len(others)} left out, only {' '.join(PICTURES)} are read: {named}"
            print(f"warning: data.folder={folder}: {message}{', ...' * (len(others) > 5)}", file=sys.stderr, flush=True)
        self.classes = sorted({path.parent.name for path in paths})
        if len(self.classes) < 2:
            raise UserError(f"data.folder={folder}: {len(self.classes)} folders with pictures; needs one per class")
        if size is not None:
            self._refuse_too_large(folder, len(paths), (*size, 1 if grey else 3))
        pictures = []
        for path in paths:
            pictures.append(_picture(path, size, grey))
            if pictures[-1].shape != pictures[0].shape:
                raise UserError(f"data.folder={folder}: pictures of several sizes; give data.size=[height,width]")
            if len(pictures) == 1:
                self._refuse_too_large(folder, len(paths), pictures[0].shape)
        x = torch.from_numpy(np.stack(pictures)).float() / 255
        x = x.unsqueeze(1) if grey else x.permute(0, 3, 1, 2).contiguous()
        y = torch.tensor([self.classes.index(path.parent.name) for path in paths])
        self._deal(folder, "classification", len(self.classes), x, y, validation, test, seed, folds, fold)

    @staticmethod
    def _refuse_too_large(folder: str, count: int, shape: Sequence[int]) -> None:
        refuse_too_large(4 * count * math.prod(shape), f"data.folder={folder}", f"{count} pictures of {list(shape)}")


def _picture(path: Path, size: tuple[int, int] | None, grey: bool) -> np.ndarray:
    """One picture as uint8 [H, W] or [H, W, 3], scaled to `size`. Raises UserError for what is none, or a bomb."""
    from PIL import Image

    with reading(path, "picture"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only warns of up to twice its limit
        with Image.open(path) as opened:
            if 0 in opened.size:
                raise ValueError(f"it has {opened.size[0]} x {opened.size[1]} pixels")
            image = _bytes(opened, path).convert("L" if grey else "RGB")
            return np.asarray(image if size is None else image.resize((size[1], size[0])))


def _bytes(image: Any, path: Path) -> Any:
    """A PIL picture whose 16-bit greys are 8-bit ones: Pillow's own conversion would cut them off at 255."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    greys = np.asarray(image)
    if image.mode == "F" or greys.min() < 0 or greys.max() > 65535:
        raise UserError(f"{path}: greys of mode {image.mode}, {greys.min():g} to {greys.max():g}; needs 8 or 16 bits")
    return Image.fromarray((greys / 257).round().astype(np.uint8))


class IDX(_Dealt):
    """A pair of IDX files (MNIST's format), plain or gzipped: pictures [N, H, W] in [0, 1] after division, and classes.

    The rest as for `CSV`. Raises UserError where a file isn't that.
    """

    def __init__(
        self,
        images: str,
        labels: str,
        validation: Fraction = 0.15,
        test: Fraction | None = 0.15,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
    ) -> None:
        paths = [located(f"data.{key}={path}", path) for key, path in (("images", images), ("labels", labels))]
        for key, path in zip(("images", "labels"), paths, strict=True):
            if not path.is_file():
                raise UserError(f"data.{key}={path}: no such file")
        x, y = (read_idx(path) for path in paths)
        if x.dim() != 3 or not x.numel():
            raise UserError(f"data.images={images}: has the shape {list(x.shape)}; must be [pictures, height, width]")
        if len(x) != len(y) or y.dim() != 1:
            raise UserError(f"data.labels={labels}: {list(y.shape)} labels for {len(x)} pictures")
        x = x.float().div(255).unsqueeze(1)
        out = classes(int(y.max()), len(y), labels)
        self._deal(images, "classification", out, x, y, validation, test, seed, folds, fold)
