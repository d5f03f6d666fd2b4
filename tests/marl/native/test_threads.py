"""Threads that take a share of an MLP's rows: they do help, change no bit, and stay away where cores are scarce."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from marl.native import threads as helpers
from marl.networks import MLP, fused_mlp

ROOT = Path(__file__).parents[3]
SHAPES = [(64, (64, 64), 1536), (7, (40, 33, 3), 1000), (16, (256, 256), 333), (5, (600,), 700)]


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    helpers.allow(None)


def passes(features: int, hidden: tuple[int, ...], rows: int) -> list[Tensor]:
    """Results and all gradients of two passes through a network."""
    torch.manual_seed(0)
    net, x = MLP(features, 9, hidden=hidden), torch.randn(rows, features, requires_grad=True)
    results = []
    for _ in range(2):
        y = net(x)
        results += [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]
        x = x.detach()[:-1].requires_grad_()
    return results


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_results_do_not_depend_on_who_helped(shape):
    helpers.allow(0)
    alone = passes(*shape)
    for count in (1, 3):
        helpers.allow(count)
        for _ in range(20):  # who takes what differs from time to time
            assert same(passes(*shape), alone)


def test_helpers_do_a_share():
    helpers.allow(1)
    net, x = MLP(64, 9, hidden=(256, 256)), torch.randn(40_000, 64)  # so long that a helper gets a core meanwhile
    before, end = fused_mlp.kernel().helped(), time.monotonic() + 60
    with torch.no_grad():
        while fused_mlp.kernel().helped() == before and time.monotonic() < end:
            net(x)
    assert fused_mlp.kernel().helped() > before


def test_small_passes_are_not_shared():
    helpers.allow(1)
    passes(*SHAPES[0])  # they are awake
    before = fused_mlp.kernel().helped()
    for _ in range(50):
        passes(14, (64, 64), 48)
    assert fused_mlp.kernel().helped() == before


def test_two_callers_at_once_get_their_own_results():
    helpers.allow(1)
    nets = [(MLP(s[0], 9, hidden=s[1]), torch.randn(s[2], s[0])) for s in SHAPES[:2]]
    with torch.no_grad():
        expected = [net(x) for net, x in nets]
    wrong = []

    def call(i: int) -> None:
        with torch.no_grad():
            for _ in range(200):
                if not torch.equal(nets[i][0](nets[i][1]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'marl'}", **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


PRELUDE = """
import os, torch
from marl.networks import MLP, fused_mlp
from marl.native import threads as helpers
net, x = MLP(64, 9, hidden=(64, 64)), torch.randn(3000, 64)
torch.set_grad_enabled(False)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork_there_are_other_helpers():
    assert "equal" in run(
        PRELUDE
        + """
helpers.allow(1)
wanted = net(x)
child = os.fork()
if not child:
    same = all(torch.equal(net(x), wanted) for _ in range(50))
    os._exit(0 if same else 1)
print("equal" if os.waitpid(child, 0)[1] == 0 else "different")
"""
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to cores")
def test_where_there_is_no_idle_core_helpers_rest():
    printed = run(
        PRELUDE
        + """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
helpers.allow(1)
calls = 0
while calls < 20_000 and fused_mlp.kernel().backoffs() < 5:
    net(x)
    calls += 1
print(fused_mlp.kernel().backoffs())
"""
    )
    assert int(printed) >= 5


def test_nobody_asked_for_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    helpers.allow(None)
    assert helpers.members() == helpers.BY_ITSELF
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    helpers.allow(None)
    assert helpers.members() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    helpers.allow(None)
    assert helpers.members() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    helpers.allow(None)
    assert helpers.members() == 1
    helpers.allow(5)
    assert helpers.members() == 6
