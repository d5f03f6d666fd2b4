"""The next stage's kernel is made by another process, which ends with the run and whose failures cost time only."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agents.curriculum.build_ahead import BuildAhead, description
from agents.curriculum.curriculum import Curriculum
from envs.adapters.gymnasium_env import GymnasiumEnv
from envs.vmas.env import VmasEnv

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
ENV = partial(VmasEnv, scenario="balance", num_envs=4, max_steps=10, scenario_kwargs={"n_agents": 2})
NODE = {"env": {"scenario_kwargs": {"package_mass": {0: 1, 0.5: 5}}}}
RUN = SimpleNamespace(task=SimpleNamespace(device=torch.device("cpu")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_compiler
def test_it_fills_the_cache_so_that_the_run_compiles_nothing(cache):
    curriculum = Curriculum(NODE, ENV, 0)
    ahead = BuildAhead(curriculum, seed_of=lambda place: 7)
    ahead.on_start(RUN)
    assert ahead.asked == {(0,), (1,)}
    assert ahead.process.wait(300) == 0
    kept = {path.name for path in cache.iterdir() if path.suffix in (".pt", ".so")}
    assert len(kept) >= 2
    env = curriculum.factory((1,))(seed=7, device="cpu")
    assert env.path == "kernel"
    assert {path.name for path in cache.iterdir() if path.suffix in (".pt", ".so")} == kept
    ahead.on_iteration(RUN, {})  # nothing is left to build
    assert ahead.process.poll() == 0
    ahead.on_end(RUN)
    assert ahead.process is None


def test_it_ends_with_the_run(cache):
    ahead = BuildAhead(Curriculum(NODE, ENV, 0), seed_of=lambda place: 7)
    ahead.on_start(RUN)
    process = ahead.process
    ahead.on_end(RUN)
    assert process.poll() is not None


def test_what_fails_there_is_left_out(cache):
    work = '[{"env": "envs.vmas.env.VmasEnv", "settings": {"scenario": "no_such"}}, {"env": "torch.nn.Linear"}]'
    command = [sys.executable, "-m", "agents.curriculum.build_ahead", str(os.getpid())]
    done = subprocess.run(command, input=work, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0 and "no_such" in done.stderr and "is no environment" in done.stderr


def test_it_goes_when_its_parent_does(cache):
    work = [description(Curriculum(NODE, ENV, 0).factory((1,)), 7)] * 20  # more than it gets done
    (cache.parent / "work.json").write_text(json.dumps(work))
    script = "import os, subprocess, sys, time; work = open(sys.argv[1]); command = [*sys.argv[2:], str(os.getpid())];"
    script += "print(subprocess.Popen(command, stdin=work).pid, flush=True); time.sleep(600)"
    command = [sys.executable, "-m", "agents.curriculum.build_ahead"]
    outer = [sys.executable, "-c", script, str(cache.parent / "work.json"), *command]
    with subprocess.Popen(outer, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        while not cache.exists():  # it is at work
            time.sleep(0.05)
        parent.kill()
    end = time.monotonic() + 60
    while running(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(child)


def running(number: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_is_built_where_there_is_nothing_to_compile(cache):
    assert description(partial(VmasEnv, scenario="balance", fast="off"), 0) is None
    assert description(partial(GymnasiumEnv, id="CartPole-v1"), 0) is None
    assert description(partial(VmasEnv, scenario_kwargs={"x": object()}), 0) is None
    assert description(lambda **settings: None, 0) is None
    assert description(partial(VmasEnv, scenario="balance"), 3) == {
        "env": "envs.vmas.env.VmasEnv", "settings": {"scenario": "balance", "seed": 3}
    }  # fmt: skip
    slow = BuildAhead(Curriculum(NODE, partial(ENV, fast="off"), 0), seed_of=lambda place: 7)
    slow.on_start(RUN)
    assert slow.process is None
