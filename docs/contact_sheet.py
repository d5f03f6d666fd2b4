"""Draws every scenario of VMAS, headless: `python docs/contact_sheet.py docs/all_scenarios.png`."""

import sys

import numpy as np
import torch
from PIL import Image, ImageDraw

from envs.drawing import image, scene
from envs.random import Stream
from envs.simulator import build_simulator, scenario_names

COLUMNS, SIZE, LABEL, STEPS = 7, 150, 14, 8


def tile(name: str) -> Image.Image:
    """A scenario after some random steps, with its name."""
    stream = Stream(3, torch.device("cpu"), True)
    simulator = build_simulator(
        name, 1, stream, continuous_actions=True, multi_discrete=False, max_steps=None, scenario_kwargs={}
    )
    with stream:
        for _ in range(STEPS):
            simulator.step(simulator.get_random_actions())
    drawn = scene(simulator)
    picture = Image.fromarray(image(drawn, round(SIZE * min(1.0, drawn.width / drawn.height))))
    out = Image.new("RGB", (SIZE, SIZE + LABEL), "white")
    out.paste(picture, ((SIZE - picture.width) // 2, LABEL + (SIZE - picture.height) // 2))
    pen = ImageDraw.Draw(out)
    pen.text((3, 1), name, fill="black")
    pen.rectangle((0, 0, SIZE - 1, SIZE + LABEL - 1), outline="#cccccc")
    return out


def main(target: str) -> None:
    names = scenario_names()
    sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(names) // COLUMNS) * (SIZE + LABEL)), "white")
    for i, name in enumerate(names):
        made = tile(name)
        assert np.asarray(made)[LABEL + 2 : -2, 2:-2].std() > 0, f"nothing was drawn of {name}"
        sheet.paste(made, (i % COLUMNS * SIZE, i // COLUMNS * (SIZE + LABEL)))
        print(name, flush=True)
    sheet.quantize(96, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
