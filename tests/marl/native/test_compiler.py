"""How libraries are linked: torch's vector functions are found with and without the linker's shortcut."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch  # noqa: F401 - its library is loaded

from marl.native import compiler

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")

SOURCE = """
#include "simd.h"
extern "C" int width() { return W; }
#ifdef USE_SLEEF
extern "C" int sleef() { return 1; }
#else
extern "C" int sleef() { return 0; }
#endif
extern "C" void logarithm(const float* x, float* y) { store(y, log1p_(load(x))); }
"""


@pytest.mark.parametrize("shortcut", [True, False])
def test_vector_functions_are_torchs_own(tmp_path: Path, monkeypatch, shortcut: bool) -> None:
    """A linker that knows no names of libraries reads torch's own."""
    (tmp_path / "kernels").mkdir(mode=0o700)
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path / "kernels"))
    if not shortcut:
        wrapper = tmp_path / "g++"
        wrapper.write_text(f'#!/bin/sh\ncase "$*" in *soname*) exit 1;; esac\nexec {shutil.which("g++")} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv("CXX", str(wrapper))
    flags = compiler._linked_by_name(tmp_path, compiler.compiler())
    assert bool(flags) == shortcut and (tmp_path / "libtorch_cpu.so").exists() == shortcut
    library = compiler.load(compiler.compile_library(SOURCE))
    assert library.sleef() == 1
    x = torch.linspace(-0.5, 1, library.width())
    y = torch.empty_like(x)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y)]
    library.logarithm(*pointers)
    torch.testing.assert_close(y, x.log1p(), rtol=1e-6, atol=0)


def test_a_library_needs_torch_by_name_alone(tmp_path: Path) -> None:
    source = tmp_path / "a.cpp"
    source.write_text('extern "C" int f();\nextern "C" int g() { return f(); }\n')
    flags = compiler._linked_by_name(tmp_path, compiler.compiler())
    built = tmp_path / "a.so"
    subprocess.run([compiler.compiler(), "-shared", "-fPIC", source, "-o", built, *flags, "-ltorch_cpu"], check=True)
    assert b"libtorch_cpu.so" in built.read_bytes() and str(tmp_path).encode() not in built.read_bytes()
