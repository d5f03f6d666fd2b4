"""The driver's calls by the real bindings, with a driver of ours in the place of NVIDIA's: what is handed on arrives."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAM = '''
import contextlib, ctypes, os, threading, types
from pathlib import Path
import torch
from envs.kernel.backends.cuda.driver import NvidiaDriver, addresses
from envs.kernel.backends.cuda.emulation import compile_emulation
from marl.core.errors import CannotCompile

fake, used = ctypes.CDLL("libcuda.so.1"), threading.local()

@contextlib.contextmanager
def use(device):
    """As torch: a device that is the current one already is not made so again, and context 7 + N is that of cuda:N."""
    before, index = torch.cuda.current_device(), device.index or 0
    if index != before:
        fake.fake_use(ctypes.c_void_p(7 + index))
    used.device = index
    yield
    if index != before:
        fake.fake_use(ctypes.c_void_p(7 + before))
    used.device = before

torch.cuda.device, torch.empty = use, lambda *size, device: None
torch.cuda.current_device = lambda: getattr(used, "device", 0)
torch.cuda.current_stream = lambda device: types.SimpleNamespace(cuda_stream=7 + (device.index or 0))
library = compile_emulation("""
typedef long long i64;
extern "C" __global__ void add(const float* a, float* b, i64 n) {
  const i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (e < n) b[e] += a[e];
}""")
os.environ["FAKE_MODULE"] = str(library)
driver, device = NvidiaDriver(), torch.device("cpu")
a, b = torch.arange(6.0), torch.full((6,), 10.0)
values = [ctypes.c_void_p(a.data_ptr()), ctypes.c_void_p(b.data_ptr()), ctypes.c_longlong(5)]
arguments = addresses(values)
add = driver.load(library, "add", device)
driver.launch(add, 2, 4, ctypes.addressof(arguments), device)
print(b.tolist())

def launch(device):
    driver.launch(add, 2, 4, ctypes.addressof(arguments), device)

driver.load(library, "add", torch.device("cuda", 1))
for where in (device, torch.device("cuda", 0), torch.device("cuda", 1)):  # of backward passes, with no context as yet
    thread = threading.Thread(target=launch, args=(where,))
    thread.start()
    thread.join()
launch(torch.device("cuda", 1))
launch(torch.device("cuda", 0))
print(b.tolist())
for binary, kernel in ((library, "nowhere"), (Path(__file__), "add")):
    try:
        driver.load(binary, kernel, device)
    except CannotCompile as error:
        print(error)
'''


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or sys.platform != "linux",
    reason="no cuda.bindings here: pip install -e '.[cuda]'",
)
def test_launches_reach_the_driver(tmp_path):
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(HERE / "fake_libcuda.cpp"), "-ldl"],
        check=True,
    )
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert lines[:1] == ["[10.0, 11.0, 12.0, 13.0, 14.0, 10.0]"], done.stderr[-2000:]
    assert lines[1:2] == ["[10.0, 16.0, 22.0, 28.0, 34.0, 10.0]"], done.stderr[-2000:]  # six launches arrived
    assert lines[2].startswith("nowhere of ") and lines[2].endswith("CUDA_ERROR_NOT_FOUND")
    assert lines[3].startswith("add of program.py cannot be loaded") and "INVALID_IMAGE" in lines[3]
