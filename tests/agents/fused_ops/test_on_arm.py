"""The compiled functions on an emulated Arm processor."""

from pathlib import Path

import pytest

from agents.fused_ops import on_arm
from marl.native.arm import cross

pytestmark = pytest.mark.skipif(bool(cross.why_not()), reason=cross.why_not() or "all is there")


@pytest.mark.parametrize("name", ["gather", "lerp"])
def test_a_library_passes_its_own_check_on_arm(name: str) -> None:
    row = on_arm.measure(name)
    assert row["why"] == "" and row["functions"] >= 1
    assert f"| {name} | {row['functions']} | yes |" in on_arm.table([row])


def test_a_library_that_differs_is_told(monkeypatch, tmp_path: Path) -> None:
    helpers, lerp = on_arm.LIBRARIES["lerp"].sources
    wrong = tmp_path / lerp.name
    wrong.write_text(lerp.read_text().replace("fma_(K(by), b - a, a)", "fma_(K(by), b - a, b)"))
    monkeypatch.setattr(on_arm.LIBRARIES["lerp"], "sources", [helpers, wrong])
    assert "| no: it differs from torch |" in on_arm.table([on_arm.measure("lerp")])
