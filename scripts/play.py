"""A page in which the trained team plays and you join in: python scripts/play.py ckpt=RUN_DIR [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, a checkpoint, a policy.safetensors or zoo/NAME; null: outputs/' latest run
  which=last           last | best: which checkpoint of a run directory
  seeds=32             starting states in the page; seed s is VMAS's own reset(seed=s) of one environment
  max_steps=null       time limit of the page's episodes, steps; null: that of the run
  out=null             the file to write; null: live.html in the run directory
  serve=false          true: stream from Python instead, for scenarios and networks that can't run in a page
  open=false           true: open the page in the browser
  port=8000            of serve=true, on 127.0.0.1 only; 0: any that is free

The page holds the scenario itself (its step as JavaScript), the policy's weights and the drawing: no server and no
network; mail it, or put it on any static site. Drag agents and obstacles, take an agent over, freeze one, reset, slow
down.
"""

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agents.deploy.live_page import live_page
from agents.evaluation.episode_replays import settings_of
from agents.policies.policy import Policy
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import cli


@dataclass
class Options:
    """The options above."""

    ckpt: str | None = None
    which: Literal["last", "best"] = "last"
    seeds: Annotated[int, Field(ge=1, le=1000)] = 32
    max_steps: Annotated[int, Field(ge=1)] | None = None
    out: str | None = None
    serve: bool = False
    open: bool = False
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


def run(chosen: Options) -> Path | None:
    """Write the page, or serve until interrupted. Raises UserError."""
    run = Path(chosen.ckpt) if chosen.ckpt else run_directory.latest()
    policy = Policy.load(run, chosen.which)
    if chosen.serve:
        settings = settings_of(policy.metadata.get("env"))
        if chosen.max_steps is not None:
            settings["max_steps"] = chosen.max_steps
        try:
            from agents.deploy.live_server import serve
        except ImportError as error:
            raise UserError(f"serve=true: {error.name} is not installed; run pip install -e '.[serve]'") from error
        serve(policy, settings, chosen.port)
        return None
    target = Path(chosen.out or run_directory.home_of(run) / "live.html")
    live_page(policy, target, chosen.seeds, chosen.max_steps)
    print(f"{target} ({target.stat().st_size / 1000:.0f} kB)")
    if chosen.open and not webbrowser.open(target.resolve().as_uri()):
        print("no browser opens here; open that file in one")
    return target


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(options.parse(Options, arguments)))
