"""Pages of trained agents: one in which they play and one joins in, and one that replays episodes of theirs."""

import html
from pathlib import Path
from typing import Any

from agents.deploy.web_weights import plain
from agents.evaluation.episode_replays import record_policy, settings_of
from agents.policies.policy import Policy
from envs.rendering.html_page import page, web, write
from envs.rendering.live_world import program, world
from envs.rendering.web_frames import web_frames

UNITS = ("frames", "epochs", "batches")  # of a run's budget
# The program travels packed, at two fifths of its size; a script element runs it like any other part of the page.
BEGIN = """unpack("data").then(({ program, world, policy }) => {
  const script = document.createElement("script");
  script.textContent = `const PROGRAM = ${program};`;
  document.head.append(script);
  start(new LocalEngine(PROGRAM, world, makePolicy(policy)), world);
});"""


def live_page(policy: Policy, path: str | Path, seeds: int = 32, max_steps: int | None = None) -> Path:
    """Write a page in which the policy plays its scenario without a server: one HTML file, whose path is returned.

    Args:
        policy: of a VMAS scenario that has a kernel.
        path: the file to write.
        seeds: starting states in the page; seed s is VMAS's own `reset(seed=s)` of one environment.
        max_steps: time limit of the page's episodes, steps; None: that of the run.

    Raises:
        UserError: the scenario or the networks can't run in a page.
    """
    settings = settings_of(policy.metadata.get("env"))
    if max_steps is not None:
        settings["max_steps"] = max_steps
    path = Path(path)
    write(path, text_of(policy, settings, seeds))
    return path


def text_of(policy: Policy, settings: dict[str, Any], seeds: int) -> str:
    """The live page's text; `settings` are `VmasEnv`'s. Raises UserError as `live_page`."""
    weights = plain(policy)
    compiled = program(settings)
    scripts = f"{web('policy.js')}\n{web('engine.js')}"
    run = policy.metadata.get("run") or {}
    about = str(run.get("name") or settings.get("scenario"))
    about += "".join(f", trained for {run[unit]:,} {unit}" for unit in UNITS if run.get(unit))
    data = {"program": compiled.source, "world": world(compiled, settings, seeds), "policy": weights}
    return page("live", data, ENGINE=scripts, BEGIN=BEGIN, ABOUT=html.escape(about))


def replay_page(policy: Policy, path: str | Path, episodes: int = 4, seed: int = 0) -> Path:
    """Write a page that replays episodes of a policy in its VMAS scenario: one HTML file, whose path is returned.

    Raises:
        UserError: the policy is of another kind of environment.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, page("player", web_frames(record_policy(policy, episodes, seed))))
    return path
