"""Scenario classes without a file: a REPL, a notebook's cell, a script's __main__; never a traceback."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from envs.vmas.env import VmasEnv
from tests.fixtures.kernels import kernels_made_anew

ROOT = Path(__file__).parents[3]
CLASS = """
import torch
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario

class Mine(BaseScenario):
    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device)
        world.add_agent(Agent(name="agent", collide=False))
        return world

    def reset_world_at(self, env_index=None):
        rows = self.world.batch_dim if env_index is None else 1
        self.world.agents[0].set_pos(2 * torch.rand(rows, 2) - 1, batch_index=env_index)

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.vel], -1)

    def reward(self, agent):
        return PAY * agent.state.pos.norm(dim=-1)

PAY = 1.0
"""
PLAY = """
import json
from envs.vmas.env import VmasEnv

def play(name, fast):
    env = VmasEnv(name, num_envs=5, max_steps=10, seed=3, fast=fast)
    generator, rewards = torch.Generator().manual_seed(0), []
    for _ in range(25):
        rewards += env.step(env.random_action(generator)).reward["agents"].flatten().tolist()
    return {"path": env.path, "why": env.why_eager, "rewards": rewards}

def both(name):
    print(json.dumps([play(name, "auto"), play(name, "off")]))

"""
CELLS = '''
import linecache, time

def run_cell(source, number):
    """As IPython does: compiled under a name of its own, whose lines linecache knows."""
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), globals())

'''


def processed(arguments: list[str], stdin: str, folder: Path) -> list:
    """What a process printed, one JSON value a line; it must end well."""
    variables = {"PYTHONPATH": str(ROOT), "MARL_KERNEL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with kernels_made_anew(folder / "cache"):
        done = subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=300,
            env={**os.environ, **variables},
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def check(default: dict, off: dict) -> None:
    """The same numbers; where there is no kernel, a sentence says why."""
    assert default["rewards"] == pytest.approx(off["rewards"], rel=1e-4, abs=1e-4)
    assert default["path"] in ("kernel", "eager")
    assert bool(default["why"]) == (default["path"] == "eager") and "\n" not in default["why"]


def test_a_class_typed_into_python(tmp_path):
    """`python -` has a __main__ without a file: no source to be had."""
    script = CLASS + PLAY + "both('__main__.Mine')\nPAY = 3.0\nboth('__main__.Mine')\n"
    before, after = processed(["-"], script, tmp_path)
    check(*before)
    check(*after)
    assert after[0]["rewards"] == pytest.approx([3 * x for x in before[0]["rewards"]], rel=1e-3, abs=1e-3)


def test_a_class_typed_into_the_prompt(tmp_path):
    """`python -i` compiles statement by statement, each under the name <stdin>."""
    typed = (CLASS + PLAY).replace("\n\n    def", "\n    def") + "both('__main__.Mine')\n"
    check(*processed(["-i", "-q"], typed, tmp_path)[0])


def test_a_class_in_the_script_itself(tmp_path):
    """`python script.py`: __main__ has a file, and its source can be had."""
    (tmp_path / "script.py").write_text(CLASS + PLAY + "both('__main__.Mine')\n")
    result = processed(["script.py"], "", tmp_path)[0]
    check(*result)


def test_a_class_in_a_notebooks_cell(tmp_path):
    """A cell run again with another reward is another scenario; one that counts is eager."""
    edited = CLASS.replace("PAY * agent", "2.0 * PAY * agent")
    counting = CLASS.replace("return PAY", "self.n = getattr(self, 'n', 0) + 1\n        return self.n * PAY")
    script = PLAY + CELLS + "import torch\n"
    for number, cell in enumerate((CLASS, edited, counting)):
        script += f"run_cell({cell!r}, {number})\nboth('__main__.Mine')\n"
    first, second, third = processed(["-"], script, tmp_path)
    for result in (first, second, third):
        check(*result)
    assert second[0]["rewards"] == pytest.approx([2 * x for x in first[0]["rewards"]], rel=1e-3, abs=1e-3)
    assert third[0]["path"] == "eager"


def test_a_module_made_by_exec(monkeypatch, tmp_path):
    """A module that only memory holds, in this process; its class is replaced by another of the same name."""
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path))
    module = types.ModuleType("made_by_exec")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def play(fast: str) -> tuple[torch.Tensor, VmasEnv]:
        env = VmasEnv("made_by_exec.Mine", num_envs=5, max_steps=10, seed=3, fast=fast)
        generator = torch.Generator().manual_seed(0)
        return torch.stack([env.step(env.random_action(generator)).reward["agents"] for _ in range(25)]), env

    for factor in (1.0, 2.0):
        exec(CLASS.replace("PAY * agent", f"{factor} * PAY * agent"), module.__dict__)
        (default, env), (off, _) = play("auto"), play("off")
        torch.testing.assert_close(default, off, rtol=1e-4, atol=1e-4)
        assert bool(env.why_eager) == (env.path == "eager")
        assert off.mean() > 0.3 * factor
