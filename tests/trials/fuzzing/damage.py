"""Damaged files of every kind that a run, a sweep, a study, a data set, a policy or the kernel cache consists of."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.trials.fuzzing.world import AGENTS, EAGER, SMALL, TABLE

RUN = [
    ("train", ["resume=run", "trainer.max_iterations=3"]),
    ("train", ["init_from=run", "env=vmas/navigation", *EAGER, "strict=false", "hydra.run.dir=next"]),
    ("train", ["env=vmas/navigation", *EAGER, "hydra.run.dir=run"]),
    ("evaluate", ["ckpt=run"]),
    ("evaluate", ["ckpt=run", "which=best"]),
    ("record", ["ckpt=run", "episodes=2", "out=recorded"]),
    ("replay", ["ckpt=run", "episodes=1", "out=replayed"]),
    ("play", ["ckpt=run", "seeds=1", "out=live.html"]),
    ("export", ["ckpt=run", "format=safetensors", "out=exported"]),
    ("explain", ["ckpt=run", "what=features", "rows=4", "out=features.safetensors"]),
    ("report", ["run", "reps=100"]),
]
FILE = [("evaluate", ["ckpt={file}"]), ("export", ["ckpt={file}", "format=safetensors", "out=exported"]),
        ("train", ["init_from={file}", "env=vmas/navigation", *EAGER, "strict=false",
                   "hydra.run.dir=next"])]  # fmt: skip
POLICY = [("export", ["ckpt=policy/policy.safetensors", "format=safetensors", "out=exported"]),
          ("record", ["ckpt=policy", "episodes=2", "out=recorded"]),
          ("replay", ["ckpt=policy/policy.safetensors", "episodes=1", "out=replayed"]),
          ("play", ["ckpt=policy/policy.safetensors", "seeds=1", "out=live.html"])]  # fmt: skip
# kind: (what is copied, glob of the files that are damaged, commands that read them)
KINDS = {
    "run": (["run"], "run/**/*", RUN),
    "checkpoint": (["run"], "run/checkpoints/*.*", FILE),
    "versions": (["tag"], "tag/**/*", [
        ("crossplay", ["tag", "episodes=2"]), ("elo", ["tag", "episodes=2", "reps=100", "versions=2"]),
        ("train", ["resume=tag", "trainer.max_iterations=3"])]),
    "supervised": (["digits"], "digits/**/*", [
        ("train", ["resume=digits", "epochs=2"]), ("evaluate", ["ckpt=digits"]), ("report", ["digits",
        "metric=accuracy", "reps=100"]),
        ("train", ["experiment=fine_tune", "init_from=digits", *SMALL, "hydra.run.dir=next"])]),
    "sweep": (["sweep"], "sweep/**/*", [
        ("train", ["-m", "experiment=threshold", "epochs=1", "seed=0,1", "hydra.sweep.dir=sweep"]),
        ("report", ["sweep", "metric=loss", "reps=100"])]),
    "study": (["study", "study.yaml"], "study*/**/*", [
        ("tune", ["study=study.yaml", "out=study", "n_trials=3", "confirm=false", "seed=0"])]),
    "table": (["table.csv", "table.npz"], "table.*", [
        ("train", ["experiment=digits", "data=csv", "data.file=table.csv", *TABLE]),
        ("train", ["experiment=digits", "data=csv_stream", "data.files=[table.csv]", *TABLE]),
        ("train", ["experiment=digits", "data=npz", "data.file=table.npz", "epochs=1", "network=mlp"])]),
    "pictures": (["pictures"], "pictures/**/*", [
        ("train", ["experiment=digits", "data=image_folder", "data.folder=pictures", "epochs=1", "network=mlp"])]),
    "idx": (["idx"], "idx/*", [("train", ["experiment=fashion_mnist", "data.folder=idx", "epochs=1"])]),
    "episodes": (["episodes", "run"], "episodes/*", [
        ("train", ["experiment=clone", "data.folder=episodes", "epochs=1", "network.hidden=[8]",
                   "task.eval_episodes=2"]),
        ("record", ["ckpt=run", "episodes=2", "out=episodes"])]),
    "policy": (["policy"], "policy/*", POLICY),
    "recording": (["replay"], "replay/*.safetensors", [
        ("replay", ["recording=replay/replay.safetensors", "formats=[png]", "out=replayed"])]),
    "cache": (["run"], "cache/*", [("train", [*AGENTS, "env.fast=kernel", "hydra.run.dir=next"]),
                                   ("train", [*AGENTS, "hydra.run.dir=next"])]),
}  # fmt: skip


def truncate(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.choice([len(content) // 2, max(0, len(content) - 1), min(len(content), 10)])])


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 20])):
        if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def head(path: Path, dice: random.Random) -> None:
    """Bytes at the beginning are others: magic numbers, sizes, counts."""
    content = bytearray(path.read_bytes())
    for i in range(min(len(content), dice.choice([4, 8, 16]))):
        content[i] = dice.choice([0, 255, dice.randrange(256)])
    path.write_bytes(content)


def replace(*contents: bytes) -> Callable[[Path, random.Random], None]:
    def damage(path: Path, dice: random.Random) -> None:
        path.write_bytes(dice.choice(contents))

    return damage


def nul(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"\0" * max(1, path.stat().st_size))


def noise(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(max(1, min(path.stat().st_size, 100_000))))


def delete(path: Path, dice: random.Random) -> None:
    path.unlink()


def folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()
    if dice.random() < 0.5:
        (path / "x").write_text("x")


def loop(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to(dice.choice([path.name, "nothing"]))


def append(path: Path, dice: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(dice.choice([b"\0" * 100, b"x", b"\xff\xfe", b"\n- a\n", b"1,2,3\n", b"}"]))


def words(path: Path, dice: random.Random) -> None:
    """Words or numbers in a text are others: a key misspelt, NaN, a wrong type."""
    text = path.read_bytes()
    old, new = dice.choice(
        [(b"0", b"nan"), (b":", b"="), (b"true", b"7"), (b"_target_", b"_tarjet_"), (b"1", b"-1"), (b"1", b"x"),
         (b",", b";"),
         (b"name", b"nmae"), (b"null", b"[]"), (b"[", b"{"), (b"\n", b"\r\n"), (b"marl.", b"nothing."), (b"e", b"\xe9"),
         (b"0.", b"1e999"), (b"seed", b"")]
    )  # fmt: skip
    path.write_bytes(text.replace(old, new, dice.choice([1, -1])))


def forbid(path: Path, dice: random.Random) -> None:
    path.chmod(0)


LISTS = replace(b"[1, 2]", b"- a\n- b\n", b"[]")
OTHER = replace(
    b"{}",
    b"null",
    b"1",
    b'"text"',
    b"x: y\n",
    b"x: &a [*a]\n",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe\x00",
    b"%PDF-1.4",
    b"{" * 5000,
)
EMPTY = replace(b"")
DAMAGES = [
    truncate,
    truncate,
    flip,
    flip,
    head,
    nul,
    noise,
    EMPTY,
    LISTS,
    OTHER,
    delete,
    folder,
    loop,
    append,
    words,
    words,
    forbid,
]


def generate(dice: random.Random, world: Path, cache: Path) -> tuple[str, str, int]:
    """What is damaged: kind, file (relative), the damage's number in DAMAGES. The command comes from `commands`."""
    able = [kind for kind, (names, _, _) in KINDS.items() if all((world / name).exists() for name in names)]
    able = [kind for kind in able if kind != "cache" or any(cache.glob("*"))]
    kind = dice.choice(able)
    place, pattern = (cache.parent, KINDS[kind][1]) if kind == "cache" else (world, KINDS[kind][1])
    files = sorted(p for p in place.glob(pattern) if p.is_file() or p.is_symlink())
    if not files:
        raise RuntimeError(f"{place / pattern}: nothing to damage")
    path = dice.choice(files)
    return kind, str(path.relative_to(place)), dice.randrange(len(DAMAGES))


def commands(kind: str, file: str) -> list[tuple[str, list[str]]]:
    """The commands that read a file of this kind."""
    return [(name, [text.replace("{file}", file) for text in arguments]) for name, arguments in KINDS[kind][2]]


def prepare(kind: str, file: str, damage: int, seed: str, here: Path, world: Path, cache: Path) -> None:
    """A fresh copy of what the kind needs in `here`, the file in it damaged; the cache is copied for "cache" only."""
    for name in KINDS[kind][0]:
        source = world / name
        shutil.copytree(source, here / name) if source.is_dir() else shutil.copy(source, here / name)
    if kind == "cache":
        shutil.copytree(cache, here / "cache")
    path = here / file
    DAMAGES[damage](path, random.Random(seed))


def mend(here: Path) -> None:
    """Give permissions back, so that the folder can be removed."""
    for path in [here, *here.rglob("*")]:
        if not path.is_symlink():
            os.chmod(path, 0o755)
