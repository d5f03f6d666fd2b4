"""The tables of CUDA kernels: rows compared with the simulator, one refusal; compiled where NVRTC is at hand.

A few scenarios of each kind. The command has all of them, and its tables stand in docs/kernels.md.
"""

import pytest

from envs.kernel.backends.cuda.compiler import build, resources, why_not
from envs.kernel.backends.cuda.gradient import emit_cuda_gradient
from envs.kernel.ir.gradient import differentiate
from envs.kernel.ir.gradient_layout import gradient_layout
from envs.kernel.tracing.trace import TRACED
from envs.validation.cuda import CHIPS, lowered_step, measure, table
from envs.vmas.world import VmasWorld


def test_a_row_says_how_a_kernel_compares():
    row = measure("transport", chips=())
    assert not row["why"] and row["astray"] == 0 and row["compared"] > 1000 and row["operations"] > 1000
    assert f"| transport | {row['operations']:,} | {row['compared']:,} | 0 |" in table([row], ())


def test_a_row_of_gradients_says_how_they_compare():
    row = measure("mpe/simple_push", chips=(), gradients=True)
    assert not row["why"] and row["astray"] == 0 and row["compared"] > 1000 and row["worst"]["gradients"] < 1e-4
    text = table([row], (), gradients=True)
    assert "| operations of the gradients |" in text and f"| mpe/simple_push | {row['operations']:,} |" in text


def test_a_scenario_without_a_kernel_says_why():
    row = measure("tests.envs.kernel.zoo.code.numbers.ItemOfState", chips=())
    assert "numbers.py" in row["why"] and f"| {row['scenario']} | — | | | {row['why']} |" in table([row], ())


@pytest.mark.skipif(bool(why_not()), reason="no NVRTC here: pip install -e '.[cuda]'")
def test_a_step_and_its_gradients_compile_for_every_chip_without_spilling():
    lowered, places, source = lowered_step(VmasWorld("mpe/simple_spread", num_envs=TRACED, pool_size=64))
    gradient = differentiate(lowered)
    of_gradients = emit_cuda_gradient(gradient, gradient_layout(gradient, places))
    for chip in CHIPS:
        for text, most in ((source, 128), (of_gradients, 168)):
            found = resources(build(text, chip)[1])
            assert found.spilled == 0 and found.registers <= most
