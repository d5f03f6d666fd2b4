"""What a checkout computes: hashes of weights, optimiser state and figures of short runs, to compare two commits.

    python tests/trials/fingerprints.py --repo CHECKOUT --folder F [--only NAME ...] [--against FOLDER]

It knows nothing of the checkout but its command line and the files of a run, so it serves any commit. One line per
run; `--against` takes the folder of an earlier commit's runs and names what differs (exit code 1). Figures are compared
in the columns that both have; columns that only one has are named.
"""

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

SMALL = ["env.num_envs=24", "algo.rollout_steps=20", "algo.minibatch_size=120", "frames=1440", "task.eval_episodes=8"]
SUPERVISED = ["trainer.max_iterations=4"]
RUNS = {
    **{
        f"{algo} {env}": ["train.py", f"algo={algo}", f"env=vmas/{env}", *SMALL]
        for algo in ("mappo", "ippo")
        for env in ("balance", "navigation", "wheel", "dispersion")
    },
    "gru": ["train.py", "experiment=memory", "frames=4000"],
    "popart": ["train.py", "algo.value_norm=popart", "algo.normalize_observation=true", *SMALL],
    "sequential": ["train.py", "algo.update=sequential", "algo.share_actor=separate", *SMALL],
    "deep sets": ["train.py", "network=deep_sets", *SMALL],
    "self-play": ["train.py", "experiment=simple_tag", *SMALL, "algo.minibatch_size=120"],
    "gymnasium": ["train.py", "experiment=cartpole", "trainer.max_iterations=3"],
    "digits": ["train.py", "experiment=digits", *SUPERVISED],
    "vae": ["train.py", "experiment=vae", *SUPERVISED],
    "teacher": ["train.py", "hydra.run.dir=teacher", *SMALL],
    "recording": ["record.py", "ckpt=teacher"],
    "cloning": ["train.py", "experiment=clone", "data.folder=teacher/episodes", "epochs=3"],
    "fine-tuned clone": ["train.py", "init_from=cloning", "strict=false", *SMALL],
    "two processes": ["train.py", "trainer=ddp", *SMALL],
    "bf16": ["train.py", "trainer.precision=bf16", *SMALL],
    "eager": ["train.py", "env.fast=off", *SMALL],
    "discrete": ["train.py", "env.continuous_actions=false", "algo.entropy_coef=0.01", *SMALL],
    "accumulated and averaged": ["train.py", "trainer.accumulate=2", "trainer.average=ema", *SMALL],
    "resumed": ["train.py", "resume=teacher_half"],
}
CLOCKS = ("seconds", "per_second", "memory", "_s", "kernel_checks")  # columns that time, or the checks, decide


def environment(folder: Path, repo: Path) -> dict[str, str]:
    """The checkout's packages first, one thread, and a kernel cache of the folder's own."""
    variables = {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **variables, "MARL_KERNEL_CACHE": str(folder / "kernels")}


def place(name: str, folder: Path) -> Path:
    """Where a run of the table writes."""
    others = {"resumed": "teacher_half", "recording": "teacher/episodes"}
    return folder / others.get(name, name.replace(" ", "_"))


def run(name: str, command: list[str], repo: Path, folder: Path) -> None:
    """Run one command of the table in `folder`."""
    run_dir = place(name, folder)
    shutil.rmtree(run_dir, ignore_errors=True)
    script, *overrides = command
    start = [sys.executable]
    if name == "two processes":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    if name == "resumed":
        interrupted(repo, folder)
    elif name not in ("teacher", "recording"):
        overrides = [*overrides, f"hydra.run.dir={run_dir.name}"]
    if script == "train.py" and name != "resumed":
        overrides.append("trainer.progress=off")
    call([*start, str(repo / "scripts" / script), *overrides], repo, folder)


def fingerprint(run_dir: Path, keys: list[str]) -> str:
    """The hashes of what a run wrote; of its figures those of the columns `keys`."""
    if not (run_dir / "metrics.csv").exists():  # a recording
        return " ".join(tensors(path) for path in sorted(run_dir.rglob("*.safetensors")))
    content = torch.load(run_dir / "checkpoints" / "last.pt", map_location="cpu", weights_only=True)
    values = digest(repr([[row[key] for key in keys] for row in figures(run_dir)]).encode())
    return f"weights {state(content['loss'])} optimiser {state(content['optimizer'])} figures {values}"


def compare(now: Path, earlier: Path) -> list[str]:
    """What two runs differ in, a line each, and the columns that only one of them has."""
    ours, theirs = columns(now), columns(earlier)
    both = [key for key in ours if key in theirs]
    alone = {"this": set(ours) - set(theirs), "the earlier": set(theirs) - set(ours)}
    lines = [f"  columns of {who} only: {', '.join(sorted(keys))}" for who, keys in alone.items() if keys]
    mine, other = fingerprint(now, both), fingerprint(earlier, both)
    return [*lines, *([f"  differs in the {len(both)} columns of both: {mine}, {other}"] if mine != other else [])]


def interrupted(repo: Path, folder: Path) -> None:
    """A run that was broken off after its first iteration."""
    shutil.rmtree(folder / "teacher_half", ignore_errors=True)
    overrides = [*SMALL, "hydra.run.dir=teacher_half", "trainer.progress=off", "trainer.max_iterations=1"]
    call([sys.executable, str(repo / "scripts" / "train.py"), *overrides], repo, folder)
    config = folder / "teacher_half" / "config.yaml"
    config.write_text(config.read_text().replace("max_iterations: 1\n", "max_iterations: null\n"))


def call(command: list[str], repo: Path, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=environment(folder, repo), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def tensors(path: Path) -> str:
    """The hash of a safetensors file without its header, whose order of entries changes from process to process."""
    content = path.read_bytes()
    return digest(content[8 + int.from_bytes(content[:8], "little") :])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def state(tree: object) -> str:
    """The hash of all numbers and tensors of nested dicts and lists, whatever their order of insertion."""
    sha = hashlib.sha256()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                sha.update(str(key).encode())
                walk(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                walk(each)
        elif isinstance(value, torch.Tensor):
            sha.update(
                str(value.dtype).encode() + value.contiguous().view(torch.uint8).numpy().tobytes()
                if value.dim()
                else repr(value.item()).encode()
            )
        else:
            sha.update(repr(value).encode())

    walk(tree)
    return sha.hexdigest()[:12]


def figures(run_dir: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, columns in the order of their names, without those that clocks decide."""
    if not (run_dir / "metrics.csv").exists():
        return []
    with (run_dir / "metrics.csv").open() as file:
        rows = csv.DictReader(file)
        return [{key: row[key] for key in sorted(row) if not any(word in key for word in CLOCKS)} for row in rows]


def columns(run_dir: Path) -> list[str]:
    """Names of the columns of a run's figures."""
    return [key for row in figures(run_dir)[:1] for key in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    differing = 0
    for name in options.only:
        run(name, RUNS[name], options.repo.resolve(), folder)
        run_dir = place(name, folder)
        print(f"{name}: {fingerprint(run_dir, columns(run_dir))}", flush=True)
        if options.against:
            lines = compare(run_dir, place(name, options.against))
            differing += any("differs" in line for line in lines)
            print("".join(f"{line}\n" for line in lines), end="", flush=True)
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
