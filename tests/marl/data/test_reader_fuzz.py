"""Damaged and foreign files, seeded: every reader takes them, or refuses them in one sentence that names the file."""

import gzip
import io
import json
import math
import random
import struct
import sys
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from marl.core.errors import UserError
from marl.data import CSV, IDX, NPZ, CSVStream, Episodes, FashionMNIST, ImageFolder
from marl.data.episodes import append, mapped
from marl.data.images import FASHION_MNIST_FILES

ROUNDS = 40  # damaged copies of each file; a whole run of this module takes a few seconds
FOREIGN = [b"", b"\0", b"\0" * 4096, b"[]", b"[1, 2, 3]", b"{}", b"null", b"a: [", b"\xff\xfe", b"<html>\n", b"\n\n\n"]


def damages(content: bytes, seed: int) -> list[bytes]:
    """Other people's files, and `content` cut short, overwritten, flipped, doubled, without its beginning."""
    draw, damaged = random.Random(seed), list(FOREIGN)
    for i in range(ROUNDS):
        at, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        flipped = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        kinds = content[:at], content[:at] + b"\0" * (end - at) + content[end:], bytes(flipped)
        kinds += content[at:], content[:at] + content[end:], content[:at] + content + content[at:]
        damaged.append(kinds[i % len(kinds)])
    return damaged


def read(reader, name: str) -> str | None:
    """The sentence by which `reader()` refuses, or None; whatever else it raises fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            data = reader()
        except UserError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 700 and name in message, message
            return message
    for split in (data.train, data.validation):
        if not isinstance(split, CSVStream) and hasattr(split, "values"):
            assert all(torch.isfinite(values).all() for values in split.values())
    return None


def every(path, content: bytes, reader) -> int:
    """How many of the damages to the file at `path` were refused."""
    refused = 0
    for number, damaged in enumerate(damages(content, seed=7)):
        path.write_bytes(damaged)
        try:
            refused += read(reader, path.parent.name) is not None
        except Exception as error:
            raise AssertionError(f"damage {number} of {path.name}: {damaged[:80]!r}") from error
    return refused


CELLS = "".join(f"{i},{i / 3:.3f},{i % 3}\n" for i in range(60))


@pytest.mark.parametrize("reader", [CSV, CSVStream])
@pytest.mark.parametrize("kind", ["regression", "binary", "classification"])
def test_csv(tmp_path, reader, kind):
    path = tmp_path / "t.csv"
    labels = CELLS.replace(",2\n", ",1\n") if kind == "binary" else CELLS
    assert every(path, b"a,b,k\n" + labels.encode(), lambda: reader(str(path), "k", kind)) > len(FOREIGN)


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


X, Y = np.arange(120.0).reshape(60, 2), np.arange(60) % 3


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_npz(tmp_path, kind):
    path = tmp_path / "a.npz"
    assert every(path, npz(x=X, y=Y), lambda: NPZ(str(path), kind)) > 2 * len(FOREIGN)


def stated(header: str, data: bytes = bytes(64), version: int = 1) -> bytes:
    """An npz file whose array x has that header, true or not."""
    head = header.encode()
    array = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(head)) + head + data
    file, other = io.BytesIO(), io.BytesIO()
    np.save(other, Y)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
        whole.writestr("x.npy", array)
        whole.writestr("y.npy", other.getvalue())
    return file.getvalue()


def header(shape, dtype: str = "<f4") -> str:
    return str({"descr": dtype, "fortran_order": False, "shape": shape}) + "\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(stated(header((600_000_000, 2))), id="4.8 GB stated"),
        pytest.param(stated(header((2**40, 2**40))), id="overflow"),
        pytest.param(stated(header((-60, 2))), id="negative"),
        pytest.param(stated(header((60, 2.5))), id="fraction"),
        pytest.param(stated(header("text")), id="shape of text"),
        pytest.param(stated("[1, 2]\n"), id="list"),
        pytest.param(stated("(" * 5000), id="deep"),
        pytest.param(stated("__import__('os').getcwd()"), id="code"),
        pytest.param(stated(header((60, 2)), version=2), id="version 2, truncated"),
        pytest.param(stated(header((60, 2)), version=9), id="version 9"),
        pytest.param(stated(header((60, 2), "|O"), zlib.compress(b"x") * 40), id="object"),
        pytest.param(stated(header((60, 2), "<M8[s]"), bytes(960)), id="times"),
        pytest.param(stated(header((60, 2), "<U4"), bytes(1920)), id="words"),
        pytest.param(npz(x=X + 1j, y=Y), id="complex"),
        pytest.param(npz(x=X, y=Y + 0j), id="complex target"),
        pytest.param(npz(x=X.astype("V8"), y=Y), id="void"),
        pytest.param(npz(x=np.zeros((60, 1), dtype=[("a", "f4"), ("b", "i4")]), y=Y), id="records"),
        pytest.param(npz(x=X[:0], y=Y[:0]), id="no rows"),
        pytest.param(npz(x=X, y=X), id="targets"),
        pytest.param(npz(x=X, y=np.array([])), id="no targets"),
        pytest.param(npz(x=X, y=np.full(60, 2**63, np.uint64)), id="beyond 64 bits"),
        pytest.param(npz(x=np.full((60, 2), 1e39), y=Y), id="beyond float32"),
        pytest.param(npz(arr_0=X), id="other names"),
        pytest.param(npz(x=X, y=Y)[:-30], id="no directory"),
    ],
)
def test_npz_that_states_what_it_is_not(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert read(lambda: NPZ(str(path)), "a.npz") is not None


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">f8", "g", "?", "i1", ">i8", "u8"])
def test_npz_of_any_real_type_and_byte_order_is_read(tmp_path, dtype):
    (tmp_path / "a.npz").write_bytes(npz(x=X.astype(dtype), y=Y.astype(">u2")))
    data = NPZ(str(tmp_path / "a.npz"))
    expected = X.astype(dtype).astype(np.float32).sum()
    total = sum(part["x"].double().sum() for part in (data.train, data.validation, data.test))
    assert total == pytest.approx(float(expected)) and data.out_features == 3


def test_numbers_that_are_not_finite_are_named(tmp_path):
    spoilt = X.copy()
    spoilt[41, 1] = np.nan
    (tmp_path / "a.npz").write_bytes(npz(x=spoilt, y=Y, z=np.where(np.arange(60) == 7, np.inf, 1.0), w=X))
    assert "x[41, 1] of" in read(lambda: NPZ(str(tmp_path / "a.npz")), "a.npz is nan")
    assert "z[7] of" in read(lambda: NPZ(str(tmp_path / "a.npz"), "regression", "w", "z"), "a.npz is inf")


@pytest.mark.parametrize("reader", [CSV, CSVStream])
@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e39", "1e999", "", "NA", "1,5"])
@pytest.mark.parametrize(("column", "name"), [(1, "b"), (2, "k")])
def test_a_cell_that_is_no_finite_number_is_named_by_line_and_column(tmp_path, reader, text, column, name):
    rows = [f"{i},{i + 1},{i + 2}".split(",") for i in range(60)]
    rows[41][column] = f'"{text}"'
    (tmp_path / "t.csv").write_text("a,b,k\n" + "\n".join(map(",".join, rows)) + "\n")
    message = read(lambda: reader(str(tmp_path / "t.csv"), "k"), "t.csv")
    assert f"line 43, column {name!r}: {text!r} is" in message


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


PICTURES = np.arange(60 * 16, dtype=np.uint8).reshape(60, 4, 4)
LABELS = (np.arange(60) % 3).astype(np.uint8)


@pytest.mark.parametrize("which", ["images", "labels", "images.gz"])
def test_idx(tmp_path, which):
    whole = {"images": idx(PICTURES), "labels": idx(LABELS), "images.gz": gzip.compress(idx(PICTURES), mtime=0)}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    images = which if which != "labels" else "images"
    reader = lambda: IDX(str(tmp_path / images), str(tmp_path / "labels"))  # noqa: E731
    assert read(reader, "") is None
    assert every(tmp_path / which, whole[which], reader) > len(FOREIGN)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (idx(PICTURES[:0]), idx(LABELS[:0])),
        (idx(PICTURES[:, :0]), idx(LABELS)),
        (idx(LABELS), idx(LABELS)),
        (idx(PICTURES), idx(PICTURES)),
        (idx(PICTURES), idx(LABELS + np.uint8(200))),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31) + bytes(50), idx(LABELS)),
        (b"\0\0\x08\xff" + bytes(4 * 255), idx(LABELS)),
    ],
)
def test_idx_without_pictures_or_of_absurd_shapes(tmp_path, images, labels):
    (tmp_path / "images").write_bytes(images)
    (tmp_path / "labels").write_bytes(labels)
    assert read(lambda: IDX(str(tmp_path / "images"), str(tmp_path / "labels")), tmp_path.name)
    for name, content in zip(FASHION_MNIST_FILES, (images, labels, images, labels), strict=True):
        (tmp_path / name).write_bytes(content)
    assert read(lambda: FashionMNIST(str(tmp_path)), tmp_path.name)


def test_a_gzip_bomb_is_read_no_further_than_its_header_states(tmp_path):
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx(PICTURES) + bytes(50_000_000), mtime=0))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    message = read(lambda: IDX(str(tmp_path / "i.gz"), str(tmp_path / "labels")), "i.gz")
    assert "does not hold the shape [60, 4, 4] that its header states" in message


@pytest.fixture
def folder(tmp_path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            Image.new("RGB", (6, 4), (40 * i, 0, 0)).save(tmp_path / kind / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_pictures(folder, ending, capsys):
    Image.effect_noise((6, 4), 50).convert("RGB").save(folder / "a" / f"x.{ending}")
    content = (folder / "a" / f"x.{ending}").read_bytes()
    every(folder / "a" / f"x.{ending}", content, lambda: ImageFolder(str(folder), size=(4, 4)))


def png(width: int, height: int) -> bytes:
    """A small file that states a picture of that size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(100_000, 100_000), (12_000, 12_000), (0, 4), (4, 0), (2**31 - 1, 2**31 - 1)])
def test_pictures_that_state_absurd_sizes(folder, size):
    (folder / "a" / "x.png").write_bytes(png(*size))
    assert "x.png: is no picture" in read(lambda: ImageFolder(str(folder), size=(4, 4)), "x.png")


def test_pictures_that_do_not_fit_into_memory_together(folder):
    assert "more than this machine's memory" in read(lambda: ImageFolder(str(folder), size=(10**6, 10**6)), folder.name)


def episodes(bad: float = 0.0) -> dict[str, torch.Tensor]:
    observation = torch.arange(6.0).view(6, 1, 1)
    observation[4] += bad
    flags = {"terminated": torch.zeros(6, dtype=torch.bool), "truncated": torch.tensor([0, 0, 1, 0, 0, 1]).bool()}
    tensors = {"length": torch.tensor([3, 3]), "agents/observation": observation, "agents/action": torch.ones(6, 1, 1)}
    return tensors | flags | {"agents/reward": torch.ones(6, 1), "agents/final_observation": torch.ones(2, 1, 1)}


ABOUT = {"spec": {"groups": {"agents": {"agents": ["a"]}}}, "metadata": {}}


@pytest.mark.parametrize("which", ["manifest.json", "episodes-00000.safetensors", "memmap"])
def test_recorded_episodes(tmp_path, which):
    append(tmp_path / "set", episodes(), ABOUT)
    memmap = which == "memmap"
    reader = lambda: Episodes(str(tmp_path / "set"), validation=0.5, memmap=memmap)  # noqa: E731
    mapped(tmp_path / "set")
    path = tmp_path / "set" / ("memmap/meta.json" if memmap else which)
    content, refused = path.read_bytes(), 0
    for damaged in damages(content, seed=3):
        path.write_bytes(damaged)
        try:
            data = reader()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path / "set") in str(error)
        else:
            assert len(data.steps) == 6
    assert refused > len(FOREIGN)


@pytest.mark.parametrize("key", ["spec", "tensors", "shards", "metadata", "format"])
@pytest.mark.parametrize("value", [None, 1, -1, "x", [], {}, [[]], [{}], [{"file": "../x", "episodes": 2, "steps": 6}]])
def test_a_manifest_of_other_things_is_one_sentence(tmp_path, key, value):
    append(tmp_path / "set", episodes(), ABOUT)
    path = tmp_path / "set" / "manifest.json"
    content = json.loads(path.read_text())
    for changed in ({**content, key: value}, {name: one for name, one in content.items() if name != key}):
        path.write_text(json.dumps(changed))
        if changed != content and not (key == "format" and value == 1 and key in changed):
            with pytest.raises(UserError, match="manifest.json|differs") as error:
                Episodes(str(tmp_path / "set"), validation=0.5)
            assert "\n" not in str(error.value)


def test_episodes_that_are_not_finite_name_shard_and_element(tmp_path):
    append(tmp_path / "set", episodes(math.nan), ABOUT)
    for memmap in (False, True):
        with pytest.raises(UserError, match=r"agents/observation\[4, 0, 0\] of .*episodes-00000.safetensors is nan"):
            Episodes(str(tmp_path / "set"), validation=0.5, memmap=memmap)


@pytest.mark.parametrize("path", ["\0", "x" * 300, "/proc/self/mem", "~nobody-of-that-name/x", "/", "", sys.executable])
@pytest.mark.parametrize("reader", [CSV, CSVStream, NPZ, IDX, ImageFolder, FashionMNIST, Episodes])
def test_places_that_are_no_files_of_the_kind(path, reader):
    further = {CSV: ("y",), CSVStream: ("y",), IDX: (path,)}.get(reader, ())
    with pytest.raises(UserError) as error:
        reader(path, *further)
    assert "\n" not in str(error.value)
