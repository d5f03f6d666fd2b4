"""The CUDA source of a step: compiles for Hopper, without a register spilled (needs nvcc, no GPU)."""

import re
import shutil
import subprocess

import pytest

from envs.kernel.backends.cuda import emit_cuda
from envs.kernel.ir.layout import layout
from envs.kernel.ir.lowered_step import lower
from envs.kernel.tracing.trace import TRACED, trace
from envs.vmas.world import VmasWorld


def source_of(scenario: str) -> str:
    world = VmasWorld(scenario, num_envs=TRACED, pool_size=64)
    lowered = lower(trace(world))
    return emit_cuda(lowered, layout(lowered, world.spec))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize("scenario", ["simple_spread", "balance", "navigation"])
def test_no_register_is_spilled_on_hopper(scenario, tmp_path):
    code = tmp_path / "step.cu"
    code.write_text(source_of(scenario))
    flags = ["-arch=sm_90", "-fmad=false", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "step.cubin")]
    done = subprocess.run(["nvcc", *flags, str(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr).groups()
    print(scenario, re.search(r"Used \d+ registers", done.stderr).group())
    assert (stores, loads) == ("0", "0")


def test_the_source_stores_outputs_before_the_end():
    text = source_of("debug/goal")
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("store("))
    last = next(i for i, line in enumerate(lines) if line.startswith("if (P == 0"))
    assert first < 0.7 * last and "__global__" in text
