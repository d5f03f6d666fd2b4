"""Copies in processes of their own: the same numbers as in turn, snapshots, ends, and what goes wrong there."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.base import EnvError

CASES = "tests.envs.host_cases"


def doors(workers, case="Doors", **kwargs):
    return PettingZooEnv(f"{CASES}.{case}", num_envs=5, max_steps=6, heterogeneous="pad", workers=workers, **kwargs)


def cartpole(workers, **kwargs):
    return GymnasiumEnv("CartPole-v1", num_envs=5, max_steps=12, workers=workers, **kwargs)


def played(env, count, seed=0):
    """Everything that the contract hands out over the steps."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        moved = env.step(env.random_action(generator))
        out += [moved.terminated, moved.truncated, *env.masks()["agents"].values()]
        out += [part["agents"] for part in (moved.observation, moved.next_observation, moved.reward)]
    return out


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", [doors, cartpole])
def test_processes_give_the_same_bits_and_end(make):
    one, several = make(0), make(2, seed=7)
    processes = [worker.process for worker in several.crew.shares]
    assert len(processes) == 2 and one.spec.groups["agents"].masks == several.spec.groups["agents"].masks
    assert torch.equal(one.reset(3)[0]["agents"], several.reset(3)[0]["agents"])
    assert same(played(one, 25), played(several, 25))
    saved = one.snapshot()  # with or without processes it is the same
    assert all(torch.equal(value, several.snapshot()[key]) for key, value in saved.items())
    expected = played(one, 10, seed=1)
    played(several, 3, seed=2)
    several.restore(saved)
    assert same(played(several, 10, seed=1), expected)
    several.close()
    assert not any(process.is_alive() for process in processes)


def test_a_process_that_dies_is_named_and_mistakes_arrive_whole():
    env = doors(2, "Dying")
    env.step(env.random_action())
    with pytest.raises(EnvError, match=r"Dying'.*process 1 \(copies 0 to 2\) of env.workers died \(exit code 3\)"):
        env.step(env.random_action())
    env.close()
    with pytest.raises(EnvError, match=r"^env\.id='CartPol-v1'.*CartPole"):
        GymnasiumEnv("CartPol-v1", workers=1)
    env = doors(1)
    with pytest.raises(RuntimeError, match=r"(?s)process 1 \(copies 0 to 4\).*AssertionError: a closed door"):
        env.step({"agents": (~env.masks()["agents"]["action"]).int().argmax(-1, keepdim=True)})
    assert env.reset(0)[0]["agents"].shape == (5, 3, 2)  # it answers on
    env.close()


def test_processes_end_with_what_they_belong_to():
    env = doors(2)
    processes = [worker.process for worker in env.crew.shares]
    del env
    gc.collect()
    for process in processes:
        process.join(20)
        assert not process.is_alive()


def test_processes_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(f"""
import os, signal
from envs.adapters.gymnasium_env import PettingZooEnv
if __name__ == "__main__":
    env = PettingZooEnv("{CASES}.Doors", num_envs=2, workers=2, heterogeneous="pad")
    print(*(worker.process.pid for worker in env.crew.shares), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    root = str(Path(__file__).resolve().parents[4])
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, script], env=env, stdout=subprocess.PIPE, timeout=120)
    pids, end = done.stdout.split(), time.monotonic() + 20
    assert len(pids) == 2

    def running(pid):
        state = Path(f"/proc/{int(pid)}/stat")
        return state.exists() and state.read_text().rpartition(") ")[2][0] != "Z"

    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(running, pids))
