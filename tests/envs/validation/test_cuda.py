"""The table of CUDA kernels: one row compared with the simulator, one refusal; compiled where NVRTC is at hand."""

import pytest

from envs.kernel.backends.cuda.compiler import build, resources, why_not
from envs.kernel.tracing.trace import TRACED
from envs.validation.cuda import CHIPS, lowered_step, measure, table
from envs.vmas.world import VmasWorld


def test_a_row_says_how_a_kernel_compares():
    row = measure("mpe/simple_tag", chips=())
    assert not row["why"] and row["astray"] == 0 and row["compared"] > 1000 and row["operations"] > 1000
    assert f"| mpe/simple_tag | {row['operations']:,} | {row['compared']:,} | 0 |" in table([row], ())


def test_a_scenario_without_a_kernel_says_why():
    row = measure("tests.envs.kernel.zoo.code.numbers.ItemOfState", chips=())
    assert "numbers.py" in row["why"] and f"| {row['scenario']} | — | | | {row['why']} |" in table([row], ())


@pytest.mark.skipif(bool(why_not()), reason="no NVRTC here: pip install -e '.[cuda]'")
def test_a_step_compiles_for_every_chip_without_spilling():
    source = lowered_step(VmasWorld("mpe/simple_spread", num_envs=TRACED, pool_size=64))[2]
    for chip in CHIPS:
        found = resources(build(source, chip)[1])
        assert found.spilled == 0 and found.registers < 128
