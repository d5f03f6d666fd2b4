"""Kernels on an emulated Arm processor agree with the simulator, and wrong ones are found."""

import pytest

from envs.validation import arm
from marl.core.errors import CannotCompile
from marl.native.arm import cross

pytestmark = pytest.mark.skipif(bool(cross.why_not()), reason=cross.why_not() or "all is there")


def test_a_kernel_agrees_with_the_simulator_on_arm() -> None:
    row = arm.measure("dropout")
    assert row["why"] == "" and row["astray"] == 0 and row["compared"] > 1000
    assert max(row["worst"].values()) <= 2e-4 and row["compile"] > 0
    assert f"| dropout | {row['operations']} | {row['compared']:,} | 0 | " in arm.table([row])


def test_a_wrong_kernel_is_found(monkeypatch) -> None:
    emit = arm.emit
    monkeypatch.setattr(arm, "emit", lambda *a: emit(*a).replace("put((float*)", "put(1 + (float*)", 1))
    row = arm.measure("dropout")
    assert "disagrees with the simulator" in row["why"] or "writes past the end" in row["why"]
    assert arm.table([row]).splitlines()[-1].startswith("| dropout | — |")


def test_what_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr(cross.shutil, "which", lambda name: None)
    assert cross.why_not("apple").startswith("clang++ is not installed (apt-get install g++-aarch64-linux-gnu")
    with pytest.raises(CannotCompile, match="aarch64-linux-gnu-g\\+\\+ is not installed"), cross.emulated("none.so"):
        pass


def test_a_gradient_agrees_with_differences_on_arm() -> None:
    row = arm.measure("mpe/simple", gradients=True)
    assert row["why"] == "" and row["operations"] > 0 and "operations of the gradients" in arm.table([row], True)
