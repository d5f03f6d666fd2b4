"""Options of the scripts: typed by a dataclass, mistakes told in a sentence."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from marl.config.options import parse, split
from marl.core.errors import UserError


@dataclass
class Options:
    ckpt: str
    out: str | None = None
    kinds: list[Literal["gif", "png"]] = field(default_factory=list)
    count: Annotated[int, Field(ge=1)] | None = 3
    speed: float = 1.0
    on: bool = True


def test_values_are_read_by_type() -> None:
    options = parse(Options, ["ckpt=1e3", "out=null", "kinds=[gif,png]", "count=null", "speed=2", "on=false"])
    assert options == Options("1e3", None, ["gif", "png"], None, 2, False)
    assert parse(Options, ["ckpt=a=b"]).ckpt == "a=b"


def test_a_key_that_is_no_configuration_may_be_meant_for_an_option(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="unknown option 'cont'; did you mean 'count'?"):
        split(Options, ["ckpt=a", "cont=3"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cont=3").touch()
    rest = ["cont=3", "env.count=3", "+cont=3", "experiment=x", "nothing=like it", "~env"]  # files, configuration
    assert split(Options, ["ckpt=a", *rest]) == ({"ckpt": "a"}, rest)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ckpt"], "cannot read 'ckpt': write key=value"),
        (["ckpt=a", "cont=3"], "unknown key 'cont'; did you mean 'count'"),
        ([], "ckpt=RUN_DIR is needed"),
        (["."], "ckpt=RUN_DIR is needed; did you mean 'ckpt=.'"),
        (["speed=2", "ckp=a"], "unknown key 'ckp'; did you mean 'ckpt'"),
        (["ckpt=a", "count=0"], "count=0: must be at least 1|count=0: must be greater than or at least 1"),
        (["ckpt=a", "kinds=[gif,mp3]"], r"kinds\[1\]=mp3: must be 'gif' or 'png'"),
        (["ckpt=a", "kinds=[gif"], "cannot read 'kinds=\\[gif'"),
        (["ckpt=a", f"count={'9' * 5000}"], "cannot read 'count=9"),
        (["ckpt=a", f"count={'[' * 5000}"], "cannot read 'count=\\["),
        (["ckpt=a", "on=1"], "on=1: must be true or false"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        parse(Options, arguments)
    assert "\n" not in str(error.value)
