"""A configuration runs no code but that of classes of the right kind: no matter who wrote it or where it came from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from marl.config import compose
from marl.core import imports, kinds
from marl.core.errors import UserError
from marl.data import ArrayData
from marl.launch import build


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that hostile configurations try to make."""
    return tmp_path / "hostile"


def hostile(mark: Path) -> dict[str, dict[str, Any]]:
    """Nodes that would do something when they are called, or when what they name is imported."""
    touch = f"touch {mark}"
    return {
        "a function of Python's": {"_target_": "os.system", "command": touch},
        "a built-in": {"_target_": "builtins.open", "file": str(mark), "mode": "w"},
        "a class of Python's": {"_target_": "subprocess.Popen", "args": ["touch", str(mark)]},
        "native code": {"_target_": "marl.native.compiler.load", "path": str(mark)},
        "a pickle": {"_target_": "joblib.load", "filename": str(mark)},
        "numpy's pickle": {"_target_": "numpy.load", "file": str(mark), "allow_pickle": True},
        "torch's pickle": {"_target_": "torch.load", "f": str(mark), "weights_only": False},
        "a class that writes": {"_target_": "numpy.memmap", "filename": str(mark), "mode": "w+", "shape": [3]},
        "a module in a module": {"_target_": "torch.os.system", "command": touch},
        "a method": {"_target_": "marl.data.Digits.__init__", "seed": 0},
        "another way to call": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.getcwd"}},
        "positional": {"_target_": "os.system", "_args_": [touch]},
        "for later": {"_target_": "os.system", "_partial_": True},
        "what acts when imported": {"_target_": "antigravity.Thing"},
        "a class of another kind": {"_target_": "torch.utils.tensorboard.SummaryWriter", "log_dir": str(mark)},
    }


PLACES: dict[str, Callable[[dict], dict]] = {
    "trainer": lambda node: {"trainer": node},
    "task": lambda node: {"task": node},
    "data": lambda node: {"data": node},
    "objective": lambda node: {"objective": node},
    "network": lambda node: {"network": node},
    "a new callback": lambda node: {"callbacks": {"mine": node}},
    "a new logger": lambda node: {"logger": {"mine": node}},
    "inside of a loss": lambda node: {"objective": {"_target_": "marl.losses.objectives.Penalised", "loss": node}},
    "deep in a list": lambda node: {
        "network": {"_target_": "torch.nn.Sequential", "_partial_": True, "_args_": [[{"a": [node]}]]}
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_no_place_of_a_configuration_takes_what_is_not_of_its_kind(place: str, mark: Path) -> None:
    good = compose.check(compose.compose(["experiment=sine"]))
    for node in hostile(mark).values():
        with pytest.raises(UserError) as error:
            kinds.validate({**good, **PLACES[place](node)})
        assert str(error.value).count("\n") == 0
        assert not mark.exists()


def test_an_escaped_interpolation_stays_text(mark: Path) -> None:
    """Hydra's own way of building would resolve it a second time, into a node that was never checked."""
    text = "${oc.create:{_target_: os.system, command: 'touch " + str(mark) + "'}}"
    node = {"_target_": f"{__name__}.Free", "anything": text}
    kinds.check(node, nn.Module, "objective")
    assert build.part(node).anything == text and not mark.exists()


class Free(nn.Module):
    """Takes whatever it is given."""

    def __init__(self, body: nn.Module | None = None, **anything: Any) -> None:
        super().__init__()
        self.body, self.anything = body, anything.get("anything")


class Settings:
    """No module, but what an annotation asks for."""


class Configured(nn.Module):
    """Says of what kind its arguments are."""

    def __init__(self, settings: Settings, change: Callable[[Tensor], Tensor], many: Mapping[str, Settings]) -> None:
        super().__init__()
        self.settings, self.change, self.many = settings, change, many


class Halve:
    """A change of one tensor."""

    def __call__(self, x: Tensor) -> Tensor:
        return x / 2


def test_a_users_own_classes_say_by_annotations_what_they_take() -> None:
    settings = {"_target_": f"{__name__}.Settings"}
    node = {"_target_": f"{__name__}.Configured", "settings": settings, "change": {"_target_": f"{__name__}.Halve"}}
    node["many"] = {"a": settings, "b": settings}
    kinds.check(node, nn.Module, "network")
    built = build.part(node)
    assert isinstance(built.settings, Settings) and built.change(torch.ones(1)) == 0.5 and set(built.many) == {"a", "b"}
    for key, wrong in (("settings", "torch.nn.ReLU"), ("change", f"{__name__}.Settings"), ("many", "numpy.memmap")):
        with pytest.raises(UserError, match=rf"network\.{key}\._target_={wrong}: must be a class of the kind"):
            kinds.check({**node, key: {"_target_": wrong}}, nn.Module, "network")
    relu = {"_target_": "torch.nn.ReLU"}
    free = {"_target_": f"{__name__}.Free", "other": relu, "body": relu}
    kinds.check(free, nn.Module, "network")  # where nothing is said, modules go
    with pytest.raises(UserError, match="network.other._target_=numpy.memmap"):
        kinds.check({**free, "other": {"_target_": "numpy.memmap"}}, nn.Module, "network")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (nn.Module | None, (nn.Module,)),
        (Sequence[nn.Module], (nn.Module,)),
        (dict[str, ArrayData], (ArrayData,)),
        (Callable[..., ArrayData], (ArrayData,)),
        (Annotated[list[ArrayData] | nn.Module, Field(min_length=1)], (ArrayData, nn.Module)),
        (Any, (nn.Module,)),
        (dict[str, Any], (nn.Module,)),
        (str | int, ()),
        (Callable[..., Tensor], ()),
        (list[float], ()),
    ],
)
def test_kinds_of_annotations(annotation: Any, expected: tuple) -> None:
    assert kinds.kinds(annotation) == expected


@pytest.mark.parametrize("namespace", [True, False])
def test_nothing_is_imported_out_of_a_run_directory(namespace: bool, tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "foreign_run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("network: {_target_: foreign_run.evil.Net}\n")
    code = f"open({str(tmp_path / 'hostile')!r}, 'w')\nfrom torch.nn import ReLU as Net\n"
    (run / "evil.py").write_text(code)
    if not namespace:
        (run / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="foreign_run.* lies in .*, a run directory, from which nothing is imported"):
        imports.resolve("foreign_run.evil.Net", "network._target_")
    monkeypatch.chdir(run)
    before = list(imports.sys.path)
    imports.find_user_modules()
    assert imports.sys.path == before and not (tmp_path / "hostile").exists()


def test_files_of_the_working_directory_take_no_packages_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imports.sys, "path", list(imports.sys.path))
    imports.find_user_modules()
    assert imports.sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import no_such_package", "needs the package 'no_such_package', which is not installed"),
        ("assert 1 == 2, 'one is not two'", r"failed with AssertionError: one is not two \(.*broken.py:1"),
        ("x = (", r"failed with SyntaxError: .* \(.*broken.py:1\)"),
        ("raise SystemExit(0)", "failed with SystemExit: 0"),
    ],
)
def test_a_users_module_that_fails_is_one_sentence(code: str, sentence: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(imports.sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=f"objective._target_=broken.Loss: .*{sentence}") as error:
        imports.resolve("broken.Loss", "objective._target_")
    assert "\n" not in str(error.value)
