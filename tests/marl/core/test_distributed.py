"""Two processes are one run: gradients, statistics, streams, learning; a killed process, a restart, another number."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.fixtures.shell import ranks

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def results(shell, tmp_path_factory) -> dict[str, dict]:
    """{"1_0": …, "2_0": …, "2_1": …}: what every process of a run with one and with two processes found."""
    folder = tmp_path_factory.mktemp("team")
    for process in shell.together(ROOT, ROOT / "tests" / "marl" / "team.py", {}, *ranks(), arguments=[str(folder)]):
        assert process.returncode == 0, process.stderr
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_the_gradient_of_a_batch_is_the_same(results) -> None:
    one, first, second = (results[name]["gradients"] for name in ("1_0", "2_0", "2_1"))
    assert first == second and one == pytest.approx(first, abs=1e-6) and any(abs(value) > 1e-3 for value in one)


def test_gradients_are_averaged_as_by_ddp(results) -> None:
    """Bitwise, between two: a sum of two has no order."""
    one, first, second = (results[name]["averaged"] for name in ("1_0", "2_0", "2_1"))
    assert one["equal"] and first["equal"] and second["equal"]
    assert first["norm"] == second["norm"] == pytest.approx(one["norm"], abs=1e-6) and first["norm"] > 1e-3
    assert first["shared"] == second["shared"] == [[0.0, 0.0], [[0], [0]]]


def test_statistics_are_of_all_processes(results) -> None:
    one, first, second = (results[name]["statistics"] for name in ("1_0", "2_0", "2_1"))
    for mode in ("batch", "agent"):
        parts = [[row[i : i + 6] for i in range(0, 60, 6)] for row in (first[mode], second[mode])]  # [T][E / 2 * A]
        together = [value for a, b in zip(*parts, strict=True) for value in (*a, *b)]
        assert together == pytest.approx(one[mode], abs=1e-5)
    for result in (first, second):
        assert (result["total"], result["mean"], result["largest"], result["agreed"]) == (3, 0.5, 5, "said by 0")
    assert (first["gathered"], second["gathered"]) == ([0, 1], [1])
    assert one["stream"] == first["stream"] == "policy" != second["stream"]


def test_batch_normalisation_is_over_the_rows_of_all_processes(results) -> None:
    one, first, second = (results[name]["normalised"] for name in ("1_0", "2_0", "2_1"))
    together = [value for pair in zip(first["outputs"], second["outputs"], strict=True) for value in pair]
    assert together == pytest.approx(one["outputs"], abs=1e-5)
    assert first["gradients"] == pytest.approx(one["gradients"], abs=1e-5) and first["gradients"] == second["gradients"]
    assert first["statistics"] == pytest.approx(one["statistics"], abs=1e-5)


def test_a_part_thaws_in_all_processes(results) -> None:
    one, first, second = (results[name]["thawed"] for name in ("1_0", "2_0", "2_1"))
    assert first == second and first == pytest.approx(one, abs=1e-4)


def test_work_is_split_without_overlap(results) -> None:
    one, first, second = (results[name]["work"] for name in ("1_0", "2_0", "2_1"))
    assert one["sizes"] == 160 and sorted(first["rows"] + second["rows"]) == sorted(one["rows"])
    assert first["share"]["env"]["num_envs"] == 3 and first["share"]["algo"]["minibatch_size"] == 2
    assert first["share"]["task"]["batch_size"] == 4  # the loader divides it
    assert first["odd"] == "env.num_envs=7: must be a multiple of 2, the number of processes"


def test_two_processes_learn_as_one_does(results) -> None:
    one, first, second = (results[name]["learning"] for name in ("1_0", "2_0", "2_1"))
    assert first == second
    # The same rows in the same minibatches, but for a few left out at the end of an epoch.
    accuracies = [result["figures"]["accuracy"] for result in (one, first)]
    assert min(accuracies) > 0.85 and accuracies[0] == pytest.approx(accuracies[1], abs=0.03)


# ---- torchrun


SMALL = [
    "env.num_envs=8",
    "env.max_steps=20",
    "env.fast=off",
    "algo.rollout_steps=20",
    "algo.minibatch_size=40",
    "network.hidden=[16]",
    "task.eval_episodes=4",
    "trainer.checkpoint_every=1",
    "trainer.progress=off",
    "frames=1600000",
    "logger=csv",
]


def iterations(run: Path) -> list[int]:
    if not (run / "metrics.csv").exists():
        return []
    with open(run / "metrics.csv", newline="") as file:
        return [int(row["iteration"]) for row in csv.DictReader(file) if row["iteration"] and row.get("lr")]


def workers(agent: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in psutil.Process(agent.pid).children(recursive=True) if "train.py" in " ".join(p.cmdline())]


def wait_for(condition, agent: subprocess.Popen, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert agent.poll() is None and time.monotonic() < end, agent.communicate()[0][-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize(
    "algo",
    [
        ["algo=matd3", "algo.updates=5", "algo.buffer_frames=640"],  # every second minibatch trains no actor
        ["algo=mappo", "algo.update=sequential", "algo.share_actor=separate"],
    ],
)
def test_losses_that_leave_parameters_out_are_trained_by_two_processes(algo: list[str], shell, tmp_path: Path) -> None:
    small = [key for key in SMALL if not key.startswith("frames")]
    settings = [*algo, "trainer=ddp", *small, "frames=320", "hydra.run.dir=run"]
    for done in shell.together(tmp_path, ROOT / "scripts" / "train.py", *ranks(), arguments=settings):
        assert done.returncode == 0, done.stderr[-3000:]
    assert iterations(tmp_path / "run") == [1, 2]


def test_a_killed_process_a_restart_and_another_number_of_processes(shell, tmp_path: Path) -> None:
    """One long story, since every start of two processes takes seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += [str(ROOT / "scripts" / "train.py"), "trainer=ddp", *SMALL]
    agent = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: list(tmp_path.glob("outputs/balance/*/checkpoints/last-1.pt")), agent)
        (run,) = tmp_path.glob("outputs/balance/*")  # both processes agree on one directory
        killed = workers(agent)
        before = len(iterations(run))
        killed[1].send_signal(signal.SIGKILL)
        wait_for(lambda: len(iterations(run)) > before + 5 and not set(killed) & set(workers(agent)), agent)
        assert list(tmp_path.glob("outputs/balance/*")) == [run]  # it went on in place
        done = iterations(run)
        assert done == list(range(1, len(done) + 1))  # neither gaps nor doubles
        began = time.monotonic()
        workers(agent)[1].send_signal(signal.SIGKILL)
        output = agent.communicate(timeout=60)[0]
        assert time.monotonic() - began < 60 and agent.returncode != 0
        assert "resuming after iteration" in output
        assert "error: process 0 of 2: another process died or does not answer" in output and "--max-restarts" in output
    finally:
        if agent.poll() is None:
            agent.kill()
    done = len(iterations(run))
    alone = shell(tmp_path, "train", f"resume={run}", f"trainer.max_iterations={done + 3}")
    assert alone.returncode == 0, alone.stderr
    assert iterations(run) == list(range(1, done + 4))
    # The kill may have come between the log's last line and its checkpoint.
    assert any(f"resuming after iteration {last}\n" in alone.stdout for last in (done - 1, done))


def test_several_processes_need_the_strategy(tmp_path: Path) -> None:
    from marl.core import distributed
    from marl.core.errors import UserError
    from marl.engine.trainer import Trainer
    from tests.marl.runs import make_task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world", lambda: 2)
        with pytest.raises(UserError, match="trainer.strategy='single'.*trainer=ddp"):
            Trainer(progress="off").fit(make_task(), tmp_path)
