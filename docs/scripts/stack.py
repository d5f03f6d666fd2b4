"""Draws the packages and their rooms, as they are, one layer above what it imports.

Usage:

    python docs/scripts/stack.py OUT.png
"""

import ast
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from marl.core.look.tokens import LIGHT, SERIES

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {"scripts": SERIES[6], "agents": SERIES[0], "envs": SERIES[2], "marl": SERIES[3]}  # from top to bottom
TINT = 0.16  # how much of its colour a layer shows
COLUMNS, WIDTH, HEIGHT, GAP = 6, 1.62, 0.44, 0.08


def rooms(package: str) -> list[str]:
    """The sub-packages of a package; of `scripts`, its commands."""
    folder = ROOT / package
    if package == "scripts":
        return sorted(path.stem for path in folder.glob("*.py"))
    return sorted(path.parent.name for path in folder.glob("*/__init__.py"))


def purpose(package: str) -> str:
    """The first line of a package's docstring."""
    init = ROOT / package / "__init__.py"
    return (ast.get_docstring(ast.parse(init.read_text())) or "").split("\n")[0] if init.exists() else "The commands."


def box(ax, x: float, y: float, width: float, height: float, color: str | tuple[str, float]) -> None:
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02", facecolor=color, edgecolor=LIGHT["edge"])
    )


def main(path: str) -> None:
    rows = {name: -(-len(rooms(name)) // COLUMNS) for name in LAYERS}
    heights = {name: 0.62 + count * (HEIGHT + GAP) for name, count in rows.items()}
    total, width = sum(heights.values()) + 0.42 * len(LAYERS), COLUMNS * (WIDTH + GAP) + 0.3
    _, ax = plt.subplots(figsize=(width, total))
    top = total
    for number, (name, color) in enumerate(LAYERS.items()):
        bottom = top - heights[name]
        box(ax, 0, bottom, width - 0.1, heights[name], (color, TINT))
        ax.text(0.12, top - 0.28, f"{name}/", fontsize=13, weight="bold", va="center")
        ax.text(1.25, top - 0.28, purpose(name), fontsize=8.5, va="center", color=LIGHT["soft"])
        for place, room in enumerate(rooms(name)):
            x = 0.12 + place % COLUMNS * (WIDTH + GAP)
            y = top - 0.56 - (place // COLUMNS) * (HEIGHT + GAP) - HEIGHT
            box(ax, x, y, WIDTH - 0.06, HEIGHT - 0.06, LIGHT["card"])
            ax.text(x + WIDTH / 2 - 0.03, y + HEIGHT / 2 - 0.03, room, fontsize=10, ha="center", va="center")
        if number < len(LAYERS) - 1:
            ax.annotate("imports", (width / 2, bottom - 0.4), (width / 2, bottom - 0.06), fontsize=8, ha="center",
                        arrowprops={"arrowstyle": "->"}, va="top", color=LIGHT["soft"])  # fmt: skip
        top = bottom - 0.42
    ax.set_xlim(-0.1, width)
    ax.set_ylim(0.3, total + 0.1)
    ax.axis("off")
    plt.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1])
