"""Names of the zoo: `zoo/NAME` is a policy file, found where `zoo.url` says; a path that exists keeps its meaning.

A zoo is a folder, or a web server's: `index.json` with the digest and size of each file, and for each policy
`NAME.safetensors` and its card `NAME.json`. Nothing in them is code.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl.core import files
from marl.core.errors import UserError, closest
from marl.core.imports import CHECKOUT, INSTALL
from marl.core.zoo import places

PREFIX, INDEX, KEY, FORMAT = "zoo/", "index.json", "zoo.url", 1
OURS = CHECKOUT / "docs" / "zoo"
OUT = Path("outputs") / "zoo"  # where scripts put what they make of one: OUT/NAME
NAME, DIGEST = re.compile(r"[a-z0-9][a-z0-9_]*"), re.compile(r"[0-9a-f]{64}")

_chosen: str | None = None  # by the command line or a program
_of_run: str | None = None  # by the configuration that is at work


@dataclass(frozen=True)
class Entry:
    """A policy of a zoo: SHA-256 of its file and of its card, and the file's size in bytes."""

    sha256: str
    bytes: int
    card: str


# ---- where -----------------------------------------------------------------------------------------------------


def use(url: str | None) -> None:
    """From now on this process finds the zoo at `url`, a folder or an address, whatever a configuration says.

    None: where the configuration says, and without one in the repository.

    Raises:
        UserError: it is neither.
    """
    global _chosen
    if url is not None:
        places.check(url)
    _chosen = url


def of_run(url: str | None) -> None:
    """The zoo of the configuration that is at work from now on; `use` goes before it. Raises UserError as `use`."""
    global _of_run
    if url is not None and _chosen is None:
        places.check(url)
    _of_run = url


def chosen() -> str | None:
    """What `use` was called with last."""
    return _chosen


def place() -> str:
    """The folder or address where this process finds the zoo."""
    return _chosen or _of_run or str(OURS)


def plays(config: Mapping[str, Any]) -> bool:
    """Whether policies of the zoo play in a configuration, so that `zoo.url` is a part of its result."""
    groups = [one for one in (config.get("groups") or {}).values() if isinstance(one, Mapping)]
    return any(str(value).startswith(PREFIX) for one in groups for value in one.values())


def taken(arguments: Sequence[str]) -> list[str]:
    """`arguments` without `zoo.url=…`, with which `use` has been called. Raises UserError as `use`."""
    for argument in arguments:
        if argument.startswith(f"{KEY}="):
            use(argument.partition("=")[2].strip("'\""))
    return [argument for argument in arguments if not argument.startswith(f"{KEY}=")]


# ---- names -----------------------------------------------------------------------------------------------------


def named(run: str | Path) -> str | None:
    """NAME where `run` is `zoo/NAME`; None for everything else, and for a path that exists."""
    text = Path(run).as_posix()
    if not text.startswith(PREFIX) or text.endswith((".pt", ".safetensors")) or os.path.exists(run):
        return None
    return text.removeprefix(PREFIX)


def located(run: str | Path) -> Path:
    """The path that `run` stands for: the policy's file of `zoo/NAME`, else `run` as it is.

    Raises:
        UserError: the zoo has no policy of that name, or its file is not what the index says.
    """
    name = named(run)
    return Path(run) if name is None else policy(name)


def policy(name: str) -> Path:
    """The file of the policy `name`, on this machine and with the digest of the index. Raises UserError."""
    entry = _entry(name)
    return places.file(place(), f"{name}.safetensors", entry.sha256, entry.bytes)


def card(name: str) -> dict[str, Any]:
    """What the card of the policy `name` says. Raises UserError."""
    entry, content = _entry(name), places.text(place(), f"{name}.json")
    if hashlib.sha256(content).hexdigest() != entry.card:
        raise UserError(f"{place()}/{name}.json: is another card than {INDEX} says (its digest differs)")
    return _mapping(content, f"{place()}/{name}.json")


def entries() -> dict[str, Entry]:
    """{name: entry} of the zoo, in order of the names. Raises UserError where there is no index, or a broken one."""
    if place() == str(OURS) and not OURS.is_dir():
        raise UserError(
            f"{OURS}: is not there. The zoo lies in the checkout and in the unpacked source archive: install there "
            f"with {INSTALL}, or say zoo.url=FOLDER (or an address)"
        )
    where = f"{place()}/{INDEX}"
    content = _mapping(places.text(place(), INDEX), where)
    if content.get("format") != FORMAT or not isinstance(content.get("policies"), dict):
        raise UserError(f"{where}: is no index of a zoo of this version (format {FORMAT})")
    for name, one in content["policies"].items():
        sound = isinstance(one, dict) and one.keys() == {"sha256", "bytes", "card"}
        sound = sound and type(one["bytes"]) is int and one["bytes"] > 0
        if not sound or not NAME.fullmatch(name) or not all(DIGEST.fullmatch(str(one[k])) for k in ("sha256", "card")):
            raise UserError(f"{where}: its entry {name!r} is none: a name, two digests and a size are needed")
    return {name: Entry(**one) for name, one in sorted(content["policies"].items())}


def _entry(name: str) -> Entry:
    there = entries()
    if name not in there:
        names = ", ".join(there) or "none"
        raise UserError(f"{PREFIX}{name}: the zoo has no such policy{closest(name, there)} (there are {names})")
    return there[name]


def _mapping(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where}: cannot be read as a JSON object")
    return value


# ---- writing ---------------------------------------------------------------------------------------------------


def write_entry(folder: str | Path, name: str) -> None:
    """Put the policy `name`, which lies in `folder` with its card, into its index; other entries stay as they are.

    Raises:
        UserError: there is an index, and it cannot be read.
    """
    path, policy_file = Path(folder) / INDEX, Path(folder) / f"{name}.safetensors"
    policies = _mapping(path.read_bytes(), str(path))["policies"] if path.is_file() else {}
    content, about = policy_file.read_bytes(), policy_file.with_suffix(".json").read_bytes()
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "card": hashlib.sha256(about).hexdigest()}
    policies[name] = {**digests, "bytes": len(content)}
    files.write_json(path, {"format": FORMAT, "policies": dict(sorted(policies.items()))})
