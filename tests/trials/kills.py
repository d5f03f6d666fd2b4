"""Kills training with SIGKILL at random moments and resumes it; the end must be that of a run never interrupted.

    python tests/trials/kills.py --kills 20 --json kills.json

Runs are processes forked from this one, which has imported everything before, so that a kill costs no start of
Python. Every third kill is aimed at the writing of a checkpoint, or of a replay buffer's file beside it: with half of
the file written, before it is on the disk, before and after it gets its name. What is compared, bitwise: weights,
optimiser, schedule, the state of the task and every random stream, the best model, each logged metric but times (CSV
and TensorBoard), and the summary.
Then whole commands of several processes (tests/trials/kills_of_commands.py): sweeps, tuning, recording, torchrun.
"""

import argparse
import csv
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import agents.tasks.short_horizon  # noqa: E402, F401 - imported here, so that no fork has to
from marl.checkpoints import checkpoint_file  # noqa: E402
from marl.config import compose  # noqa: E402
from marl.core import files  # noqa: E402
from tests.fixtures import warm_shell  # noqa: E402
from tests.trials import kills_of_commands  # noqa: E402

COMMON = [
    "trainer.checkpoint_every=1",
    "trainer.keep_every=7",
    "trainer.evaluate_every=3",
    "trainer.accumulate=2",
    "trainer.progress=off",
    "callbacks=early_stopping",
    "callbacks.early_stopping.patience=1000",
]
AGENTS = [
    "env.num_envs=8",
    "env.max_steps=30",
    "algo.rollout_steps=20",
    "algo.minibatch_size=40",
    "algo.epochs=2",
    "algo.entropy_coef=0.01",
    "network.hidden=[16]",
    "task.eval_episodes=4",
    "scheduler=linear",
]
REPLAYED = [
    *(setting for setting in AGENTS if not setting.startswith(("algo.epochs", "algo.entropy_coef"))),
    "env.fast=off",
    "algo.updates=5",
    "algo.prefill=300",
    "algo.buffer_frames=1280",
    "algo.n_step=2",
    "trainer.accumulate=1",  # targets follow step by step
]
CASES = {
    "balance, kernel": [*AGENTS, "env=vmas/balance", "env.fast=kernel"],
    "balance, eager": [*AGENTS, "env=vmas/balance", "env.fast=off"],
    "navigation, lidar": [*AGENTS, "env=vmas/navigation", "env.scenario_kwargs.n_agents=2"],
    "balance, curriculum": [
        *AGENTS,
        "env=vmas/balance",
        "algo=ippo",
        "curriculum.env.scenario_kwargs.package_mass={0: 1, 0.3: 3, 0.6: 5}",
        "curriculum.env.scenario_kwargs.n_agents={draw: [2, 3]}",
    ],
    "navigation, QMIX": [
        *(*REPLAYED, "algo=qmix", "env=vmas/navigation", "env.continuous_actions=false"),
        *("algo.target_every=7", "algo.tau=1"),
    ],
    "navigation, MASAC": [*REPLAYED, "algo=masac", "env=vmas/navigation"],
    "navigation, MASAC with a memory": [
        *(*REPLAYED, "algo=masac", "env=vmas/navigation", "network=gru", "network.hidden=8"),
        *("algo.chunk_length=5", "algo.burn_in=3"),
    ],
    "balance, SHAC": [*AGENTS, "algo=shac", "env=vmas/balance", "trainer.accumulate=1"],
    "simple_spread, SHAC": [
        *AGENTS,
        "algo=shac",
        "env=vmas/mpe/simple_spread",
        "algo.value_norm=running",
        "trainer.accumulate=1",  # the actors' step is of one minibatch
    ],
    "navigation, MASAC by priority": [
        *(*REPLAYED, "algo=masac", "env=vmas/navigation", "algo.priority=0.6", "algo.buffer_on=disk"),
    ],
    "digits": ["experiment=digits", "network.hidden=[16]", "network.dropout=0.1", "scheduler=cosine"],
    "cloning": ["experiment=clone", "network.hidden=[16]", "task.eval_episodes=4", "env.fast=off"],
}
BY_EPOCHS = ("digits", "cloning")
COMPILES = ("balance, kernel", "navigation, lidar", "balance, curriculum", "balance, SHAC", "simple_spread, SHAC")
TIMES = ("seconds", "per_second", "kernel_checks")  # endings of metrics that no two processes share
STAGES = ("half", "written", "before rename", "after rename")
SAME = ("loss", "optimizer", "schedule", "scaler", "processes", "callbacks", "iteration", "iterations", "best",
        "evaluation", "restores", "stop_reason")  # fmt: skip


def train(overrides: list[str], run_dir: Path) -> None:
    """What scripts/train.py does with these overrides."""
    spec = importlib.util.spec_from_file_location("scripts_train", ROOT / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run_dir.mkdir(parents=True, exist_ok=True)
    module.train(compose.compose(overrides), run_dir)


def aim(stage: str, nth: int) -> None:
    """Let this process kill itself in the `nth` write of a file from here on, at `stage`."""
    left = nth

    def now(path: object) -> bool:
        nonlocal left
        left -= ".pt." in str(path) or "/replay/" in str(path)
        return left < 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Half:
        """A file whose first large write ends in the middle."""

        def __init__(self, path, mode):
            self.file, self.now = open(path, mode), now(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            if self.now:
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                die()
            self.file.write(content)

    replace, fsync, opened = os.replace, os.fsync, []
    if stage == "half":
        files.open = Half
    elif stage == "written":
        files.open = lambda path, mode: opened.append(now(path)) or open(path, mode)
        os.fsync = lambda number: die() if opened and opened[-1] else fsync(number)
    elif stage == "before rename":
        os.replace = lambda a, b: die() if now(a) else replace(a, b)
    else:
        os.replace = lambda a, b: (replace(a, b), now(a) and die())


def fork(overrides: list[str], run_dir: Path, stage: str | None = None, nth: int = 1) -> int:
    """Train in a new process; returns its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with open(run_dir / "output.txt", "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if stage is not None:
            aim(stage, nth)
        train(overrides, run_dir)
        code = 0
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """Exit status of `pid`; None where it still runs after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def survive(overrides: list[str], folder: Path, kills: int, seed: int, compiles: bool) -> dict:
    """Run through once; run again with `kills` kills; compare. Returns figures; "differences" must be empty."""
    compose.check(compose.compose(overrides))  # here, so that no fork has to parse its files and describe signatures
    whole, cut, dice = folder / "whole", folder / "cut", random.Random(seed)
    for attempt in range(1 + compiles):  # the first compiles the kernel, unless it is kept from before
        began = time.monotonic()
        pid = fork(overrides, whole)
        while not (whole / "metrics.csv").exists() and wait(pid, 0) is None:
            time.sleep(0.002)
        start = time.monotonic() - began
        if os.waitstatus_to_exitcode(wait(pid)) != 0:
            raise SystemExit((whole / "output.txt").read_text()[-3000:])
        length = time.monotonic() - began - start
        if attempt < compiles:
            for path in sorted(whole.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    killed = aimed = resumed = 0
    while killed < kills:
        again = [f"resume={cut}"] if (cut / "config.yaml").exists() else overrides
        resumed += again is not overrides
        if killed % 3 == 0:
            stage = STAGES[aimed % len(STAGES)]
            aimed += 1
            status = wait(fork(again, cut, stage, dice.randrange(1, 4)))
        else:
            pid = fork(again, cut)
            status = wait(pid, dice.uniform(0, 1) * (start + length / kills))
            if status is None:
                os.kill(pid, signal.SIGKILL)
                status = wait(pid)
        if not os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status) != 0:
                raise SystemExit((cut / "output.txt").read_text()[-3000:])
            break  # it came to its end before it could be killed
        killed += 1
    again = [f"resume={cut}"] if (cut / "config.yaml").exists() else overrides
    resumed += again is not overrides
    if os.waitstatus_to_exitcode(wait(fork(again, cut))) != 0:
        raise SystemExit((cut / "output.txt").read_text()[-3000:])
    return {"kills": killed, "in_a_write": aimed, "resumed": resumed, "differences": compare(whole, cut)}


def compare(whole: Path, cut: Path) -> list[str]:
    """Names of all that differs between two finished runs."""
    diffs = []
    for name in ("last.pt", "best.pt"):
        a, b = (checkpoint_file.load(run / "checkpoints" / name) for run in (whole, cut))
        diffs += [f"{name}: {key}" for key in SAME if not same(a[key], b[key])]
    diffs += [f"metrics.csv: row {i}" for i, (a, b) in enumerate(zip(*map(rows, (whole, cut)), strict=False)) if a != b]
    if len(rows(whole)) != len(rows(cut)):
        diffs.append(f"metrics.csv: {len(rows(whole))} rows and {len(rows(cut))}")
    a, b = scalars(whole), scalars(cut)
    diffs += [f"TensorBoard: {tag}" for tag in sorted(set(a) | set(b)) if a.get(tag) != b.get(tag)]
    a, b = (json.loads((run / "summary.json").read_text()) for run in (whole, cut))
    return diffs + [f"summary.json: {key}" for key in ("final", "best", "stopped") if a[key] != b[key]]


def same(a: object, b: object) -> bool:
    """Bitwise equality, NaN included, through dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        bits = [x.detach().contiguous().numpy().tobytes() for x in (a, b)]
        return a.shape == b.shape and a.dtype == b.dtype and bits[0] == bits[1]
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without times."""
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in csv.DictReader(file)]


def scalars(run: Path) -> dict[str, list[tuple[int, str]]]:
    """Every point of the event files, without times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(TIMES)]
    return {tag: [(point.step, repr(point.value)) for point in events.Scalars(tag)] for tag in tags}


def one(name: str, kills: int, iterations: int, seed: int, folder: Path) -> dict:
    """The figures of one case."""
    if name in kills_of_commands.COMMANDS:
        return kills_of_commands.survive(kills_of_commands.COMMANDS[name], folder, kills, seed)
    overrides = [*COMMON, *CASES[name], f"trainer.max_iterations={iterations}"]
    overrides += [f"epochs={iterations}"] if name in BY_EPOCHS else [f"frames={160 * iterations}"]
    if name == "cloning":
        kills_of_commands.teach(folder)
        data = folder / "episodes"
        record = ["record", f"ckpt={folder / 'teacher'}", "episodes=20", f"out={data}"]
        kills_of_commands.through(kills_of_commands.script(*record), folder)
        overrides.append(f"data.folder={data}")
    return survive(overrides, folder, kills, seed, name in COMPILES)


def main() -> int:
    """All cases; prints a line for each, returns 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each case (default 20)")
    parser.add_argument("--iterations", type=int, default=40, help="length of the runs (default 40)")
    parser.add_argument("--case", nargs=2, action="append", metavar=("NAME", "KILLS"), help="only these, so often")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    warm_shell.prepare()
    figures = {}
    for name, count in options.case or [(name, options.kills) for name in (*CASES, *kills_of_commands.COMMANDS)]:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = one(name, int(count), options.iterations, options.seed, Path(folder))
        print(f"{name}: {figures[name]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(case["differences"] for case in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
