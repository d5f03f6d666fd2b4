"""A library on an emulated Arm processor: called as by ctypes, its writes seen here, its faults told."""

import ctypes
from pathlib import Path

import pytest
import torch

from marl.core.errors import CannotCompile
from marl.native.arm import cross

pytestmark = pytest.mark.skipif(bool(cross.why_not()), reason=cross.why_not() or "all is there")
SOURCE = """
#include "simd.h"
extern "C" int width() { return W; }
extern "C" int is_arm() {
#ifdef __aarch64__
  return 1;
#endif
  return 0;
}
// places: addresses of two arrays of n numbers. out and calls come after the eight integers that registers hold.
extern "C" int64_t add(int64_t n, float share, float** places, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e,
                       int64_t f, float* out, int* calls) {
  for (int64_t i = 0; i < n; i++) out[i] = places[0][i] + share * places[1][i];
  *calls += 1;
  return a + b + c + d + e + f;
}
extern "C" void beyond(float* x) { x[4] = 1; }
extern "C" void lost() { *(volatile int*)8 = 1; }
extern "C" void roundings(const float* x, float* y) {
  store(y, floor_(load(x))); store(y + W, ceil_(load(x))); store(y + 2 * W, trunc_(load(x)));
  store(y + 3 * W, round_(load(x))); store(y + 4 * W, sqrt_(abs_(load(x))));
  store(y + 5 * W, fma_(load(x), load(x), K(-1)));
  y[6 * W] = any(lt(load(x), K(-2))); y[6 * W + 1] = any(lt(load(x), K(-3)));
}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("arm") / "library.so"
    cross.compile_for_arm([SOURCE], path)
    return path


def test_calls_reach_memory_behind_addresses_of_addresses(path: Path) -> None:
    a, b, out = torch.arange(6.0), torch.full((6,), 2.0), torch.zeros(8)
    places = (ctypes.c_void_p * 2)(a.data_ptr(), b[2:].data_ptr())
    calls = ctypes.c_int(4)
    with cross.emulated(path) as library:
        assert library.width() == 4 and library.is_arm() == 1
        library.add.restype = ctypes.c_int64
        library.add.argtypes = [ctypes.c_int64, ctypes.c_float, *[ctypes.c_void_p] * 9]
        given = 4, 0.5, places, 1, 2, 3, 4, 5, 6_000_000_000, out[1:].data_ptr(), ctypes.addressof(calls)
        assert library.add(*given) == 6_000_000_015
        assert library.called == {"width", "is_arm", "add"}
    assert out.tolist() == [0, 1, 2, 3, 4, 0, 0, 0] and calls.value == 5


def test_neon_rounds_as_torch_does(path: Path) -> None:
    x, y = torch.tensor([-2.5, -0.5, 1.5, 2.4999]), torch.zeros(26)
    with cross.emulated(path) as library:
        library.roundings.restype, library.roundings.argtypes = None, [ctypes.c_void_p] * 2
        library.roundings(x.data_ptr(), y.data_ptr())
    expected = [x.floor(), x.ceil(), x.trunc(), x.round(), x.abs().sqrt(), (x.double() ** 2 - 1).float()]
    assert torch.equal(y[:24], torch.cat(expected)) and y[24:].tolist() == [1, 0]


def test_faults_are_told(path: Path) -> None:
    x = torch.zeros(4)
    with cross.emulated(path) as library:
        library.beyond.argtypes = [ctypes.c_void_p]
        with pytest.raises(CannotCompile, match="beyond writes past the end of an object of 16 bytes"):
            library.beyond(x.data_ptr())
        with pytest.raises(CannotCompile, match=r"the emulator ended with status -?\d+ in lost: .*signal 11"):
            library.lost()
    with pytest.raises(CannotCompile, match="failed: .*error"):
        cross.compile_for_arm(["int x = ;"], path.with_name("none.so"))
