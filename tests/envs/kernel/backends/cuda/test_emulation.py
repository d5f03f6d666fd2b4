"""CUDA sources run on the CPU: they do what the simulator does, by both calls."""

import ctypes

import pytest
import torch

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.cuda.emulation import compile_emulation, emulated
from envs.kernel.backends.cuda.source import PART, emit_cuda
from envs.kernel.ir.layout import layout
from envs.kernel.ir.lowered_step import lower
from envs.kernel.tracing.trace import TRACED, trace
from envs.kernel.verification.verify import verify
from envs.vmas.simulator import scenario_names
from envs.vmas.world import VmasWorld
from marl.native.compiler import load
from tests.envs.chain_cases import EAGER, FEWER, SMALL

WITHOUT = EAGER - {"debug/het_mass"}  # kernels; het_mass's step has one, its resets keep it from being used

ADD = """
typedef long long i64;
extern "C" __global__ void __launch_bounds__(4) add(const float* a, float* b, i64 n) {
  const i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (e < n) b[e] += a[e];
}"""


def test_a_grid_of_threads_is_a_loop():
    a, b = torch.arange(6.0), torch.full((6,), 10.0)
    library = load(compile_emulation(ADD))
    n = ctypes.c_longlong(5)  # of two blocks of four threads, three have nothing to do
    values = [ctypes.c_void_p(a.data_ptr()), ctypes.c_void_p(b.data_ptr()), n]
    arguments = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
    library.launch_add(ctypes.c_uint(2), ctypes.c_uint(4), arguments)
    assert b.tolist() == [10.0, 11.0, 12.0, 13.0, 14.0, 10.0]


def test_a_source_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match="no kernel"):
        emulated("int x;")


@pytest.mark.parametrize(
    ("scenario", "part"),
    [
        *((name, PART) for name in scenario_names() if name not in WITHOUT),
        ("debug/goal", 100),  # in functions
        ("tests.envs.kernel.backends.grid.Grid", PART),  # with a table
    ],
)
def test_scenarios_step_as_the_simulator_does(scenario, part, record_property):
    fewer = (FEWER | SMALL).get(scenario, {})  # `python -m envs.validation.cuda` has them in full
    world = VmasWorld(scenario, num_envs=TRACED, pool_size=64, max_steps=50, scenario_kwargs=fewer)
    lowered = lower(trace(world))
    places = layout(lowered, world.spec)
    library = load(compile_emulation(emit_cuda(lowered, places, part)))
    kernel = KernelStep(library, places, lowered.constants, lowered.shapes, lowered.noise, TRACED)
    report = verify(world, kernel, lowered.unrolled)
    assert (report.astray, report.flips) == (0, 0) and report.compared > 1000
    assert set(report.worst) >= {"observation", "reward", "state"}
    record_property("CUDA sources run on the CPU", scenario.rpartition(".")[2])
