"""What commands work on: a folder with small runs, a sweep, a study, data sets, policy files and a kernel cache."""

import csv
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.trials.fuzzing.outcome import Outcome

AGENTS = ["env.num_envs=4", "env.max_steps=15", "algo.rollout_steps=10", "algo.minibatch_size=20", "frames=80",
          "network.hidden=[8]", "task.eval_episodes=2", "trainer.evaluate_every=1",
          "trainer.checkpoint_every=1"]  # fmt: skip
EAGER = [*AGENTS, "env.fast=off"]
TABLE = ["data.target=y", "epochs=2", "network=mlp", "network.hidden=[4]", "trainer.evaluate_every=1"]
SMALL = ["epochs=1", "network.hidden=[8]"]

# (name, script, arguments): what makes each part, in this order; paths are those inside the world.
PARTS = [
    ("run", "train", ["env=vmas/navigation", *EAGER, "callbacks=replay", "hydra.run.dir=run"]),
    ("tag", "train", ["experiment=simple_tag", *EAGER, "trainer.keep_every=1", "hydra.run.dir=tag"]),
    ("digits", "train", ["experiment=digits", *SMALL, "hydra.run.dir=digits"]),
    ("episodes", "record", ["ckpt=run", "episodes=4", "shard=2", "out=episodes"]),
    ("policy", "export", ["ckpt=run", "format=safetensors", "out=policy"]),
    ("replay", "replay", ["ckpt=run", "episodes=1", "out=replay"]),
    ("sweep", "train", ["-m", "experiment=threshold", "epochs=1", "seed=0,1", "hydra.sweep.dir=sweep"]),
    ("kernel", "train", [*AGENTS, "env.fast=kernel", "hydra.run.dir=kernel"]),
    ("study", "tune", ["study=study.yaml", "out=study", "n_trials=2", "confirm=false", "seed=0"]),
]
STUDY = """base: [experiment=threshold, epochs=1]
n_trials: 2
direction: minimize
metric: loss
seeds: [0]
finalists: 1
final_seeds: [50]
fresh_seeds: [100]
sampler: random
startup_trials: 1
pruner: none
space:
  optimizer.lr: {low: 1.0e-3, high: 1.0e-2, log: true}
"""


def data(folder: Path) -> None:
    """Data sets of every kind that is read from files: table.csv, table.npz, pictures/, idx/."""
    dice = np.random.default_rng(0)
    x = dice.normal(size=(40, 3)).astype(np.float32)
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "y"])
        writer.writerows([*map(float, row), int(row.sum() > 0)] for row in x)
    np.savez(folder / "table.npz", x=x, y=(x.sum(1) > 0).astype(np.int64))
    for label in ("cat", "dog"):
        (folder / "pictures" / label).mkdir(parents=True)
        for i in range(8):
            picture = dice.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "pictures" / label / f"{i}.png")
    (folder / "idx").mkdir()
    for part, count in (("train", 30), ("t10k", 10)):
        pictures = dice.integers(0, 255, (count, 8, 8), dtype=np.uint8)
        labels = dice.integers(0, 3, count, dtype=np.uint8)
        head = struct.pack(">HBBIII", 0, 8, 3, count, 8, 8)
        (folder / "idx" / f"{part}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
        (folder / "idx" / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes()
        )


def build(folder: Path, run: Callable[[str, list[str], Path, Path], Outcome], only: tuple[str, ...] = ()) -> Path:
    """Make a world in `folder`/world (kept where it is there already) with the cache beside it; returns it.

    only: names of PARTS; () for all. Raises RuntimeError where a command fails that should not.
    """
    world, cache = folder / "world", folder / "cache"
    world.mkdir(parents=True, exist_ok=True)
    done = folder / "made.json"
    built = json.loads(done.read_text()) if done.exists() else []
    if "data" not in built:
        data(world)
        (world / "study.yaml").write_text(STUDY)
        built.append("data")
    for name, script, arguments in PARTS:
        if name in built or (only and name not in only):
            continue
        outcome = run(script, arguments, world, cache)
        if outcome.code != 0:
            how = f"exit code {outcome.code}: {outcome.err[-2000:]}"
            raise RuntimeError(f"cannot make {name}: {outcome.shown()}: {how}")
        built.append(name)
        temporary = done.with_suffix(".tmp")
        temporary.write_text(json.dumps(built))
        os.replace(temporary, done)
    return world
