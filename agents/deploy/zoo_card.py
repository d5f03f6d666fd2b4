"""A policy for the zoo: its file made from a run, what it is worth, and the card that says so (`marl.core.zoo`)."""

import hashlib
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.evaluation.episodes import report
from agents.players import scripted
from agents.policies.group_settings import LEARN, POOL
from agents.policies.policy import Policy
from agents.tasks.episode_evaluation import EpisodeEvaluation
from marl.config import compose
from marl.core import files, run_directory
from marl.core.errors import UserError
from marl.core.zoo import index as zoo
from marl.launch import build
from marl.report.runs import algorithm_of

FORMAT = 1
EPISODES = 1000
MOST_EPISODES = 100_000  # that a card may ask for, since they are played at once
SEED = 3_000_000  # of the card's episodes, which are none of a run's own
SLACK = 1e-3  # of a mean: where all episodes return nearly the same, the rounding of another machine is more
ALL = "all"  # the return of all groups that count
LEFT_OUT = {key: None for key in ("ckpt", "resume", "init_from", "init_map", "paths", "zoo", "logger", "callbacks")}
LICENCE = (
    "The weights are under the licence of this repository, which has chosen none yet; VMAS, in which the policy was "
    "trained and without which it does nothing, is GPL-3.0."
)


# ---- the file --------------------------------------------------------------------------------------------------


def packed(run: str | Path, which: str = "last", critics: bool = True) -> Policy:
    """The policy of a run with the run's configuration in it, so that its one file is all that a script needs.

    critics: False = without them: half the size, no values in pages, and `init_from` needs strict=false.

    Raises:
        UserError: no such run or no agents in it, or one whose other players are files of this machine.
    """
    path = run_directory.find(run, which)
    policy = Policy.load(path)
    config = compose.check(compose.saved(path)) | LEFT_OUT | {"device": "auto"}
    for name, one in (config.get("groups") or {}).items():
        for key in ("policy", "eval_policy", "eval_against"):
            player = one.get(key) or LEARN
            if player not in (LEARN, POOL, *scripted.NAMES) and zoo.named(player) is None:
                raise UserError(
                    f"groups.{name}.{key}={player}: a policy of the zoo plays among learners, scripted players and "
                    "others of the zoo, which every machine has; this one may not be there"
                )
    metadata = {**policy.metadata, "config": config, "critics": critics and policy.metadata.get("critics", True)}
    made, weights = Policy(metadata), policy.state_dict()
    made.load_state_dict({name: weights[name] for name in made.state_dict()})
    return made


# ---- what it is worth ------------------------------------------------------------------------------------------


def rebuilt(run: str | Path, overrides: Sequence[str] = ()) -> EpisodeEvaluation:
    """The task of a run, a policy file or `zoo/NAME`, with its weights. Raises UserError where it plays no episodes."""
    _, task = build.rebuild(run, overrides)
    if not isinstance(task, EpisodeEvaluation):
        raise UserError(f"{run}: only agents play episodes; this is of the task {task.name}")
    return task


def measured(path: str | Path, episodes: int, seed: int, how: str) -> dict[str, dict]:
    """Returns of a policy file's agents, played again: {"all" or a group: {"mean", "iqm", "std", "ci95"}}.

    Args:
        episodes: played at once. seed: of them: the same ones return the same.
        how: mode | samples (of the policy) | random (uniform actions instead of it).

    Raises:
        UserError: its task plays no episodes.
    """
    block = report(rebuilt(path).run_episodes(episodes, seed, how == "mode", random=how == "random"))
    rows = {ALL: block["episode_return"]}
    if len(block["groups"]) > 1:
        rows |= {name: group["episode_return"] for name, group in block["groups"].items()}
    return {name: {key: row[key] for key in ("mean", "iqm", "std", "ci95")} for name, row in rows.items()}


def verified(name: str) -> list[dict[str, Any]]:
    """A policy of the zoo played again, as its card says: by group, "said", "ci95", "found" and whether it is "met".

    Raises:
        UserError: there is none, or its card lacks what is needed.
    """
    card = zoo.card(name)
    try:
        about = card["evaluated"]
        said, episodes, seed, how = about[about["quoted"]], about["episodes"], about["seed"], about["quoted"]
        bounds = {group: tuple(map(float, (row["mean"], *row["ci95"]))) for group, row in said.items()}
        if how not in ("mode", "samples") or type(seed) is not int or type(episodes) is not int:
            raise ValueError(f"quoted={how}, seed={seed}, episodes={episodes}")
        if not 2 <= episodes <= MOST_EPISODES:
            raise ValueError(f"episodes={episodes}, of which 2 to {MOST_EPISODES:,} are played")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"zoo/{name}: its card says no figure that could be verified: {error!r}") from error
    found = measured(zoo.policy(name), episodes, seed, how)
    if missing := sorted(bounds.keys() - found.keys()):
        raise UserError(f"zoo/{name}: its card tells of {missing[0]}, which does not play")
    rows = []
    for group, (mean, low, high) in bounds.items():
        slack, again = SLACK * max(1.0, abs(mean)), found[group]["mean"]
        met = low - slack <= again <= high + slack
        rows.append({"group": group, "said": mean, "ci95": [low, high], "found": again, "met": met})
    return rows


# ---- the card --------------------------------------------------------------------------------------------------


def name_of(run: str | Path, which: str, pattern: str | None) -> str:
    """The name that a run's policy gets: `pattern`, its {scenario} and {algorithm} filled in. Raises UserError."""
    config = compose.check(compose.saved(run_directory.find(run, which)))
    if not config.get("algo"):
        raise UserError(f"{run}: has no agents; the zoo is of policies")
    parts = {"scenario": _scenario(config["env"]), "algorithm": algorithm_of(config["algo"])}
    try:
        name = (pattern or "{scenario}").format(**parts)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"name={pattern}: may hold {{scenario}} and {{algorithm}} ({error!r})") from error
    if not zoo.NAME.fullmatch(name):
        raise UserError(f"name={name}: must be of small letters, digits and underscores")
    return name


def add(run: str | Path, name: str, which: str, episodes: int, critics: bool = True) -> dict[str, Any]:
    """Put a run's policy into the zoo, with a card; returns the card. The index is written last.

    Raises:
        UserError: as `packed`; the zoo is at an address, where nothing can be written; a run that is not at its end.
    """
    folder = Path(zoo.place())
    if not folder.is_dir():
        raise UserError(f"zoo.url={zoo.place()}: policies are added to a folder; copy it to the server afterwards")
    path = run_directory.find(run, which)
    summary = run_directory.home_of(path) / "summary.json"
    if not summary.is_file():
        raise UserError(
            f"{run}: has no {summary.name}, which a card tells from: only runs that came to their end go in"
        )
    policy = packed(path, critics=critics)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.safetensors"
        policy.save(file)
        figures = {how: measured(file, episodes, SEED, how) for how in ("mode", "samples", "random")}
        content = file.read_bytes()
    card = described(name, policy, path, files.read_json(summary), figures, episodes)
    card |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files.write(folder / file.name, content)
    files.write_json(folder / f"{name}.json", card)
    zoo.write_entry(folder, name)
    return card


def described(
    name: str, policy: Policy, path: Path, summary: Mapping[str, Any], figures: Mapping[str, dict], episodes: int
) -> dict[str, Any]:
    """The card of a policy: what it is, how it was trained (`summary.json`), what it is worth, its licence."""
    config = policy.metadata["config"]
    run = policy.metadata.get("run") or {}
    scenario, algorithm = _scenario(config["env"], whole=True), algorithm_of(config["algo"])
    groups = {group: one.n_agents for group, one in policy.spec.groups.items()}
    teams = ", ".join(f"{count} {group}" for group, count in groups.items())
    return {
        "format": FORMAT,
        "name": name,
        "about": f"{algorithm.upper()} on {scenario} ({teams}), the {'best' if path.stem == 'best' else 'last'} policy "
        "of one run.",
        "scenario": scenario,
        "algorithm": algorithm,
        "trained": {
            "command": command(run_directory.home_of(path), summary),
            "commit": summary.get("git_commit"),
            "seed": run.get("seed"),
            "frames": run.get("frames"),
            "seconds": (summary.get("seconds") or {}).get("total"),
            "versions": summary.get("versions"),
        },
        "evaluated": {
            "quoted": "mode" if config["task"].get("eval_deterministic", True) else "samples",
            "episodes": episodes,
            "seed": SEED,
            "against": opponents(config.get("groups") or {}),
            **figures,
        },
        "critics": bool(len(policy.critics)),
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "licence": LICENCE,
    }


def opponents(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Who plays in the card's episodes what the policy does not, as a run's `groups` name them: {group: player}."""
    found = {}
    for name, one in groups.items():
        player = one.get("eval_policy") or one.get("policy") or LEARN
        if player != LEARN:
            found[name] = one["of"] if player == POOL else player
        elif one.get("eval_against"):
            found[f"others of {name}"] = one["eval_against"]
    return found


def command(home: Path, summary: Mapping[str, Any]) -> str | None:
    """What one types to train a run again: without where its files went. None where its files do not say."""
    if (home / "job.json").is_file():  # of a sweep, whose command trains others, too
        words = ["scripts/train.py", *files.read_json(home / "job.json").get("overrides", [])]
    elif summary.get("command"):
        words = shlex.split(summary["command"])
        words[0] = f"scripts/{Path(words[0]).name}"
    else:
        return None
    kept = [word for word in words if not word.startswith(("hydra.", "paths.", "logger", "trainer.progress="))]
    return f"python {shlex.join(kept)}"


def _scenario(env: Mapping[str, Any], whole: bool = False) -> str:
    """What an environment's node plays, such as mpe/simple_spread; not `whole`: the last part, fit for a name."""
    named = next((env[key] for key in ("scenario", "id", "env") if env.get(key)), env["_target_"])
    return str(named) if whole else str(named).replace("-", "_").rpartition("/")[2].rpartition(".")[2].lower()
