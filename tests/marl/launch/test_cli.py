"""Hydra's flags among the overrides."""

import pytest

from marl.core.errors import UserError
from marl.launch.cli import flags_first


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["seed=1", "-m", "algo=ippo"], ["-m", "seed=1", "algo=ippo"]),
        (["seed=1", "-cd", "mine"], ["-cd", "mine", "seed=1"]),
        (["seed=1", "-c", "job"], ["-c", "job", "seed=1"]),
        (["seed=1", "--cfg=job"], ["--cfg=job", "seed=1"]),
        (["seed=1", "-i", "defaults"], ["--info=defaults", "seed=1"]),
        (["-i", "seed=1"], ["--info=all", "seed=1"]),
    ],
)
def test_flags_come_with_their_values_before_the_overrides(given: list[str], ordered: list[str]) -> None:
    assert flags_first(given) == ordered


@pytest.mark.parametrize("flag", ["-cd", "--config-name", "-p", "-c"])
def test_a_flag_without_its_value_takes_no_override_for_it(flag: str) -> None:
    with pytest.raises(UserError, match=f"{flag}: needs a value after it"):
        flags_first(["resume=a", flag])


def test_a_flag_of_several_lines_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"cannot read \"-optimizer=.*\\n'\""):
        flags_first(["-optimizer='\n'"])
