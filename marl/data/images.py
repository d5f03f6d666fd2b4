"""Real images with labels: handwritten digits, and Fashion-MNIST from its files."""

import gzip
import math
import struct
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from marl.core.errors import UserError
from marl.data.base import ArrayData, Fold, Folds, Fraction, Seed, split
from marl.data.table import located, reading, refuse_too_large

FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Digits(ArrayData):
    """1,797 handwritten digits of 8×8 pixels (`sklearn.datasets.load_digits`, UCI): x [N, 1, 8, 8], 10 classes.

    `validation` and `test` are fractions, `seed` deals them; every class is in each split in proportion. `folds` and
    `fold`: see `marl.data.base.split`. `digits`: only these, which become the classes 0, 1, … in that order.
    """

    def __init__(
        self,
        validation: Fraction = 0.15,
        test: Fraction = 0.2,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
        digits: Annotated[list[Annotated[int, Field(ge=0, le=9)]], Field(min_length=2)] | None = None,
    ) -> None:
        x, y = load(digits)
        rows = split(len(x), {"data.validation": validation, "data.test": test}, seed, y, folds, fold)
        train, held_out, last = ((x[index], y[index]) for index in rows)
        super().__init__("classification", len(digits or range(10)), train, held_out, last)


def load(digits: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The handwritten digits: pictures float32 [N, 1, 8, 8] from 0 to 16, classes int64 [N]."""
    from sklearn.datasets import load_digits  # slow to import: only for those who use it

    raw: Any = load_digits()  # a Bunch
    x = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1)
    y = torch.as_tensor(raw.target, dtype=torch.int64)
    if digits is None:
        return x, y
    if len(set(digits)) < len(digits):
        raise UserError(f"data.digits={digits}: one is named twice")
    chosen = torch.isin(y, torch.tensor(digits))
    return x[chosen], (y[chosen].unsqueeze(1) == torch.tensor(digits)).long().argmax(1)


class FashionMNIST(ArrayData):
    """70,000 pictures of clothes, x [N, 1, 28, 28] in [0, 1], 10 classes (Xiao et al. 2017), from its four IDX files.

    The files, plain or gzipped, lie in `folder`; nothing is downloaded. `validation` is the fraction held out of the
    60,000 training pictures, dealt by `seed`; the 10,000 `t10k` pictures are the test split.
    Raises UserError, naming the folder and the files, where one is missing or is not what its name says.
    """

    def __init__(
        self, folder: str, validation: Fraction = 1 / 12, seed: Seed = 0, folds: Folds = None, fold: Fold = 0
    ) -> None:
        paths = [_find(located(f"data.folder={folder}", folder), name) for name in FASHION_MNIST_FILES]
        missing = [name for name, path in zip(FASHION_MNIST_FILES, paths, strict=True) if path is None]
        if missing:
            raise UserError(
                f"data.folder={folder}: lacks {', '.join(missing)}; Fashion-MNIST is the four files "
                f"{', '.join(FASHION_MNIST_FILES)}, plain or .gz, from "
                "https://github.com/zalandoresearch/fashion-mnist, or on Debian and Ubuntu from the package "
                "dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist"
            )
        x, y, test_x, test_y = (read_idx(path) for path in paths if path is not None)
        for name, pictures, labels in ((FASHION_MNIST_FILES[0], x, y), (FASHION_MNIST_FILES[2], test_x, test_y)):
            if pictures.dim() != 3 or not pictures.numel() or labels.shape != pictures.shape[:1] or labels.max() > 9:
                shapes = f"{list(pictures.shape)} and labels {list(labels.shape)}"
                raise UserError(f"data.folder={folder}: {name} and its labels are no pictures of 10 classes ({shapes})")
        train, held_out = split(len(x), {"data.validation": validation}, seed, y, folds, fold)
        images, test_images = x.unsqueeze(1).float() / 255, test_x.unsqueeze(1).float() / 255
        super().__init__(
            "classification",
            10,
            (images[train], y[train]),
            (images[held_out], y[held_out]),
            (test_images, test_y),
        )


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """The unsigned bytes of an IDX file (LeCun's MNIST format), plain or gzipped, as uint8 of the shape it states.

    Header, big-endian: two zero bytes, the type (0x08 is unsigned byte), the number of dimensions, then each
    dimension as 32 bits. Raises UserError where the file isn't that.
    """
    with reading(path, "complete IDX file"), _opened(path) as file:
        start = file.read(4)
        if len(start) < 4 or start[:3] != b"\x00\x00\x08":
            raise UserError(f"{path}: no IDX file of unsigned bytes; it starts with {start.hex()}")
        dimensions = start[3]
        header = file.read(4 * dimensions)
        if not dimensions or len(header) < 4 * dimensions:
            raise UserError(f"{path}: no complete IDX file; it ends within its header")
        shape = struct.unpack(f">{dimensions}I", header)
        size = math.prod(shape)
        refuse_too_large(5 * size, path, f"the shape {list(shape)} that its header states")  # bytes, then float32
        content = bytearray(file.read(size + 1))  # one more shows whether it ends there; a header may lie
        if len(content) != size:
            raise UserError(f"{path}: does not hold the shape {list(shape)} that its header states")
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).reshape(shape))


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115 (the caller closes it)
