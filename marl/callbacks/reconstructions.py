"""What an auto-encoder makes of pictures it has not seen, as a picture of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from marl.callbacks.base import Callback
from marl.core.errors import UserError
from marl.core.seeding import generator
from marl.engine.run_view import RunView
from marl.networks import AutoEncoder


@dataclass
class Reconstructions(Callback):
    """Writes `reconstructions.png` into the run directory at the end of a run.

    Columns are `columns` pictures of the test split; above as they are, below as the model gives them back. A VAE has a
    third row: decoded draws from its prior N(0, 1). Raises UserError where the inputs are no pictures.
    """

    columns: Annotated[int, Field(ge=1)] = 12
    scale: Annotated[int, Field(ge=1)] = 8

    def on_start(self, trainer: RunView) -> None:
        in_shape = getattr(trainer.task, "in_shape", ())
        if len(in_shape) != 3:
            raise UserError(f"callbacks.reconstructions: draws pictures, not inputs {list(in_shape)}")
        if not isinstance(trainer.task.loss.model, AutoEncoder):
            raise UserError("callbacks.reconstructions: needs network=autoencoder or network=vae")

    def on_end(self, trainer: RunView) -> None:
        from PIL import Image

        with trainer.averaged():
            rows = pictures(trainer.task, self.columns)
        shown = np.kron(mosaic(rows).mul(255).byte().numpy(), np.ones((self.scale, self.scale), np.uint8))
        path = Path(trainer.run_dir) / "reconstructions.png"
        Image.fromarray(shown).save(path)
        print(f"reconstructions: {path}", flush=True)


@torch.no_grad()
def pictures(task, columns: int) -> Tensor:
    """Rows of pictures in [0, 1]: inputs of the test split, their reconstructions, and a VAE's draws [2 or 3, n, H, W].

    Colours are averaged.
    """
    model, objective = task.loss.model, task.loss.objective
    rows = task.held_out.get("test_", task.held_out[""])
    x = rows["x"][:: max(1, len(rows) // columns)][:columns]
    training = model.training
    model.eval()
    try:
        shown = [x.flatten(1), task.loss.outputs(x)[:, : model.out_features]]
        if model.codes > 1:
            draws = torch.randn(len(x), model.latent, generator=generator(0, "prior"))
            shown.append(model.decode(draws.to(x.device)))
    finally:
        model.train(training)
    if getattr(objective, "likelihood", None) == "bernoulli":
        shown[1:] = [logits.sigmoid() for logits in shown[1:]]
    return torch.stack(shown).clamp(0, 1).unflatten(-1, task.in_shape).mean(2).cpu()


def mosaic(rows: Tensor, gap: int = 1) -> Tensor:
    """One picture of many, side by side with white gaps: [rows, columns, H, W] → [height, width]."""
    padded = torch.nn.functional.pad(rows, (0, gap, 0, gap), value=1.0)
    return torch.cat([torch.cat(list(row), -1) for row in padded], -2)
