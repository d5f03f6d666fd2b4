"""Your own data by configuration: what is in the files comes out, dealt into splits or folds; mistakes are worded."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from marl.config import compose
from marl.core.errors import UserError
from marl.data import CSV, IDX, NPZ, CSVStream, DigitAttributes, DigitPairs, Digits, DigitTriplets, ImageFolder
from marl.data.base import split
from marl.data.digit_variants import ATTRIBUTES
from marl.launch import build


def everything(data) -> torch.Tensor:
    return torch.cat([part["x"] for part in (data.train, data.validation, data.test)])


def test_csv_columns_become_inputs_and_targets(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name,a,y,b\n" + "".join(f"row{i},{i},{'yes' if i % 3 else 'no'},{i / 2}\n" for i in range(60)))
    data = CSV(str(path), "y", "classification", drop=["name"])
    assert data.classes == ["no", "yes"] and data.in_shape == (2,) and data.out_features == 2
    assert sorted(everything(data)[:, 0].tolist()) == list(range(60))
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part["x"][:, 0], 2 * part["x"][:, 1])
        assert torch.equal(part["y"], (part["x"][:, 0] % 3 > 0).long())
    number = CSV(str(path), "b", drop=["name", "y"], test=None)
    assert number.kind == "regression" and number.test is None and torch.equal(number.train["y"] * 2, number.train["x"])
    with pytest.raises(UserError, match=r"line 2, column 'name': 'row0' is no number; data.drop=\[name\]"):
        CSV(str(path), "y", "classification")
    with pytest.raises(UserError, match=r"data\.drop=\['nme'\]: .*columns name, a, y, b"):
        CSV(str(path), "y", drop=["nme"])
    with pytest.raises(UserError, match="data.path=.*nowhere.csv: cannot be read: No such file"):
        CSV(str(tmp_path / "nowhere.csv"), "y")


def test_csv_by_the_command_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,u,v\n" + "".join(f"{i},{-i},{i % 2},1\n" for i in range(40)))
    overrides = ["experiment=logistic_regression", "data=csv", f"data.path={path}", "data.target=[u,v]"]
    overrides.append("data.kind=binary")
    task = build.build_task(compose.check(compose.compose([*overrides, "task.batch_size=10"])))
    assert task.loss.model.out_features == 2 and task.kind == "binary"
    with pytest.raises(UserError, match="data.kind=binary: .* must be 0 or 1"):
        build.build_task(compose.check(compose.compose([*overrides, "data.target=a"])))


@pytest.mark.parametrize("reader", [CSV, CSVStream])
@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("a,a,k\n" + "1,2,0\n" * 20, "regression", "data.path=.*: several columns are called 'a'; must differ"),
        ("a,k,k\n" + "1,2,0\n" * 20, "regression", "several columns are called 'k'"),
        ("k\n" + "1\n" * 20, "regression", r"data.target=\['k'\]: .*t.csv has no further column, to be an input"),
        ("a,k\n1,0\n\n2\n", "classification", "line 4 has 1 cells, the header 2"),
        ("a,ü,k\n".encode("latin-1") + b"1,2,0\n" * 20, "regression", "data.path=.*is no text in UTF-8"),
        ("a,k\n" + "1,0.5\n" * 20, "binary", "data.kind=binary: .* 0 or 1, but line 2, column 'k' of .*t.csv is 0.5"),
    ],
)
def test_csv_files_that_cannot_be_read_are_one_sentence(tmp_path, reader, content, kind, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        reader(str(path), "k", kind)


@pytest.mark.parametrize("reader", [CSV, CSVStream])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, reader):
    (tmp_path / "t.csv").write_text("k,a\n" + "1,2\n" * 20, encoding="utf-8-sig")
    assert reader(str(tmp_path / "t.csv"), "k").in_shape == (1,)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("0.5", "data.kind=classification: .*whole numbers from 0 on, but line 20, column 'k' of .* is 0.5"),
        ("-1", "line 20, column 'k' of .* is -1"),
        ("nan", "t.csv: line 20, column 'k': 'nan' is not finite"),
        ("yes", "t.csv: line 20, column 'k': 'yes' is no number; .* data=csv takes words"),
        ("1000000", "label 1000000 means 1000001 classes, more than the 20 rows"),
    ],
)
def test_a_stream_of_classes_has_whole_numbers_from_0_on(tmp_path, label, message):
    (tmp_path / "t.csv").write_text("a,k\n" + "1,0\n2,1\n" * 9 + f"1,{label}\n1,1\n")
    with pytest.raises(UserError, match=message):
        CSVStream(str(tmp_path / "t.csv"), "k", "classification")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones(()), np.zeros(20), r"data.x=x: has the shape \[\] in .*; must be \[rows, numbers\]"),
        (np.ones(20), np.zeros(20, int), r"data.x=x: has the shape \[20\]"),
        (np.ones((20, 0)), np.zeros(20, int), r"data.x=x: has the shape \[20, 0\]"),
        (np.ones((20, 2)), np.zeros((), int), r"data.y=y: has the shape \[\] in .*; must be \[rows\] or"),
        (np.ones((20, 2)), np.arange(20) - 1, r"whole numbers from 0 on, but y\[0\] of .*a.npz is -1"),
        (np.ones((20, 2)), np.arange(20) % 2 * 1_000_000, "classes, more than the 20 rows"),
    ],
)
def test_npz_arrays_that_do_not_fit_are_one_sentence(tmp_path, x, y, message):
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(UserError, match=message):
        NPZ(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(("kind", "out"), [("classification", 2), ("binary", 1), ("regression", 1)])
def test_npz_targets_may_be_unsigned(tmp_path, kind, out):
    labels = (np.arange(20) % 2).astype(np.uint16)
    np.savez(tmp_path / "a.npz", x=np.stack([labels, labels], 1), y=labels)
    data = NPZ(str(tmp_path / "a.npz"), kind)
    assert data.out_features == out and torch.equal(data.train["x"][:, 0].long(), data.train["y"].flatten().long())


def test_npz_arrays(tmp_path):
    path = tmp_path / "a.npz"
    pictures, labels = np.arange(30 * 4.0).reshape(30, 1, 2, 2), np.arange(30) % 3
    np.savez(path, pictures=pictures, labels=labels, numbers=np.ones((30, 2)))
    data = NPZ(str(path), x="pictures", y="labels")
    assert data.in_shape == (1, 2, 2) and data.out_features == 3 and len(everything(data)) == 30
    assert all(int(x[0, 0, 0]) // 4 % 3 == y for x, y in zip(data.test["x"], data.test["y"], strict=True))
    assert NPZ(str(path), "regression", "pictures", "numbers", test=None).out_features == 2
    with pytest.raises(UserError, match="data.x=x: .* holds pictures, labels, numbers"):
        NPZ(str(path))
    with pytest.raises(UserError, match="classes must be whole numbers"):
        NPZ(str(path), x="pictures", y="numbers")
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    with pytest.raises(UserError, match="data.x=x: holds object in .*; must be real numbers"):  # it would be a pickle
        NPZ(str(path))


def test_a_folder_of_pictures(tmp_path):
    for kind, shade in (("dark", 10), ("light", 240)):
        (tmp_path / kind).mkdir()
        for i in range(12):
            Image.new("RGB", (6, 4), (shade, shade + i, 0)).save(tmp_path / kind / f"{i}.png")
    data = ImageFolder(str(tmp_path))
    assert data.classes == ["dark", "light"] and data.in_shape == (3, 4, 6)
    assert torch.equal(data.train["x"][:, 0, 0, 0] > 0.5, data.train["y"] == 1)
    assert ImageFolder(str(tmp_path), size=(8, 8), grey=True).in_shape == (1, 8, 8)
    Image.new("L", (5, 5)).save(tmp_path / "dark" / "odd.png")
    with pytest.raises(UserError, match=r"several sizes; give data\.size"):
        ImageFolder(str(tmp_path))
    (tmp_path / "dark" / "odd.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="odd.png: is no picture"):
        ImageFolder(str(tmp_path))
    with pytest.raises(UserError, match="0 folders with pictures; needs one per class"):
        ImageFolder(str(tmp_path / "dark"))


@pytest.mark.parametrize("kind", ["webp", "tif", "tiff"])
def test_a_folder_reads_what_pillow_opens_and_names_the_rest(tmp_path, capsys, kind):
    for shade in (10, 240):
        (tmp_path / str(shade)).mkdir()
        for i in range(6):
            Image.new("RGB", (6, 4), (shade, shade, shade)).save(tmp_path / str(shade) / f"{i}.{kind}")
    assert len(everything(ImageFolder(str(tmp_path)))) == 12 and not capsys.readouterr().err
    for name in (".hidden", "notes.txt", "b.heic"):
        (tmp_path / "10" / name).write_text("")
    ImageFolder(str(tmp_path))
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1 and "2 left out" in warned and warned.endswith(": 10/b.heic, 10/notes.txt\n")


@pytest.mark.parametrize("grey", [True, False])
def test_greys_of_16_bits_keep_their_shades(tmp_path, grey):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            Image.fromarray(np.full((2, 2), 257 * 40 * i, np.uint16)).save(tmp_path / kind / f"{i}.png")
            Image.fromarray(np.full((2, 2), 257 * 40 * i, np.int32)).save(tmp_path / kind / f"{i}.tif")
    shades = everything(ImageFolder(str(tmp_path), grey=grey))[:, 0, 0, 0].mul(255).round().unique()
    assert shades.tolist() == [0, 40, 80, 120, 160, 200]
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "a" / "f.tif")
    with pytest.raises(UserError, match="f.tif: greys of mode F, 0.5 to 0.5; needs 8 or 16 bits"):
        ImageFolder(str(tmp_path), grey=grey)


def test_a_pair_of_idx_files(tmp_path):
    pictures, labels = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2), (np.arange(20) % 4).astype(np.uint8)
    for name, array in (("images", pictures), ("labels", labels)):
        header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())
    data = IDX(str(tmp_path / "images"), str(tmp_path / "labels"))
    assert data.in_shape == (1, 2, 2) and data.out_features == 4
    first = (255 * data.train["x"][:, 0, 0, 0]).round().long()
    assert torch.equal(first // 4 % 4, data.train["y"])
    with pytest.raises(UserError, match="data.labels=.*nowhere: no such file"):
        IDX(str(tmp_path / "images"), str(tmp_path / "nowhere"))


def test_folds_hold_every_row_out_once_and_leave_the_test_split_alone():
    labels = torch.arange(100) % 5
    parts = [split(100, {"data.validation": 0.15, "data.test": 0.2}, 3, labels, 4, fold) for fold in range(4)]
    assert all(torch.equal(part[2], parts[0][2]) for part in parts)
    assert [len(x) for x in parts[0]] == [60, 20, 20]
    held_out = torch.cat([part[1] for part in parts])
    assert sorted(torch.cat([held_out, parts[0][2]]).tolist()) == list(range(100))
    for train, validation, test in parts:
        assert sorted(torch.cat([train, validation, test]).tolist()) == list(range(100))
        assert labels[validation].bincount().tolist() == [4] * 5
    with pytest.raises(UserError, match="data.fold=4: must be below data.folds=4"):
        split(100, {"data.validation": 0.15}, 3, None, 4, 4)
    with pytest.raises(UserError, match="data.fold=1: needs data.folds"):
        Digits(fold=1)


def test_scaling_of_a_fold_comes_from_its_own_training_rows():
    shifts = {Digits(folds=3, fold=fold).shift.item() for fold in range(3)}
    assert len(shifts) == 3
    data = Digits(folds=3, fold=1)
    torch.testing.assert_close(data.shift.flatten()[0], data.train["x"].mean())


def test_some_digits_become_classes_in_the_order_given():
    all_ten, two = Digits(), Digits(digits=[7, 3])
    assert two.out_features == 2 and len(everything(two)) < len(everything(all_ten)) / 4
    seven = all_ten.train["x"][all_ten.train["y"] == 7][0]
    which = [part["y"][(part["x"] == seven).flatten(1).all(1)] for part in (two.train, two.validation, two.test)]
    assert torch.cat(which).tolist() == [0]
    with pytest.raises(UserError, match="one is named twice"):
        Digits(digits=[3, 3])


def test_labels_of_digits_are_what_they_are_called():
    data, digits = DigitAttributes(), Digits()
    picture = data.test["x"][0]
    parts = [digits.train, digits.validation, digits.test]
    same = torch.cat([part["y"][(part["x"] == picture).flatten(1).all(1)] for part in parts])
    digit = int(same[0])
    assert data.test["y"][0].tolist() == [float(digit in those) for those in ATTRIBUTES.values()]


def test_pairs_and_triplets_of_digits_are_alike_and_different_as_promised():
    digits = Digits()
    known = {p.numpy().tobytes(): int(y) for part in (digits.train, digits.validation, digits.test)
             for p, y in zip(part["x"], part["y"], strict=True)}  # fmt: skip

    def classes(rows):
        return torch.tensor([[known[picture.numpy().tobytes()] for picture in row] for row in rows["x"]])

    pairs, triplets = DigitPairs(samples=200), DigitTriplets(samples=200, size=4)
    for part in (pairs.train, pairs.test):
        first, second = classes(part).unbind(1)
        assert torch.equal(part["y"].flatten(), (first > second).float()) and (first != second).all()
    anchor, positive, negative = classes(triplets.train).unbind(1)
    assert torch.equal(anchor, positive) and (anchor != negative).all()
    x = triplets.train["x"]
    assert not (x[:, 0] == x[:, 1]).flatten(1).all(1).any()  # another picture of it
    old, new = ({p.numpy().tobytes() for row in part["x"] for p in row} for part in (triplets.train, triplets.test))
    assert not old & new
    assert pairs.in_shape == triplets.in_shape == (1, 8, 8) and triplets.out_features == 4
