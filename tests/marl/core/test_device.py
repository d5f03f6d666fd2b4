"""The device by name, and memory that stays with the process."""

import resource
import subprocess
import sys

import pytest
import torch

from marl.core import device
from marl.core.errors import UserError


def test_auto_is_a_device_of_this_machine():
    assert device.pick("auto").type in ("cpu", "cuda")
    assert device.pick("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", ""])
def test_a_wrong_device_is_named(name):
    with pytest.raises(UserError, match=f"device={name}"):
        device.pick(name)


FAULTS = """
import resource, sys, torch
from marl.core import device
if sys.argv[1] == "keep":
    assert device.keep_freed_memory()
def work():
    blocks = [torch.ones(1 << 24) for _ in range(3)]  # 64 MiB each, above what glibc ever keeps by itself
for _ in range(12):  # until the heap has found its layout
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_are_used_again_without_page_faults():
    def faults(mode: str) -> int:
        run = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        return int(run.stdout)

    pages = 4 * 3 * (1 << 26) // resource.getpagesize()
    plain, with_kept_blocks = faults("plain"), faults("keep")
    assert with_kept_blocks < 100
    assert plain > pages / 600  # one fault per page, or per huge page where the system uses those
