"""NVRTC on a machine without a GPU: binaries, what ptxas says, what is kept, and one sentence where there is none."""

import builtins

import pytest

from envs.kernel.backends.cuda import compiler as cuda_compiler
from envs.kernel.backends.cuda.compiler import Resources, build, compile_cuda, resources, why_not
from marl.core.errors import CannotCompile

needs_nvrtc = pytest.mark.skipif(bool(why_not()), reason="no NVRTC here: pip install -e '.[cuda]'")
HALVE = """extern "C" __global__ void halve(float* a) { a[threadIdx.x] *= 0.5f; }"""
LOG = """
ptxas info    : Compiling entry function 'environment_step' for 'sm_90'
ptxas info    : Function properties for environment_step
    208 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, used 0 barriers, 208 bytes cumulative stack size
ptxas info    : Function properties for part1
    24 bytes stack frame, 16 bytes spill stores, 16 bytes spill loads
"""


def test_what_ptxas_says_is_read():
    assert resources(LOG) == Resources(registers=80, stack=208, spilled=16)
    with pytest.raises(ValueError, match="registers"):
        resources("nothing")


@needs_nvrtc
def test_a_kernel_compiles_for_every_chip_of_the_table():
    for chip in ("sm_80", "sm_90", "sm_120"):
        binary, log = build(HALVE, chip)
        assert binary[:4] == b"\x7fELF" and resources(log).spilled == 0


@pytest.mark.parametrize(
    ("bound", "free", "kept"), [(0, None, "bound"), (40, 0, "free"), (40, 40, "bound"), (8, 16, "bound")]
)
def test_a_bound_that_spills_is_lifted_where_that_helps(monkeypatch, bound: int, free: int | None, kept: str):
    """free: bytes spilled without the bound; None: not compiled so."""
    asked = []

    def compiled(source: str, chip: str) -> tuple[bytes, str]:
        asked.append(source)
        how, spilled = ("bound", bound) if "(128, 4)" in source else ("free", free)
        return how.encode(), f"{spilled} bytes spill stores"

    monkeypatch.setattr(cuda_compiler, "_compiled", compiled)
    assert build("void __launch_bounds__(128, 4) f()", "sm_90")[0].decode() == kept
    assert asked[1:] == ([] if free is None else ["void __launch_bounds__(128, 1) f()"])


@needs_nvrtc
def test_binaries_are_kept_under_source_and_chip(tmp_path, monkeypatch):
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path))
    first = compile_cuda(HALVE, "sm_90")
    written = first.stat().st_mtime_ns
    assert compile_cuda(HALVE, "sm_90") == first and first.stat().st_mtime_ns == written
    assert compile_cuda(HALVE, "sm_80") != first
    first.write_bytes(b"cut short")
    assert compile_cuda(HALVE, "sm_90").read_bytes()[:4] == b"\x7fELF"


@needs_nvrtc
def test_a_fault_is_told_in_nvrtc_s_words():
    with pytest.raises(CannotCompile, match='sm_90: kernel.cu.1.: error: identifier "nowhere" is undefined'):
        build(HALVE.replace("0.5f", "nowhere"), "sm_90")


def test_without_nvrtc_there_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("cuda"):
            raise ImportError("No module named 'cuda'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    cuda_compiler._nvrtc.cache_clear()
    try:
        assert "pip install -e '.[cuda]'" in why_not()
        with pytest.raises(CannotCompile, match="NVRTC"):
            build(HALVE, "sm_90")
    finally:
        cuda_compiler._nvrtc.cache_clear()
