"""Kills of whole commands, for tests/trials/kills.py: sweeps, tuning with workers, recording, two processes.

A command is started, and after a random time SIGKILL goes to its first process, to one of those it began, or to all.
Then it is started again. What had been finished must still be there, and the end must be that of an uninterrupted one.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from marl.checkpoints import checkpoint_file
from marl.core import run_directory
from marl.data.episodes import manifest, mapped

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PATIENCE = 600.0  # seconds that a command may take at all
ORPHANS = 90.0  # seconds within which the workers of a killed process must be gone
LITTLE = ["trainer.checkpoint_every=1", "trainer.progress=off", "trainer.evaluate_every=2"]
AGENTS = ["env.num_envs=4", "env.max_steps=15", "env.fast=off", "algo.rollout_steps=10", "algo.minibatch_size=20"]
AGENTS += ["network.hidden=[16]", "task.eval_episodes=2"]


@dataclass
class Command:
    """A command that is killed, in a folder of its own.

    Args:
        first: started where there is nothing yet. again: started after a kill, given the folder.
        finished: what is finished in a folder, in a form in which a later answer must hold it: {name: value}.
        compare: what differs between an uninterrupted folder and a killed one.
        prepare: makes what all folders share, in the one above them. inputs: makes what each needs.
    """

    first: Callable[[Path], list[str]]
    finished: Callable[[Path], dict[str, Any]]
    compare: Callable[[Path, Path], list[str]]
    again: Callable[[Path], list[str]] | None = None
    prepare: Callable[[Path], None] | None = None
    inputs: Callable[[Path], None] | None = None


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen:
    """The command in `folder`, in a session of its own, with its output in a file."""
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen(
            arguments, cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )


def through(arguments: Sequence[str], folder: Path) -> float:
    """Run the command to its end; the seconds that it took."""
    began = time.monotonic()
    code = start(arguments, folder).wait(PATIENCE)
    if code != 0:
        raise SystemExit(f"{' '.join(arguments)}: exit code {code}\n{(folder / 'output.txt').read_text()[-3000:]}")
    return time.monotonic() - began


def kill(process: subprocess.Popen, whom: str, dice: random.Random) -> bool:
    """Send SIGKILL to the first process, to a descendant ("one") or to "all"; whether there was one to kill.

    Raises SystemExit where processes of a killed parent stay behind.
    """
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    if process.poll() is not None:
        return False
    if whom == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif whom == "one" and below:
        dice.choice(below).kill()
    else:
        process.kill()
    if whom == "one":
        process.wait(PATIENCE)  # it goes on without, or ends with an error
    process.wait(PATIENCE)
    left = psutil.wait_procs(below, ORPHANS)[1]
    if left:
        os.killpg(process.pid, signal.SIGKILL)
        raise SystemExit(f"left behind: {[' '.join(other.cmdline()) for other in left]}")
    return True


def survive(command: Command, folder: Path, kills: int, seed: int) -> dict:
    """As `tests.trials.kills.survive`: figures, "differences" among them, which must be empty.

    A command that came to its end is compared, and a new one begun in another folder, until there were `kills`.
    """
    whole, dice = folder / "whole", random.Random(seed)
    if command.prepare:
        command.prepare(folder)
    whole.mkdir(exist_ok=True)
    if command.inputs:
        command.inputs(whole)
    length, killed, rounds, differences = through(command.first(whole), whole), 0, 0, []
    while killed < kills:
        rounds += 1
        cut, known, ended = folder / f"cut_{rounds}", {}, False
        cut.mkdir()
        if command.inputs:
            command.inputs(cut)
        arguments = command.first(cut)
        while not ended:
            if killed < kills:
                process = start(arguments, cut)
                time.sleep(dice.uniform(0.3, 1.0) * length)
                ended = not kill(process, ("first", "one", "all")[killed % 3], dice)
                killed += not ended
                if ended and process.returncode:
                    raise SystemExit((cut / "output.txt").read_text()[-3000:])
            else:
                through(arguments, cut)
                ended = True
            now = command.finished(cut)
            differences += [f"lost: {name}" for name, value in known.items() if now.get(name) != value]
            known |= now
            arguments = command.again(cut) if command.again else arguments
        differences += command.compare(whole, cut)
    return {"kills": killed, "rounds": rounds, "differences": differences}


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]


# ---- a sweep in two workers ------------------------------------------------------------------------------------

JOBS = 4


def sweep(_: Path) -> list[str]:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]
    seeds = f"seed={','.join(map(str, range(JOBS)))}"
    return script("train", "-m", "experiment=threshold", "epochs=120", *LITTLE, "logger=csv", seeds, *launcher)


def jobs_done(folder: Path) -> dict[str, Any]:
    """Finished jobs, with their last checkpoints as they lie on the disk."""
    times = {}
    for i in range(JOBS):
        place = folder / "s" / str(i)
        if (place / "summary.json").is_file() and json.loads((place / "job.json").read_text())["status"] == "done":
            times[f"job {i}"] = (place / "checkpoints" / "last.pt").stat().st_mtime_ns
    return times


def compare_jobs(whole: Path, cut: Path) -> list[str]:
    from tests.trials.kills import compare

    diffs = [f"job {i}: {what}" for i in range(JOBS) for what in compare(whole / "s" / str(i), cut / "s" / str(i))]
    with open(cut / "s" / "jobs.csv", newline="") as file:
        return diffs + [f"job {row['job']}: {row['status']}" for row in csv.DictReader(file) if row["status"] != "done"]


# ---- tuning with two workers -----------------------------------------------------------------------------------

TRIALS = 6


def tune(_: Path) -> list[str]:
    return script("tune", "study=little.yaml", f"n_trials={TRIALS}", "workers=2", "out=t", "confirm=false")


def write_study(folder: Path) -> None:
    text = f"base: [experiment=threshold, epochs=40, logger=csv, {', '.join(LITTLE)}]\n"
    text += "space: {optimizer.lr: {low: 0.001, high: 1.0, log: true}}\nmetric: accuracy\npruner: none\n"
    (folder / "little.yaml").write_text(text)


def trials_done(folder: Path) -> dict[str, Any]:
    """Complete trials with their values; {} where the study has not begun."""
    import optuna

    if not (folder / "t" / "study.json").exists():
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="little", storage=f"sqlite:///{folder / 't' / 'study.db'}")
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return {f"trial {trial.number}": (trial.value, repr(trial.params)) for trial in complete}


def compare_trials(_: Path, cut: Path) -> list[str]:
    done = len(trials_done(cut))
    return [] if done >= TRIALS else [f"{done} complete trials of {TRIALS}"]


# ---- recording -------------------------------------------------------------------------------------------------


def teach(folder: Path) -> None:
    through(
        script("train", *AGENTS, "frames=80", "trainer.progress=off", f"hydra.run.dir={folder / 'teacher'}"), folder
    )


def record(folder: Path) -> list[str]:
    return script("record", f"ckpt={folder.parent / 'teacher'}", "episodes=600", "shard=20", "out=e")


def episodes(folder: Path) -> dict[str, Any]:
    """The shards that the manifest names, each read and its digest checked."""
    if not (folder / "e" / "manifest.json").exists():
        return {}
    content = manifest(folder / "e")
    names = sorted(path.name for path in (folder / "e").glob("*.safetensors"))
    named = [shard["file"] for shard in content["shards"]]
    missing = [name for name in named if name not in names]
    if missing:
        raise SystemExit(f"the manifest names {missing}, which are not there")
    return {name: len(checkpoint_file.load_weights(folder / "e" / name)) for name in named}


def compare_episodes(whole: Path, cut: Path) -> list[str]:
    """All that the manifest counts can be read, and it is at least what one whole recording has."""
    totals = [manifest(folder / "e")["metadata"]["total_episodes"] for folder in (whole, cut)]
    mapped(cut / "e", cut / "mapped")
    return [] if totals[0] == 600 <= totals[1] else [f"{totals[1]} episodes"]


# ---- two processes ---------------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*command, str(ROOT / "scripts" / "train.py"), *arguments]


def team(_: Path) -> list[str]:
    return torchrun("trainer=ddp", *AGENTS, *LITTLE, "frames=2400", "hydra.run.dir=r")


def team_again(folder: Path) -> list[str]:
    return torchrun("resume=r") if (folder / "r" / "config.yaml").exists() else team(folder)


def iterations_done(folder: Path) -> dict[str, Any]:
    """That the run's checkpoints can be read, and go up."""
    newest = checkpoint_file.newest(folder / "r") if run_directory.candidates(folder / "r") else None
    best = folder / "best_known"
    before = int(best.read_text()) if best.exists() else 0
    now = newest[1]["iteration"] if newest else 0
    best.write_text(str(max(now, before)))
    return {"the newest checkpoint": "went back" if now < before else "went on"}


def compare_team(whole: Path, cut: Path) -> list[str]:
    from tests.trials.kills import compare

    return compare(whole / "r", cut / "r")


COMMANDS = {
    "sweep, two workers": Command(sweep, jobs_done, compare_jobs),
    "tuning, two workers": Command(tune, trials_done, compare_trials, inputs=write_study),
    "recording": Command(record, episodes, compare_episodes, prepare=teach),
    "two processes": Command(team, iterations_done, compare_team, again=team_again),
}
