"""The CUDA source of a step: what it says, and that nvcc compiles it for Hopper without a register spilled."""

import re
import shutil
import subprocess

import pytest

from envs.kernel.backends.cuda.source import PART, emit_cuda
from envs.kernel.ir.layout import layout
from envs.kernel.ir.lowered_step import lower
from envs.kernel.tracing.trace import TRACED, trace
from envs.vmas.world import VmasWorld


def source_of(scenario: str, part: int = PART) -> str:
    world = VmasWorld(scenario, num_envs=TRACED, pool_size=64)
    lowered = lower(trace(world))
    return emit_cuda(lowered, layout(lowered, world.spec), part)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_no_register_is_spilled_on_hopper(tmp_path):
    code = tmp_path / "step.cu"
    code.write_text(source_of("simple_spread"))
    flags = ["-arch=sm_90", "-fmad=false", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "step.cubin")]
    done = subprocess.run(["nvcc", *flags, str(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills and set(spills) == {("0", "0")}


def test_the_source_stores_outputs_before_the_end():
    text = source_of("debug/goal")
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("store("))
    last = next(i for i, line in enumerate(lines) if line.startswith("if (P == 0"))
    assert first < 0.7 * last and "__global__" in text


def test_tables_are_read_and_written_without_a_count_of_lanes():
    """Inside of an expression too: `truth(load(T0, …, n))` named a number that only the CPU's kernels have."""
    text = source_of("tests.envs.kernel.backends.grid.Grid")
    assert "truth(load(T0, 400L, " in text and "store(T0, 400L, " in text
    assert not re.search(r", n\)", text)


def test_short_programs_are_one_function_and_long_ones_several_that_are_called():
    whole, split = source_of("debug/goal"), source_of("debug/goal", part=100)
    assert re.findall(r"static __device__ (\w+) void part", whole) == ["__forceinline__"]
    kinds = re.findall(r"static __device__ (\w+) void part", split)
    assert len(kinds) >= 3 and set(kinds) == {"__noinline__"}
    assert "#define MATHS F\n" in whole and "#define MATHS CALLED\n" in split
    calls = re.search(r"environment_step.*?\n(?:.*\n)*?if \(w", split).group()
    assert all(f"part{i}(w, now, e, m, t, done);" in calls for i in range(len(kinds)))
