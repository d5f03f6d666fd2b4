"""Your own data by configuration: CSV, npz, a folder of pictures, IDX files."""

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl.data.base import ArrayData, Fold, Folds, Fraction, Kind, Seed, split
from marl.data.images import read_idx
from marl.data.table import check_labels, classes, inputs, lines
from marl.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


class _Dealt(ArrayData):
    """Rows read from files, dealt at random into the three splits."""

    def _deal(
        self, kind: Kind, out: int, x: Tensor, y: Tensor, validation: float, test: float | None, seed: int,
        folds: int | None, fold: int,
    ) -> None:  # fmt: skip
        fractions = {"data.validation": validation} | ({} if test is None else {"data.test": test})
        labels = y.flatten().long() if kind != "regression" and out == 1 or kind == "classification" else None
        parts = split(len(x), fractions, seed, labels, folds, fold)
        super().__init__(kind, out, *((x[index], y[index]) for index in parts))


class CSV(_Dealt):
    """A CSV file with a header: x [N, columns] of numbers, y from the column(s) `target`.

    kind: "regression": numbers; "binary": 0 or 1, a label per target; "classification": numbers or words, of which the
    sorted different ones are the classes (`classes`). `drop` names columns that are left out. `validation` and `test`
    (null: none) are fractions, dealt by `seed`; `folds` and `fold` as in `marl.data.base.split`.
    Raises UserError where the file can't be read so, with the line.
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
    ) -> None:
        targets = [target] if isinstance(target, str) else list(target)
        (_, header), *rows = list(lines(path)) or [(1, [])]
        x = _numbers(path, header, rows, inputs(path, header, targets, drop))
        if kind == "classification":
            if len(targets) > 1:
                raise UserError(f"data.target={targets}: a classification has one column of classes")
            words = [row[header.index(targets[0])] for _, row in rows]
            self.classes = sorted(set(words), key=lambda word: (not word.isdigit(), word.zfill(12)))
            y, out = torch.tensor([self.classes.index(word) for word in words]), len(self.classes)
        else:
            y, out = _numbers(path, header, rows, targets), len(targets)
            check_labels(y, kind, path)
        self._deal(kind, out, x, y, validation, test, seed, folds, fold)


def _numbers(path: str, header: list[str], rows: list[tuple[int, list[str]]], names: Sequence[str]) -> Tensor:
    places = [header.index(name) for name in names]
    read = []
    for line, row in rows:
        try:
            read.append([float(row[place]) for place in places])
        except ValueError:
            raise UserError(f"{path}: line {line} has no number in one of the columns {', '.join(names)}") from None
    return torch.tensor(read)


class NPZ(_Dealt):
    """Arrays of a NumPy `.npz` file: x [N, ...] and y [N] or [N, O] under the names `x` and `y`.

    kind and the rest as for `CSV`; classes are whole numbers from 0 on. Nothing in the file is run (no pickles).
    Raises UserError where it can't be read so.
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
    ) -> None:
        try:
            with np.load(Path(path).expanduser(), allow_pickle=False) as file:
                for key, name in (("x", x), ("y", y)):
                    if name not in file:
                        raise UserError(f"data.{key}={name}: {path} holds {', '.join(file)}")
                values, aims = torch.from_numpy(file[x]).float(), torch.from_numpy(file[y])
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"data.path={path}: no npz file of arrays of numbers ({error})") from error
        aims = aims if aims.is_floating_point() else aims.long()  # torch can't even compare unsigned ones
        wide, narrow = "[rows, numbers], or more dimensions", "[rows] or [rows, targets]"
        shapes = (("x", x, values, values.dim() > 1, wide), ("y", y, aims, aims.dim() in (1, 2), narrow))
        for key, name, array, fits, allowed in shapes:
            if not fits or not array.shape[1:].numel():
                raise UserError(f"data.{key}={name}: has the shape {list(array.shape)} in {path}; must be {allowed}")
        if len(values) != len(aims) or not len(aims):
            raise UserError(f"data.path={path}: {len(values)} inputs and {len(aims)} targets; must be equal, above 0")
        if kind == "classification" and (aims.is_floating_point() or aims.dim() != 1):
            raise UserError(f"data.y={y}: classes must be whole numbers from 0 on, one per row")
        check_labels(aims, kind, path)
        if kind == "classification":
            out = classes(int(aims.max()), len(aims), path)
        else:
            out = 1 if aims.dim() == 1 else aims.shape[1]
        self._deal(kind, out, values, aims, validation, test, seed, folds, fold)


class ImageFolder(_Dealt):
    """Pictures in a folder per class, FOLDER/CLASS/NAME.png: x [N, C, H, W] in [0, 1], classes in order of name.

    size: [height, width] to which all are scaled; null: they have one size. grey: one channel instead of three.
    The rest as for `CSV`. What has no name of a picture is left out, with a warning. Raises UserError where there are
    no pictures, or of several sizes.
    """

    def __init__(
        self,
        folder: str,
        size: tuple[int, int] | None = None,
        grey: bool = False,
        validation: Fraction = 0.15,
        test: Fraction | None = 0.15,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
    ) -> None:
        from PIL import Image, UnidentifiedImageError

        root = Path(folder).expanduser()
        found = sorted(p for p in root.glob("*/*") if p.suffix.lower() in PICTURES)
        others = sorted(set(root.glob("[!.]*/[!.]*")) - set(found))
        if others:
            named = ", ".join(str(path.relative_to(root)) for path in others[:5])
            told = f"{len(others)} left out, only {' '.join(PICTURES)} are read: {named}"
            print(f"warning: data.folder={folder}: {told}{', ...' * (len(others) > 5)}", file=sys.stderr, flush=True)
        self.classes = sorted({path.parent.name for path in found})
        if len(self.classes) < 2:
            raise UserError(f"data.folder={folder}: {len(self.classes)} folders with pictures; needs one per class")
        pictures = []
        for path in found:
            try:
                with Image.open(path) as opened:
                    image = _bytes(opened, path).convert("L" if grey else "RGB")
                    pictures.append(np.asarray(image if size is None else image.resize((size[1], size[0]))))
            except (OSError, UnidentifiedImageError) as error:
                raise UserError(f"{path}: no picture ({error})") from error
        if len({picture.shape for picture in pictures}) > 1:
            raise UserError(f"data.folder={folder}: pictures of several sizes; give data.size=[height,width]")
        x = torch.from_numpy(np.stack(pictures)).float() / 255
        x = x.unsqueeze(1) if grey else x.permute(0, 3, 1, 2).contiguous()
        y = torch.tensor([self.classes.index(path.parent.name) for path in found])
        self._deal("classification", len(self.classes), x, y, validation, test, seed, folds, fold)


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
        paths = [Path(images).expanduser(), Path(labels).expanduser()]
        for key, path in zip(("images", "labels"), paths, strict=True):
            if not path.is_file():
                raise UserError(f"data.{key}={path}: no such file")
        x, y = (read_idx(path) for path in paths)
        if len(x) != len(y) or y.dim() != 1:
            raise UserError(f"data.labels={labels}: {list(y.shape)} labels for {len(x)} pictures")
        x = x.float().div(255).unsqueeze(1)
        self._deal("classification", int(y.max()) + 1, x, y, validation, test, seed, folds, fold)
