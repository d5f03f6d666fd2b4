"""Writes a trained policy as a file for other programs: python scripts/export.py ckpt=RUN_DIR [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, a checkpoint, a policy.safetensors or zoo/NAME (required)
  format=onnx          onnx (runs in onnxruntime) | torch_export (torch alone) | torchscript (C++, libtorch) |
                       executorch (its runtime) | c (one C99 file and a header, for microcontrollers too) |
                       safetensors (agents.policies.policy.Policy.load)
  quantize=none        none | int8: 8-bit weights, format=onnx or c | int8_static: onnx only; int8 takes the ranges of
                       what they are multiplied with from each call, int8_static fixes them from recorded observations
  calibration=null     int8_static: a folder that scripts/record.py wrote; null: episodes/ in the run directory
  which=last           last | best: which checkpoint of a run directory
  out=null             the folder to write to; null: export/ in the run directory

The folder gets the policy and a model card, README.md: the layout of observations, the meaning of actions, where the
policy comes from and what it was worth.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.deploy.export import export
from agents.deploy.formats.recorded import calibration
from agents.policies.policy import Policy
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import cli


@dataclass
class Options:
    """The options above."""

    ckpt: str
    format: Literal["onnx", "torch_export", "torchscript", "executorch", "c", "safetensors"] = "onnx"
    quantize: Literal["none", "int8", "int8_static"] = "none"
    calibration: str | None = None
    which: Literal["last", "best"] = "last"
    out: str | None = None


def run(chosen: Options) -> Path:
    """Load, write, say where. Raises UserError: no such checkpoint, a missing package, or no recorded observations."""
    if chosen.calibration is not None and chosen.quantize != "int8_static":
        raise UserError(f"calibration={chosen.calibration}: only quantize=int8_static reads recorded observations")
    policy, home = Policy.load(chosen.ckpt, chosen.which), run_directory.home_of(chosen.ckpt)
    recorded = ()
    if chosen.quantize == "int8_static":
        recorded = calibration(policy, chosen.calibration or home / "episodes")
    folder = Path(chosen.out or home / "export")
    file = export(policy, chosen.format, folder, chosen.quantize, recorded)
    print(f"{file} ({file.stat().st_size / 1000:.0f} kB), described in {folder / 'README.md'}")
    return file


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(options.parse(Options, arguments)))
