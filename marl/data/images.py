"""Real images with labels: handwritten digits, and Fashion-MNIST from its files."""

import gzip
import math
import struct
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from marl.data.base import ArrayData, Fold, Folds, Fraction, Seed, split
from marl.errors import UserError

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
        super().__init__("classification", len(digits or range(10)), *((x[index], y[index]) for index in rows))


def load(digits: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The handwritten digits: pictures float32 [N, 1, 8, 8] from 0 to 16, classes int64 [N]."""
    from sklearn.datasets import load_digits  # slow to import: only for those who use it

    raw = load_digits()
    x = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1)
    y = torch.as_tensor(raw.target, dtype=torch.int64)
    if digits is None:
        return x, y
    if len(set(digits)) < len(digits):
        raise UserError(f"data.digits={digits}: one is named twice")
    kept = torch.isin(y, torch.tensor(digits))
    return x[kept], (y[kept].unsqueeze(1) == torch.tensor(digits)).long().argmax(1)


class FashionMNIST(ArrayData):
    """70,000 pictures of clothes, x [N, 1, 28, 28] in [0, 1], 10 classes (Xiao et al. 2017), from its four IDX files.

    The files, plain or gzipped, lie in `folder`; nothing is downloaded. `validation` is the fraction held out of the
    60,000 training pictures, dealt by `seed`; the 10,000 `t10k` pictures are the test split.
    Raises UserError, naming the folder and the files, where one is missing or is not what its name says.
    """

    def __init__(
        self, folder: str, validation: Fraction = 1 / 12, seed: Seed = 0, folds: Folds = None, fold: Fold = 0
    ) -> None:
        paths = [_find(Path(folder).expanduser(), name) for name in FASHION_MNIST_FILES]
        missing = [name for name, path in zip(FASHION_MNIST_FILES, paths, strict=True) if path is None]
        if missing:
            raise UserError(
                f"data.folder={folder}: lacks {', '.join(missing)}; Fashion-MNIST is the four files "
                f"{', '.join(FASHION_MNIST_FILES)}, plain or .gz, from "
                "https://github.com/zalandoresearch/fashion-mnist, or on Debian and Ubuntu from the package "
                "dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist"
            )
        x, y, test_x, test_y = (read_idx(path) for path in paths if path is not None)
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
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: no complete gzip file ({error}); download it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError(f"{path}: no IDX file of unsigned bytes; it starts with {content[:4].hex()}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    if dimensions == 0 or len(content) - start != math.prod(shape):
        raise UserError(f"{path}: holds {len(content)} bytes, which is not the shape {shape} that its header states")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())
