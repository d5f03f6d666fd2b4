"""A page in which the trained team plays and you join in: python scripts/play.py ckpt=RUN_DIR [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, one of its checkpoints, or a policy.safetensors (required)
  which=last           last | best: which checkpoint of a run directory
  seeds=32             starting states in the page; seed s is VMAS's own reset(seed=s) of one environment
  max_steps=null       time limit of the page's episodes, steps; null: that of the run
  out=null             the file to write; null: live.html in the run directory
  serve=false          true: stream from Python instead, for scenarios and networks that can't run in a page
  port=8000            of serve=true, on 127.0.0.1 only; 0: any that is free

The page holds the scenario itself (its step as JavaScript), the policy's weights and the drawing: no server and no
network; mail it, or put it on any static site. Drag agents and obstacles, take an agent over, freeze one, reset, slow
down.
"""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from agents.deploy.web_weights import plain
from agents.evaluation.episode_replays import settings_of
from agents.policies.policy import Policy
from envs.rendering.html_page import page, web, write
from envs.rendering.live_world import program, world
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import cli

UNITS = ("frames", "epochs", "batches")  # of a run's budget
BEGIN = """unpack("data").then(({ world, policy }) =>
  start(new LocalEngine(PROGRAM, world, makePolicy(policy)), world));"""


@dataclass
class Options:
    """The options above."""

    ckpt: str
    which: Literal["last", "best"] = "last"
    seeds: Annotated[int, Field(ge=1, le=1000)] = 32
    max_steps: Annotated[int, Field(ge=1)] | None = None
    out: str | None = None
    serve: bool = False
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


def run(chosen: Options) -> Path | None:
    """Write the page, or serve until interrupted. Raises UserError."""
    policy = Policy.load(chosen.ckpt, chosen.which)
    settings = settings_of(policy.metadata.get("env"))
    if chosen.max_steps is not None:
        settings["max_steps"] = chosen.max_steps
    if chosen.serve:
        try:
            from agents.deploy.live_server import serve
        except ImportError as error:
            raise UserError(f"serve=true: {error.name} is not installed; run pip install -e '.[serve]'") from error
        serve(policy, settings, chosen.port)
        return None
    target = Path(chosen.out or run_directory.home_of(chosen.ckpt) / "live.html")
    write(target, live_page(policy, settings, chosen.seeds))
    print(f"{target} ({target.stat().st_size / 1000:.0f} kB)")
    return target


def live_page(policy: Policy, settings: dict[str, Any], seeds: int) -> str:
    """The page's text. Raises UserError where the scenario or the networks can't run in one."""
    weights = plain(policy)
    compiled = program(settings)
    scripts = f"{web('policy.js')}\n{web('engine.js')}\nconst PROGRAM = {compiled.source};"
    run = policy.metadata.get("run") or {}
    about = str(run.get("name") or settings.get("scenario"))
    about += "".join(f", trained for {run[unit]:,} {unit}" for unit in UNITS if run.get(unit))
    data = {"world": world(compiled, settings, seeds), "policy": weights}
    return page("live", data, ENGINE=scripts, BEGIN=BEGIN, ABOUT=html.escape(about))


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(options.parse(Options, arguments)))
