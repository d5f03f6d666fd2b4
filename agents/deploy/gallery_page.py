"""The gallery: one page in which every policy of the zoo plays a short loop, with its return and how to see more."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.deploy.live_page import live_page
from agents.deploy.zoo_card import ALL, rebuilt
from agents.evaluation.episode_loop import Players
from agents.evaluation.episode_replays import settings_of
from agents.policies.policy import Policy
from envs.base import EnvError
from envs.rendering.html_page import page, write
from envs.rendering.loops import TURN, loop
from envs.rendering.recording import Recording, eager_env, record_in
from envs.vmas.agent_masks import masks_in
from marl.core.errors import UserError
from marl.core.seeding import derive, generator
from marl.core.zoo import index as zoo

STEPS = 100  # of a loop at most
EPISODES = 9  # of which the middle one is shown: neither the best nor the worst
SEED = 0
LIVE_SEEDS = 4  # starting states in a live page
LIVE_BYTES = 600_000  # a live page at most: the zoo is a part of the repository
ABOUT = (
    "Every policy of the zoo, in an episode that is neither its best nor its worst. Returns are means of the episodes "
    "that its card names, with 95 % intervals; random: uniform actions. Click a picture to stop it."
)


def gallery_page(path: str | Path, names: list[str] | None = None, live: bool = True) -> list[str]:
    """Write the gallery, one HTML file that asks for nothing else, and live pages beside it in `live/`.

    Args:
        path: the file to write.
        names: of policies of the zoo; None: all that can be drawn.
        live: whether to write live pages, of the scenarios and networks that run in one.

    Returns:
        Names of the policies in it.

    Raises:
        UserError: a policy of `names` is not there, or plays in what is no VMAS scenario.
    """
    path, entries = Path(path), []
    for name in names or zoo.entries():
        policy, card = Policy.load(f"zoo/{name}"), zoo.card(name)
        if names is None and (policy.metadata.get("env") or {}).get("_target_") != "envs.vmas.env.VmasEnv":
            continue
        entries.append(entry(name, policy, card))
        if live and written_live(policy, path.parent / "live" / f"{name}.html"):
            entries[-1]["live"] = f"live/{name}.html"
    write(path, page("gallery", {"entries": entries, "turn": TURN, "about": ABOUT}))
    return [each["name"] for each in entries]


def entry(name: str, policy: Policy, card: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a policy: its loop and texts, JSON-able."""
    evaluated, frames = card["evaluated"], card["trained"]["frames"]
    quoted = evaluated["quoted"]
    row, random = evaluated[quoted][ALL], evaluated["random"][ALL]["mean"]
    low, high = row["ci95"]
    against = "".join(f", against {group}: {who}" for group, who in (evaluated.get("against") or {}).items())
    recording, counted = judged_episodes(name, policy, quoted == "mode")
    return {
        "name": name,
        "title": card["scenario"],
        "score": f"return {row['mean']:.3g} [{low:.3g}, {high:.3g}]; random {random:.3g}",
        "about": f"{card['algorithm'].upper()}" + (f", {frames:,} frames" if frames else "") + against,
        "command": f"python scripts/play.py ckpt=zoo/{name}",
        "loop": loop(recording, middle(recording, counted), STEPS),
    }


def judged_episodes(name: str, policy: Policy, deterministic: bool) -> tuple[Recording, tuple[str, ...]]:
    """Episodes of those who play in the run's evaluations, of which the card's return is; the groups that it counts.

    Raises:
        UserError: it plays no episodes, or in what is no VMAS scenario.
    """
    settings = settings_of(policy.metadata.get("env")) | {"max_steps": STEPS}
    task = rebuilt(f"zoo/{name}", ["device=cpu", "env.fast=off"])
    seed = derive(SEED, "replay")
    env, kept = eager_env(settings, EPISODES, seed)
    who, _, counted = task.eval_players(env, random=False)
    players, noise = Players(who, deterministic), generator(SEED, "policy", env.device)
    players.begin(EPISODES, env.device)

    @torch.no_grad()
    def act(observation: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return players.actions(observation, masks_in(observation, players.actors), noise), {}

    return record_in(env, kept, act, seed, policy.metadata.get("run")), counted or tuple(who)


def middle(recording: Recording, counted: tuple[str, ...]) -> int:
    """The episode whose return of the groups `counted` is the median, of an odd number of episodes."""
    rewards = [recording.reward[name].mean(-1).numpy() for name in counted]  # [T, E] of each group
    counts = np.arange(len(rewards[0]))[:, None] < np.array(recording.lengths)
    returns = (np.mean(rewards, 0) * counts).sum(0)
    return int(np.argsort(returns)[len(returns) // 2])


def written_live(policy: Policy, path: Path) -> bool:
    """Write a policy's live page; False where its scenario or networks can't run in one, or make it too large."""
    try:
        live_page(policy, path, LIVE_SEEDS)
    except (EnvError, UserError) as error:
        print(f"{path.stem}: no live page: {error}", flush=True)
        return False
    if (size := path.stat().st_size) > LIVE_BYTES:
        path.unlink()
        print(
            f"{path.stem}: no live page: it would be {size / 1000:,.0f} kB, more than {LIVE_BYTES / 1000:,.0f}",
            flush=True,
        )
        return False
    return True
