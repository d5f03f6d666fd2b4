"""The schema: every kind of mistake becomes one sentence that names key, value and what is allowed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from torch import nn

from marl.core import imports, kinds, schema
from marl.core.errors import UserError, closest


@dataclass
class Settings:
    gamma: Annotated[float, Field(ge=0, le=1)]
    kind: Literal["local", "concat"] = "local"
    sizes: list[int] = field(default_factory=list)
    rates: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    part: nn.Module | None = None


def takes_anything(first: int, **rest: Any) -> None:
    """A target with free keywords."""


def odd_default(size: int = None) -> None:  # type: ignore[assignment]
    """A target as old libraries annotate them."""


def top(**changed: Any) -> dict[str, Any]:
    """A whole configuration that is right but for `changed`."""
    classes = {"task": "marl.supervised.task.Supervised", "optimizer": "marl.optim.optimizer_config.OptimizerConfig"}
    classes |= {"scheduler": "marl.optim.lr_schedule.ScheduleConfig", "trainer": "marl.engine.trainer.Trainer"}
    nodes = {key: {"_target_": path} for key, path in classes.items()}
    parts = {"data": {"_target_": "marl.data.Digits"}, "network": {"_target_": "marl.networks.MLP", "_partial_": True}}
    parts["objective"] = {"_target_": "torch.nn.MSELoss"}
    return {"name": "a", "seed": 0, "epochs": 1, "device": "cpu", **nodes, **parts, **changed}


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, 1),
        (float, float("inf")),
        (int | None, None),
        (tuple[int, int], [1, 2]),
        (Path, "a/b"),
        (list[int] | Literal["auto"], "auto"),
        (dict[str, Any], {"a": [1, {"b": None}]}),
        (Annotated[int, Field(ge=1)] | None, 1),
    ],
)
def test_good_values_pass(annotation: Any, value: Any) -> None:
    schema.check_value(annotation, value, "key")


@pytest.mark.parametrize(
    ("annotation", "value", "sentence"),
    [
        (Annotated[float, Field(ge=0, le=1)], 1.5, "a.b=1.5: must be at most 1"),
        (Annotated[float, Field(ge=0, le=1)], -1, "a.b=-1: must be at least 0"),
        (Annotated[float, Field(gt=0)], float("nan"), "a.b=NaN: must be greater than 0"),
        (Annotated[int, Field(ge=1)] | None, 0, "a.b=0: must be at least 1"),
        (int, 1e6, "a.b=1000000.0: must be a whole number (write 1000000)"),
        (int, 1.5, "a.b=1.5: must be a whole number"),
        (int, True, "a.b=true: must be a whole number"),
        (float, "fast", "a.b=fast: must be a number"),
        (bool, "yes", "a.b=yes: must be true or false"),
        (str, 3, "a.b=3: must be text"),
        (list[int], 3, "a.b=3: must be a list"),
        (list[int], [1, "x"], "a.b[1]=x: must be a whole number"),
        (dict[str, Annotated[float, Field(gt=0)]], {"actor": -1.0}, "a.b.actor=-1.0: must be greater than 0"),
        (Literal["auto"] | int, "atuo", "a.b=atuo: must be 'auto' or a whole number"),
        (int | str, None, "a.b=null: must be a whole number or text"),
        (nn.Module, 3, "a.b=3: must be an object, made by a node with a _target_"),
        (Callable, "x", "a.b=x: must be callable"),
    ],
)
def test_bad_values_are_one_sentence(annotation: Any, value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        schema.check_value(annotation, value, "a.b")
    assert str(error.value).split("; did you mean")[0] == sentence


def test_a_choice_suggests_the_closest() -> None:
    with pytest.raises(UserError, match=r"algo.kind=conct: must be 'local' or 'concat'; did you mean 'concat'\?"):
        schema.check_value(Literal["local", "concat"], "conct", "algo.kind")


def test_unknown_key_names_the_closest_and_all_allowed() -> None:
    with pytest.raises(UserError, match=r"unknown key 'algo.gama'; did you mean 'gamma'\? \(allowed are gamma, kind"):
        schema.check_arguments(Settings, {"gama": 0.9}, "algo")


def test_missing_key_counts_only_where_nothing_else_fills_it() -> None:
    with pytest.raises(UserError, match="missing key 'algo.gamma', which Settings needs"):
        schema.check_arguments(Settings, {}, "algo")
    schema.check_arguments(Settings, {"_partial_": True}, "algo")
    schema.check_arguments(Settings, {}, "algo", given=("gamma",))


def test_free_keywords_take_any_key_and_defaults_any_annotation() -> None:
    schema.check_arguments(takes_anything, {"first": 1, "whatever": "x"}, "p")
    schema.check_arguments(odd_default, {"size": None}, "p")
    with pytest.raises(UserError, match="p.size=x: must be a whole number"):
        schema.check_arguments(odd_default, {"size": "x"}, "p")


def test_nested_nodes_are_checked_by_their_own_target() -> None:
    schema.check_arguments(Settings, {"gamma": 1.0, "part": {"_target_": "torch.nn.Identity"}}, "algo")
    inner = {"_target_": "torch.nn.Linear", "in_features": 1, "out_featuers": 2}
    weighted = {"_target_": "marl.losses.objectives.Weighted", "losses": {"mine": inner}}
    with pytest.raises(UserError, match=r"unknown key 'objective.losses.mine.out_featuers'; did you mean 'out_f"):
        kinds.validate(top(objective=weighted))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("torch.nn.Linaer", r"torch.nn has no 'Linaer'; did you mean 'Linear'"),
        ("marl.optm.OptimizerConfig", r"marl has no 'optm'; did you mean 'optim'"),
        ("no_such_package.Thing", r"no module 'no_such_package'"),
        ("Linear", r"must be a dotted path"),
        ("marl.losses.objectives", r"must be a class or function, not a module"),
        ("os.system", r"os is Python's own"),
        (3, r"must be a dotted path"),
    ],
)
def test_targets_that_do_not_exist(target: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        kinds.validate(top(env={"_target_": target}))
    assert str(error.value).startswith(f"env._target_={target}: ")


def test_a_target_that_lacks_a_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text('"""A user\'s module."""\nimport no_such_package\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="needs the package 'no_such_package', which is not installed"):
        imports.resolve("needs_more.Thing", "env._target_")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"frames": 0}, "frames=0: must be at least 1"),
        ({"epochs": 2.5}, "epochs=2.5: must be a whole number"),
        ({"envs": {}}, "unknown key 'envs'; did you mean 'env'"),
        ({"trainer": 3}, "trainer=3: must be a mapping of keys to values"),
    ],
)
def test_top_level(changed: dict[str, Any], sentence: str) -> None:
    kinds.validate(top())
    with pytest.raises(UserError) as error:
        kinds.validate(top(**changed))
    assert str(error.value).startswith(sentence)


def test_closest_knows_typing_mistakes_and_parts_of_names() -> None:
    names = ["balance", "simple_spread", "simple_tag"]
    assert closest("balanc", names) == "; did you mean 'balance'?"
    assert "'simple_spread'" in closest("spread", names)
    assert closest("zzz", names) == ""
