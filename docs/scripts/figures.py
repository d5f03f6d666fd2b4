"""Draws the README's picture: learning curves, and what the agents do.

Usage:

    python docs/scripts/figures.py OUT.png RUN_DIR…
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from agents.evaluation.episode_replays import record_policy
from agents.policies.policy import Policy
from envs.rendering.recording import Restorer
from envs.rendering.scene import image
from marl.config import compose
from marl.core.look.figures import style

MOMENTS = (0, 15, 40, 70, 99)  # steps of the episode that are shown


def curve(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames and mean episode return of a run's evaluations."""
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval/episode_return")]
    frames, returns = (np.array([float(row[key]) for row in rows]) for key in ("frames", "eval/episode_return"))
    return frames, returns


def film(run: Path, strips: list) -> None:
    """Draw one episode of a run's policy, a picture for each of MOMENTS."""
    recording = record_policy(Policy.load(run), seed=3)
    restorer = Restorer(recording)
    pictures = {t: image(restorer.scene(t, 0)) for t in MOMENTS if t <= recording.lengths[0]}
    rows, columns = near(list(pictures.values()))
    for axes, (t, picture) in zip(strips, pictures.items(), strict=False):
        axes.imshow(picture[rows, columns], interpolation="antialiased")
        axes.set_title(f"step {t}", fontsize=8)
    for axes in strips:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(axes.images != [])


def near(pictures: list[np.ndarray]) -> tuple[slice, slice]:
    """Rows and columns around all that is drawn in any of them, but for what fills whole rows, such as the ground."""
    drawn = np.any([(picture != picture[:, :1]).any(-1) for picture in pictures], axis=0)
    margin = max(drawn.shape) // 20

    def bounds(used: np.ndarray) -> slice:
        where = np.flatnonzero(used)
        return slice(max(0, where[0] - margin), where[-1] + margin)

    return bounds(drawn.any(1)), bounds(drawn.any(0))


def main(out: str, *runs: str) -> None:
    """Curves of all runs above, a film strip of the first below."""
    figure = plt.figure(figsize=(8, 4.6), dpi=160)
    grid = figure.add_gridspec(2, len(MOMENTS), height_ratios=(1.6, 1))
    axes = figure.add_subplot(grid[0, :])
    for name in dict.fromkeys(run_label(Path(run)) for run in runs):
        curves = [curve(Path(run)) for run in runs if run_label(Path(run)) == name]
        frames, returns = curves[0][0], np.stack([values for _, values in curves])
        line = axes.plot(frames, returns.mean(0), label=f"{name} ({len(curves)} seeds)")[0]
        axes.fill_between(frames, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="environment frames", ylabel="episode return\n(200 deterministic episodes)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend()
    film(Path(runs[0]), [figure.add_subplot(grid[1, i]) for i in range(len(MOMENTS))])
    figure.tight_layout()
    figure.savefig(out)


def run_label(run: Path) -> str:
    """ "mappo, balance" from a run's configuration."""
    cfg = compose.saved(run)
    algorithm = {"local": "IPPO", "concat": "MAPPO"}.get(cfg.algo.critic, cfg.algo.critic)
    return f"{algorithm} on {cfg.env.scenario}"


if __name__ == "__main__":
    with matplotlib.rc_context(style()):
        main(*sys.argv[1:])
