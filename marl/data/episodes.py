"""Data sets of episodes on the disk: shards of safetensors under a JSON manifest, written whole or not at all.

A shard holds N episodes of S steps in all, one after the other, as flat tensors:

    length                int64 [N]             steps of each episode
    GROUP/observation     float32 [S, A, F]     what the agents saw
    GROUP/action          float32 or int64 [S, A, D], in the environment's units
    GROUP/raw             the same before squashing or clipping, where the policy told it
    GROUP/reward          float32 [S, A]
    GROUP/action_mask     bool [S, A, sum(nvec)], and GROUP/alive bool [S, A], where the environment has them
    GROUP/terminated, GROUP/truncated bool [S, A], where agents' episodes end each on its own; then also
    GROUP/next_observation    float32 [S, A, F]     where the step led, of an agent that ended: where it ended
    GROUP/final_observation   float32 [N, A, F]     where the episode ended
    state, final_state    float32 [S, X], [N, X]    the global state, where the environment has one
    terminated, truncated bool [S]

`manifest.json` comes last and names the shards, so a folder that a killed process left has no half data set in it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tensordict import TensorDict
from torch import Tensor

from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from marl.data.base import Count, Fraction, Seed, split
from marl.data.table import check_finite, located, reading

FORMAT = 1
MANIFEST = "manifest.json"
FINAL = "episodes.safetensors"  # beside a memory-mapped copy: what there is per episode
PER_EPISODE = ("length", "final_state")  # and GROUP/final_observation: all else is per step

ADDED = (("next", "done"), ("episode",), ("step",))  # to a shard's tensors by `nested`

Flat = Mapping[str, Tensor]
More = ConfigDict(extra="allow", strict=True)


class _Shard(BaseModel):
    """What a manifest says of a shard, as far as it is read here; the file lies in the manifest's own folder."""

    model_config = More
    file: Annotated[str, Field(pattern=r"^episodes-\d+\.safetensors$")]
    episodes: Count
    steps: Count


class _Totals(BaseModel):
    model_config = More
    total_episodes: Count
    total_steps: Count


class _Spec(BaseModel):
    model_config = More
    groups: dict[str, dict[str, Any]]


class _Manifest(BaseModel):
    """What a manifest must have, no matter what wrote it."""

    model_config = More
    spec: _Spec
    tensors: list[str]
    shards: Annotated[list[_Shard], Field(min_length=1)]
    metadata: _Totals


def per_episode(name: str) -> bool:
    """Whether the tensor `name` of a shard has a row per episode rather than per step."""
    return name in PER_EPISODE or name.endswith("/final_observation")


def manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a data set. Raises UserError where there is none, one of another format, or a damaged one."""
    path = located(f"data.folder={folder}", folder) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"data.folder={folder}: no data set of episodes ({MANIFEST} is missing); "
            f"python scripts/record.py ckpt=RUN_DIR out={folder} writes one"
        )
    with reading(path, "manifest of episodes"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no manifest of episodes, but a {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')}; this version reads {FORMAT}")
    try:
        _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{path}: is no manifest of episodes ({where}: {what})") from None
    return content


def append(folder: str | Path, episodes: Flat, about: Mapping[str, Any], source: str = "") -> Path:
    """Add a shard to the data set in `folder`, which is begun where there is none; returns the shard's path.

    Args:
        episodes: the shard's tensors, as in the head of this file.
        about: what the manifest tells of the whole: "spec", "env", "policy", "metadata", …; kept from the first shard.
        source: who acted in these episodes.

    Raises:
        UserError: the folder's data set is of other agents ("spec" differs), or the disk refuses.
    """
    folder = Path(folder).expanduser()
    continued = (folder / MANIFEST).is_file()
    content = manifest(folder) if continued else {"format": FORMAT, **about, "tensors": sorted(episodes), "shards": []}
    if content["spec"]["groups"] != json.loads(json.dumps(about["spec"]["groups"])):
        raise UserError(f"{folder}: holds episodes of other agents; give another folder")
    if content["tensors"] != sorted(episodes):
        odd = sorted(set(content["tensors"]) ^ set(episodes))
        raise UserError(f"{folder}: its episodes differ from these in having {', '.join(odd)} or not; give another")
    path = folder / f"episodes-{len(content['shards']):05d}.safetensors"
    checkpoint_file.save_weights(path, episodes, {"format": str(FORMAT)})
    counts = {"episodes": len(episodes["length"]), "steps": int(episodes["length"].sum())}
    content["shards"].append({"file": path.name, **counts, "source": source, "bytes": path.stat().st_size})
    totals = {f"total_{name}": sum(shard[name] for shard in content["shards"]) for name in counts}
    content["metadata"] = {**content.get("metadata", {}), **totals}
    checkpoint_file.write(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
    return path


def shards(folder: str | Path) -> Iterator[dict[str, Tensor]]:
    """The shards' tensors, one shard after the other.

    Raises UserError where one is missing or damaged, isn't what the manifest says, or holds what is not finite.
    """
    folder = Path(folder).expanduser()
    content = manifest(folder)
    for shard in content["shards"]:
        path = folder / shard["file"]
        yield _checked(checkpoint_file.load_weights(path), path, content["tensors"], shard["episodes"], shard["steps"])


def _checked(shard: dict[str, Tensor], path: Path, names: list[str], episodes: int, steps: int) -> dict[str, Tensor]:
    if sorted(shard) != sorted(names):
        odd = ", ".join(sorted(set(names) ^ set(shard)))
        raise UserError(f"{path}: differs from what {MANIFEST} says in having {odd} or not")
    for name in ("length", "terminated", "truncated"):
        if name not in shard or shard[name].dim() != 1:
            raise UserError(f"{path}: has no row of {name}")
    length = shard["length"]
    if length.is_floating_point() or (length < 1).any() or length.sum() != steps:
        raise UserError(f"{path}: its episodes are not the {steps} steps long that {MANIFEST} says")
    for name, value in shard.items():
        rows = episodes if per_episode(name) else steps
        if not value.dim() or len(value) != rows:
            raise UserError(f"{path}: {name} has the shape {list(value.shape)}; {MANIFEST} says {rows} rows")
        check_finite(value, lambda at, name=name: f"{name}{at} of {path}")
    return shard


def mapped(folder: str | Path, target: str | Path | None = None) -> TensorDict:
    """The whole data set as a memory-mapped TensorDict [S] under TorchRL's names; written once, then only opened.

    ("GROUP", "observation" | "action" | "raw"), ("next", "GROUP", "reward"), ("next", "terminated" | "truncated" |
    "done") and, to tell the episodes apart, "episode" and "step" (int64). Where agents end each on its own also
    ("next", "GROUP", "terminated" | "truncated" | "observation"). The shards pass through memory one by one.

    target: where the files lie; None: `memmap/` in the folder. Files of an older manifest are replaced.
    Raises UserError as `shards`.
    """
    folder = Path(folder).expanduser()
    target = Path(target) if target else folder / "memmap"
    text = (folder / MANIFEST).read_text() if manifest(folder) else ""
    if not (target / MANIFEST).is_file() or (target / MANIFEST).read_text() != text:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        start, episode, ends = 0, 0, []
        steps: TensorDict | None = None
        total = manifest(folder)["metadata"]["total_steps"]
        for shard in shards(folder):
            part = nested(shard, episode)
            if steps is None:
                steps = cast(TensorDict, part[:1].expand(total)).memmap_like(str(temporary))
            steps[start : start + len(part)] = part
            start, episode = start + len(part), episode + len(shard["length"])
            ends.append({name: value for name, value in shard.items() if per_episode(name)})
        checkpoint_file.save_weights(temporary / FINAL, _joined(ends), {"format": str(FORMAT)})
        (temporary / MANIFEST).write_text(text)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    with reading(target, "memory-mapped copy of the episodes; remove it, and it is written again"):
        steps = TensorDict.load_memmap(target, allow_pickle=False)
        expected = {_key(name) for name in manifest(folder)["tensors"] if not per_episode(name)} | set(ADDED)
        keys = {key if isinstance(key, tuple) else (key,) for key in steps.keys(True, True)}
        if keys != expected or len(steps) != manifest(folder)["metadata"]["total_steps"]:
            raise ValueError(f"it holds {len(steps)} steps of {len(keys)} tensors")
    return steps


def _key(name: str) -> tuple[str, ...]:
    """TorchRL's name of the shards' tensor `name`."""
    key = tuple(name.split("/"))
    if key[-1] == "next_observation":
        return ("next", *key[:-1], "observation")
    return ("next", *key) if key[-1] in ("reward", "terminated", "truncated") else key


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def nested(flat: Flat, first: int = 0) -> TensorDict:
    """A shard's steps as a TensorDict [S] under TorchRL's names; `first` is the number of its first episode."""
    length = flat["length"]
    rows: dict[tuple[str, ...], Tensor] = {}
    for name, value in flat.items():
        if not per_episode(name):
            rows[_key(name)] = value
    rows["next", "done"] = flat["terminated"] | flat["truncated"]
    rows["episode",] = torch.repeat_interleave(torch.arange(first, first + len(length)), length)
    begins = length.cumsum(0) - length
    rows["step",] = torch.arange(int(length.sum())) - torch.repeat_interleave(begins, length)
    steps = TensorDict({}, batch_size=[int(length.sum())])
    for key, value in rows.items():
        steps[key] = value
    return steps


class Episodes:
    """A recorded data set, its episodes split into those to learn from and those held out.

    Attributes:
        manifest: what `manifest.json` says.
        steps: TensorDict [S] of all steps (`nested`), in memory or memory-mapped.
        final: {name: tensor [N, ...]} what a shard has per episode, such as "length" and "GROUP/final_observation".
        train, validation: int64, which rows of `steps` belong to the split: whole episodes, dealt by `seed`.

    memmap: read from a memory-mapped copy, for sets larger than memory. Raises UserError as `manifest` and `shards`.
    """

    def __init__(
        self,
        folder: str,
        validation: Fraction = 0.1,
        episodes: Annotated[int, Field(ge=2)] | None = None,
        seed: Seed = 0,
        memmap: bool = False,
    ) -> None:
        self.folder, self.manifest = folder, manifest(folder)
        if memmap:
            self.steps = mapped(folder)
            self.final = checkpoint_file.load_weights(Path(folder).expanduser() / "memmap" / FINAL)
        else:
            parts, first, ends = [], 0, []
            for shard in shards(folder):
                parts.append(nested(shard, first))
                ends.append({name: value for name, value in shard.items() if per_episode(name)})
                first += len(shard["length"])
            self.steps = torch.cat(parts) if len(parts) > 1 else parts[0]
            self.final = _joined(ends)
        total = self.manifest["metadata"]["total_episodes"]
        count = total if episodes is None else episodes
        if not 2 <= count <= total:
            raise UserError(f"data.episodes={episodes}: {folder} holds {total} episodes; from 2 to {total} are allowed")
        owner = cast(Tensor, cast(TensorDict, self.steps)["episode"])
        training, held_out = split(count, {"data.validation": validation}, seed)
        if not len(held_out):
            raise UserError(f"data.validation={validation}: less than one of {count} episodes; at least {1 / count}")
        self.train = torch.isin(owner, training).nonzero().squeeze(-1)
        self.validation = torch.isin(owner, held_out).nonzero().squeeze(-1)
