"""The tables of CUDA kernels: rows compared with the simulator, one refusal; compiled where NVRTC is at hand.

Gradients of every scenario on the CPU, a few scenarios for the rest; the command has all, and its tables stand in
docs/kernels.md. Every scenario's step is in tests/envs/kernel/backends/cuda/test_emulation.py.
"""

import time

import pytest

from envs.kernel.backends.cuda.compiler import build, resources, why_not
from envs.kernel.backends.cuda.gradient import emit_cuda_gradient
from envs.kernel.ir.gradient import differentiate
from envs.kernel.ir.gradient_layout import gradient_layout
from envs.kernel.tracing.trace import TRACED
from envs.validation.cuda import CHIPS, lowered_step, measure, table
from envs.vmas.simulator import scenario_names
from envs.vmas.world import VmasWorld
from tests.envs.chain_cases import FEWER


def test_a_row_says_how_a_kernel_compares(record_property):
    row = measure("transport", chips=())
    record_property("CUDA sources run on the CPU", "transport")
    assert not row["why"] and row["astray"] == 0 and row["compared"] > 1000 and row["operations"] > 1000
    assert f"| transport | {row['operations']:,} | {row['compared']:,} | 0 |" in table([row], ())


def test_a_row_of_gradients_says_how_they_compare(record_property):
    row = measure("mpe/simple_push", chips=(), gradients=True)
    record_property("CUDA sources run on the CPU", "gradients of mpe/simple_push")
    assert not row["why"] and row["astray"] == 0 and row["compared"] > 1000 and row["worst"]["gradients"] < 1e-4
    text = table([row], (), gradients=True)
    assert "| operations of the gradients |" in text and f"| mpe/simple_push | {row['operations']:,} |" in text


WITHOUT = {"debug/pollock", "debug/waterfall", "road_traffic"}  # gradients; docs/kernels.md says why
# Fewer still than steps are compared with, and substeps: gradients are the longer programs. The command has all of it.
SHORT = FEWER | {
    "ball_passage": {"n_passages": 10},
    "debug/kinematic_bicycle": {"n_agents": 1},  # the bicycle, and nothing that it touches
    "discovery": {"n_agents": 2, "n_targets": 2},
    "joint_passage": {"n_passages": 10, "asym_package": False},
    "joint_passage_size": {"n_passages": 4},
    "passage": {"n_passages": 10},
}


@pytest.mark.parametrize("scenario", sorted(set(scenario_names()) - WITHOUT))
def test_gradients_are_those_of_differences(scenario, record_property):
    row = measure(scenario, chips=(), gradients=True, scenario_kwargs=SHORT.get(scenario))
    assert not row["why"] and row["compared"] > 1000 and row["astray"] <= row["compared"] / 200
    record_property("CUDA sources run on the CPU", f"gradients of {scenario}")


def test_a_scenario_without_a_kernel_says_why():
    row = measure("tests.envs.kernel.zoo.code.numbers.ItemOfState", chips=())
    assert "numbers.py" in row["why"] and f"| {row['scenario']} | — | | | {row['why']} |" in table([row], ())


SECONDS = {"balance": 10, "navigation": 20}  # of a processor, at most; the first start of an environment has as many
GRID = "tests.envs.kernel.backends.grid.Grid"


@pytest.mark.skipif(bool(why_not()), reason="no NVRTC here: pip install -e '.[cuda]'")
@pytest.mark.parametrize(
    "scenario",
    [
        "mpe/simple_spread",  # its gradients too
        "balance",
        "navigation",  # in functions
        "debug/line_trajectory",  # draws in its step
        GRID,  # a table
    ],
)
def test_kernels_compile_for_every_chip_without_spilling(scenario, record_property):
    lowered, places, source = lowered_step(VmasWorld(scenario, num_envs=TRACED, pool_size=64))
    kernels = [(scenario, source, 128)]
    if scenario == "mpe/simple_spread":
        gradient = differentiate(lowered)
        source = emit_cuda_gradient(gradient, gradient_layout(gradient, places))
        kernels.append((f"gradients of {scenario}", source, 168))
    for chip in CHIPS:
        for name, text, most in kernels:
            began = time.process_time()
            found = resources(build(text, chip)[1])
            took = time.process_time() - began
            assert found.spilled == 0 and found.registers <= most
            assert took <= SECONDS.get(scenario, 10)
            name = name.rpartition(".")[2]
            record_property(f"compiled by NVRTC for {chip}", f"{name} ({found.registers} registers, {took:.1f} s)")
