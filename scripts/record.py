"""Writes a data set of episodes: python scripts/record.py ckpt=RUN_DIR [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, a checkpoint, a policy.safetensors or zoo/NAME (required)
  episodes=200         how many to record
  out=null             the data set's folder; null: episodes/ in the run directory. One that exists is added to
  policy=trained       trained | random (uniform actions) | the dotted path of a function of your own, called with a
                       group's observation [E, A, F] and a torch.Generator for an action [E, A, D]
  deterministic=false  true: the policy's mode | false: samples. A clone learns the deviation only from samples
  which=last           last | best: which checkpoint of a run directory
  seed=0               seed of the episodes
  shard=100            episodes per file, played at once; a tenth of them where they would share what a reset draws

The folder holds shards (safetensors) and manifest.json; docs/guides/data.md has its format and how to read it.
  python scripts/train.py experiment=clone data.folder=FOLDER    trains an actor from it
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agents.evaluation.dataset_recording import metadata, record
from agents.evaluation.episode_loop import Players
from agents.evaluation.episodes import RESETS
from agents.policies.policy import Policy
from envs.base import Env
from envs.spec import describe
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.core.kinds import function, required
from marl.core.seeding import derive
from marl.data.episodes import append, manifest
from marl.launch import build, cli


@dataclass
class Options:
    """The options above."""

    ckpt: str
    episodes: Annotated[int, Field(ge=1)] = 200
    out: str | None = None
    policy: str = "trained"
    deterministic: bool = False
    which: Literal["last", "best"] = "last"
    seed: Annotated[int, Field(ge=0)] = 0
    shard: Annotated[int, Field(ge=1)] = 100


def run(chosen: Options) -> Path:
    """Load, play, write, say where. Raises UserError: no such checkpoint, policy or environment."""
    policy = Policy.load(chosen.ckpt, chosen.which)
    node = policy.metadata.get("env")
    if not node:
        raise UserError(f"{chosen.ckpt}: doesn't say how its environment is built; give its run directory")
    required(node, Callable[..., Env], "env")
    folder = Path(chosen.out or run_directory.home_of(chosen.ckpt) / "episodes")
    teacher = player(chosen, policy)
    source = chosen.policy if chosen.policy != "trained" else str(chosen.ckpt)
    about = {
        "spec": describe(policy.spec),
        "env": node,
        "policy": {
            "ckpt": str(chosen.ckpt),
            "which": chosen.which,
            "heads": {name: actor.head.name for name, actor in policy.actors.items()},
            "run": policy.metadata.get("run"),
        },
        "metadata": metadata(
            folder.name, policy.spec, node, source, f"{source}, deterministic={chosen.deterministic}".lower()
        ),
    }
    earlier_episodes = manifest(folder)["metadata"]["total_episodes"] if (folder / "manifest.json").is_file() else 0
    returns, steps, left, most = [], 0, chosen.episodes, chosen.shard
    while left:
        seed = derive(chosen.seed, f"record/{earlier_episodes + chosen.episodes - left}")
        count = min(most, left)
        env = build.part(node)(seed=seed, device="cpu", num_envs=count)
        if env.shared_draws and most == chosen.shard > 1:
            most = ceil(count / RESETS)
            continue
        episodes = record(env, teacher, seed)
        append(folder, episodes, about, source)
        returns.append(sum(value.mean(-1).sum().item() for name, value in episodes.items() if name.endswith("/reward")))
        steps, left = steps + int(episodes["length"].sum()), left - count
    mean = sum(returns) / len(policy.spec.groups) / chosen.episodes
    print(f"{folder}: {chosen.episodes} episodes, {steps} steps, mean return {mean:.3f}")
    return folder


def player(chosen: Options, policy: Policy) -> Players | None:
    """Who acts: the saved actors, a function of the user's for every group, or None for uniformly random actions."""
    if chosen.policy == "random":
        return None
    if chosen.policy == "trained":
        return Players(policy.actors, chosen.deterministic)
    if "." not in chosen.policy:
        raise UserError(f"policy={chosen.policy}: must be trained, random, or the dotted path of a function")
    acting = function(chosen.policy, "policy", 2)
    return Players(dict.fromkeys(policy.spec.groups, acting))


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(options.parse(Options, arguments)))
