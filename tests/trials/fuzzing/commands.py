"""Whole commands of every script: good ones, and good ones spoilt by odd, missing, doubled and misspelt arguments."""

import random
from pathlib import Path

from tests.trials.fuzzing import overrides
from tests.trials.fuzzing.scripts import ROOT, script
from tests.trials.fuzzing.values import HUGE, SWEEPS, misspelt, odd
from tests.trials.fuzzing.world import EAGER, SMALL, TABLE

CLONE = ["experiment=clone", "data.folder=../w/episodes", "epochs=1", "network.hidden=[8]", "task.eval_episodes=2"]
RUNS = ["run", "tag", "digits", "sweep/0", "kernel"]
# (script, arguments) that end with exit code 0 within seconds; ../w is the world.
GOOD = [
    ("train", ["env=vmas/navigation", *EAGER]),
    ("train", ["algo=mappo", *EAGER]),
    ("train", ["algo=ippo", "env=vmas/balance", *EAGER, "network.hidden=[4]"]),
    ("train", ["experiment=digits", *SMALL]),
    ("train", ["experiment=threshold", "epochs=1"]),
    ("train", ["experiment=sine", "epochs=1", "network.hidden=[4]"]),
    ("train", ["experiment=digits", "data=csv", "data.file=../w/table.csv", *TABLE]),
    ("train", ["experiment=digits", "data=npz", "data.file=../w/table.npz", "epochs=1", "network=mlp"]),
    ("train", ["experiment=digits", "data=image_folder", "data.folder=../w/pictures", "epochs=1", "network=mlp"]),
    ("train", ["experiment=fashion_mnist", "data.folder=../w/idx", "epochs=1"]),
    ("train", CLONE),
    ("train", ["resume=../w/run", "trainer.max_iterations=3"]),
    ("train", ["resume=../w/digits", "epochs=2"]),
    ("train", ["init_from=../w/run", "env=vmas/navigation", *EAGER, "strict=false"]),
    ("train", ["-m", "experiment=threshold", "epochs=1", "seed=0,1"]),
    ("evaluate", ["ckpt=../w/run"]),
    ("evaluate", ["ckpt=../w/digits"]),
    ("evaluate", ["ckpt=../w/run", "vary=action_noise", "values=[0,0.1]", "episodes=2"]),
    ("record", ["ckpt=../w/run", "episodes=2", "out=recorded"]),
    ("replay", ["ckpt=../w/run", "episodes=1", "out=replayed"]),
    ("replay", ["recording=../w/replay/replay.safetensors", "formats=[png]", "out=replayed"]),
    ("play", ["ckpt=../w/run", "seeds=1", "out=live.html"]),
    ("export", ["ckpt=../w/run", "format=safetensors", "out=exported"]),
    ("explain", ["ckpt=../w/run", "rows=4", "steps=4", "out=explained.png"]),
    ("explain", ["ckpt=../w/digits", "what=features", "out=features.safetensors"]),
    ("report", ["../w/run", "reps=100"]),
    ("report", ["../w/sweep", "metric=loss", "reps=100"]),
    ("crossplay", ["../w/tag", "episodes=2"]),
    ("elo", ["../w/tag", "episodes=2", "reps=100", "versions=2"]),
    ("doctor", []),
    ("zoo", ["list"]),
    ("zoo", ["add", "../w/run", "episodes=2", "zoo.url=."]),
    ("show", ["model", *EAGER]),
    ("show", ["schedule", *EAGER, "scheduler=cosine"]),
    ("show", ["graph", "experiment=digits"]),
    ("tune", ["study=../w/study.yaml", "n_trials=1", "confirm=false", "out=tuned"]),
]  # fmt: skip
# What only makes a command long, or takes the machine down, where it is huge: no mistake to be told.
LONG = ("frames", "epochs", "episodes", "num_envs", "rollout_steps", "max_steps", "max_iterations", "batch_size",
        "samples", "n_trials",
        "workers", "reps", "steps", "rows", "seeds", "shard", "versions", "width", "n_jobs", "speed", "serve", "port",
        "heads", "layers",
        "window", "max_restores", "pool_size", "time_limit")  # fmt: skip


def generate(dice: random.Random, world: Path) -> tuple[str, list[str]]:
    """A script and its arguments; only such as need what the world has."""
    able = [(name, rest) for name, rest in GOOD if all((world / place).exists() for place in needs(rest))]
    name, good = dice.choice(able)
    arguments = list(good)
    if dice.random() < 0.15:
        return name, arguments
    for _ in range(dice.choice([1, 1, 2])):
        arguments = spoil(dice, name, arguments)
    return name, arguments


def needs(arguments: list[str]) -> list[str]:
    """What of the world a command names."""
    return [text.partition("../w/")[2] for text in arguments if "../w/" in text]


def spoil(dice: random.Random, name: str, arguments: list[str]) -> list[str]:
    """One change for the worse."""
    form, at = dice.random(), dice.randrange(len(arguments)) if arguments else 0
    if form < 0.2 and arguments:
        key, equals, text = arguments[at].partition("=")
        argument = f"{misspelt(dice, key)}{equals}{text}" if dice.random() < 0.4 else f"{key}={value(dice, key)}"
        return [*arguments[:at], argument, *arguments[at + 1 :]]
    if form < 0.27 and arguments:
        return arguments[:at] + arguments[at + 1 :]
    if form < 0.45:
        options = getattr(script(name), "Options", None)
        key = dice.choice(list(options.__dataclass_fields__)) if options else "out"
        return [*arguments, f"{key}={value(dice, key)}"]
    if form < 0.5:
        place = dice.choice([*RUNS, "episodes", "policy", "table.csv", "sweep", "study", "run/checkpoints",
                             "run/config.yaml",
                             "run/checkpoints/best.safetensors", "policy/policy.safetensors", "nothing"])  # fmt: skip
        return [*arguments, f"{dice.choice(['ckpt', 'resume', 'init_from', 'recording', 'out'])}=../w/{place}"]
    return [*arguments, configuration(dice)]


def configuration(dice: random.Random) -> str:
    """A key of the configuration with an odd value; not one that only makes the command long."""
    while True:
        override = overrides.one(dice, tuple(dice.choice(overrides.BASES)))
        key, _, text = override.partition("=")
        if not (any(word in key for word in LONG) and (text in HUGE or text.startswith("1000"))) and text not in SWEEPS:
            return override if "\0" not in override else override.replace("\0", "")


def value(dice: random.Random, key: str) -> str:
    """An odd value of an option."""
    long = any(word in key for word in LONG)
    text = odd(dice, (HUGE,) if long else ())
    return "0" if long and text.startswith(("1000", "true", "yes", "on", "1e3", "0x", "1_000")) else text


def prepare(folder: Path, world: Path) -> Path:
    """A place to run in, beside a link to the world."""
    (folder / "w").symlink_to(world) if not (folder / "w").exists() else None
    place = folder / "here"
    place.mkdir()
    return place


def examples() -> list[str]:
    """Names of scripts that no good command above starts; a server would go on until a signal comes."""
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    return sorted(names - {name for name, _ in GOOD} - {"benchmark", "serve"})
