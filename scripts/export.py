"""Writes a trained policy as a file for other programs: python scripts/export.py ckpt=RUN_DIR [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, a checkpoint, a policy.safetensors or zoo/NAME (required)
  format=onnx          onnx (runs in onnxruntime) | torch_export (torch alone) | safetensors
                       (agents.policies.policy.Policy.load) | c (one C99 file and a header, for microcontrollers too)
  c_weights=float32    of format=c: float32 | int8 (a quarter of the size; what it costs is written into the file)
  which=last           last | best: which checkpoint of a run directory
  out=null             the folder to write to; null: export/ in the run directory

The folder gets the policy and a model card, README.md: the layout of observations, the meaning of actions, where the
policy comes from and what it was worth.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.deploy.export import export
from agents.policies.policy import Policy
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import cli


@dataclass
class Options:
    """The options above."""

    ckpt: str
    format: Literal["onnx", "torch_export", "safetensors", "c"] = "onnx"
    c_weights: Literal["float32", "int8"] = "float32"
    which: Literal["last", "best"] = "last"
    out: str | None = None


def run(chosen: Options) -> Path:
    """Load, write, say where. Raises UserError: no such checkpoint, a missing package, unknown networks."""
    if chosen.c_weights != "float32" and chosen.format != "c":
        raise UserError(f"c_weights={chosen.c_weights}: is of format=c, not of format={chosen.format}")
    policy = Policy.load(chosen.ckpt, chosen.which)
    folder = Path(chosen.out or run_directory.home_of(chosen.ckpt) / "export")
    file = export(policy, chosen.format, folder, chosen.c_weights)
    print(f"{file} ({file.stat().st_size / 1000:.0f} kB), described in {folder / 'README.md'}")
    return file


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(options.parse(Options, arguments)))
