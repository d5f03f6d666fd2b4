"""Records every scenario of VMAS and draws the recordings.

    python docs/scripts/contact_sheet.py docs/pictures/all_scenarios.png

Each tile is an episode of random actions that was recorded as states, written to disk, read back and drawn, headless.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from envs.rendering.recording import Recording, Restorer, record
from envs.rendering.scene import image
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import scenario_names
from marl.core.look.tokens import LIGHT

COLUMNS, SIZE, LABEL, STEPS, SEED = 7, 150, 14, 8, 3


def recorded(name: str, folder: Path) -> Recording:
    """An episode of random actions, as it comes back from its file."""
    settings = {"scenario": name, "max_steps": STEPS}
    env, generator = VmasEnv(**settings, num_envs=1, fast="off"), torch.Generator().manual_seed(SEED)
    file = folder / f"{name.replace('/', '_')}.safetensors"
    record(settings, lambda observation: (env.random_action(generator), {}), 1, SEED).save(file)
    return Recording.load(file)


def tile(name: str, folder: Path) -> Image.Image:
    """The end of a scenario's recording, with its name."""
    recording = recorded(name, folder)
    drawn = Restorer(recording).scene(recording.lengths[0], 0)
    picture = Image.fromarray(image(drawn, round(SIZE * min(1.0, drawn.width / drawn.height))))
    out = Image.new("RGB", (SIZE, SIZE + LABEL), LIGHT["stage"])
    out.paste(picture, ((SIZE - picture.width) // 2, LABEL + (SIZE - picture.height) // 2))
    pen = ImageDraw.Draw(out)
    pen.text((3, 1), name, fill=LIGHT["ink"])
    pen.rectangle((0, 0, SIZE - 1, SIZE + LABEL - 1), outline=LIGHT["line"])
    return out


def main(target: str) -> None:
    names = scenario_names()
    sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(names) // COLUMNS) * (SIZE + LABEL)), LIGHT["stage"])
    for i, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            picture = tile(name, Path(folder))
        assert np.asarray(picture)[LABEL + 2 : -2, 2:-2].std() > 0, f"nothing was drawn of {name}"
        sheet.paste(picture, (i % COLUMNS * SIZE, i // COLUMNS * (SIZE + LABEL)))
        print(name, flush=True)
    sheet.quantize(96, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
