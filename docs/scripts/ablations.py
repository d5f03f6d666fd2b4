"""Measures what each part of the toolkit changes, the table of docs/algorithms.md.

    python docs/scripts/ablations.py FOLDER [JOBS]

Every run is a command of scripts/train.py, seeds 0, 1, 2; those that FOLDER holds already are not run again.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from marl.report.statistics import interval, iqm

TRAIN = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
TASKS = {
    "balance": ["frames=150_000"],
    "navigation": ["experiment=navigation", "frames=90_000"],
}
BASE = ["trainer.evaluate_every=0", "trainer.checkpoint_every=0", "trainer.progress=off", "logger=csv"]
SEPARATE = ["algo.share_actor=separate", "algo.share_critic=separate"]
ITEMS = {
    "the preset": [],
    "value_norm=running": ["algo.value_norm=running"],
    "value_norm=popart": ["algo.value_norm=popart"],
    "normalize_observation": ["algo.normalize_observation=true"],
    "reward_norm=std": ["algo.reward_norm=std"],
    "normalize_advantage=none": ["algo.normalize_advantage=none"],
    "normalize_advantage=agent": ["algo.normalize_advantage=agent"],
    "agent_ids": ["algo.agent_ids=true"],
    "value_loss=huber": ["algo.value_loss=huber"],
    "value_clip=0.2": ["algo.value_clip=0.2"],
    "dual_clip=3": ["algo.dual_clip=3"],
    "clip_schedule=linear": ["algo.clip_schedule=linear"],
    "entropy_coef=0.01": ["algo.entropy_coef=0.01"],
    "entropy_coef=0.01, to 0": ["algo.entropy_coef=0.01", "algo.entropy_schedule=linear"],
    "target_kl=0.02": ["algo.target_kl=0.02"],
    "callbacks=kl_adaptive": ["callbacks=kl_adaptive", "scheduler=constant"],
    "critic's rate doubled": ["optimizer.lr_per_part={critic: 2e-3}"],
    "orthogonal, last gain 0.01": ["network.init=orthogonal", "network.last_gain=0.01"],
    "minibatch_size=null": ["algo.minibatch_size=null"],
    "separate networks": SEPARATE,
    "separate, update=sequential": [*SEPARATE, "algo.update=sequential"],
    "network=gru": ["network=gru", "network.hidden=64"],
    "critic=local (IPPO)": ["algo.critic=local"],
    "critic=state": ["algo.critic=state", "env.global_state=true"],
    "critic=agent_state": ["algo.critic=agent_state", "env.global_state=true"],
    "critic=agent_state, pruned": ["algo.critic=agent_state", "env.global_state=true", "algo.prune_state=true"],
    "critic_network=deep_sets": ["network@critic_network=deep_sets"],
}


def train(job: tuple[Path, list[str]]) -> float:
    """The mean return of a run's last evaluation; the run, where there is none yet. NaN where it failed."""
    folder, overrides = job
    if not (folder / "summary.json").is_file():
        command = [sys.executable, str(TRAIN), *overrides, *BASE, f"hydra.run.dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{' '.join(overrides)}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return float("nan")
    return json.loads((folder / "summary.json").read_text())["final"]["episode_return"]["mean"]


def main(folder: str, jobs: str = "2") -> None:
    """Run what is missing, `jobs` at a time, and print the table."""
    trainings = {}
    for number, more in enumerate(ITEMS.values()):
        for task, overrides in TASKS.items():
            for seed in range(3):
                trainings[number, task, seed] = (
                    Path(folder).resolve() / f"{number}_{task}_{seed}",
                    [*overrides, *more, f"seed={seed}"],
                )
    with ThreadPoolExecutor(int(jobs)) as pool:
        returns = dict(zip(trainings, pool.map(train, trainings.values()), strict=True))
    print("| " + " | ".join(["item", *(f"{task}, {overrides[-1]}" for task, overrides in TASKS.items())]) + " |")
    print("|---" * (1 + len(TASKS)) + "|")
    for number, name in enumerate(ITEMS):
        cells = []
        for task in TASKS:
            values = np.array([returns[number, task, seed] for seed in range(3)])
            low, high = interval(iqm, [values])
            each = ", ".join(f"{v:.3g}" for v in values)
            cells.append(f"{iqm([values]):.3g} [{low:.3g}, {high:.3g}] ({each})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
