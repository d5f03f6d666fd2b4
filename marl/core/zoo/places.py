"""Where a zoo's files are read from: a folder, or an address whose files are kept in a cache folder."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

from marl.core import files
from marl.core.errors import UserError

ADDRESS = ("http://", "https://")
TIMEOUT = 30.0  # seconds without an answer
MOST_TEXT, MOST_POLICY = 1 << 20, 64 << 20  # bytes of an index or a card, and of a policy


class _StaysEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201 - urllib's signature
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise urllib.error.HTTPError(newurl, code, f"leads from https to {newurl.split(':')[0]}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_StaysEncrypted)


def check(url: str) -> None:
    """Raise UserError where `url` is neither a folder nor an address of HTTP."""
    if not url.startswith(ADDRESS) and ("://" in url or not Path(url).is_dir()):
        raise UserError(f"zoo.url={url}: must be a folder that is there, or an address (https://… or http://…)")


def text(place: str, name: str) -> bytes:
    """An index or a card of the zoo at `place`. Raises UserError where it cannot be read."""
    return _fetched(place, name) if place.startswith(ADDRESS) else _read(Path(place) / name, MOST_TEXT)


@lru_cache(maxsize=256)
def _fetched(place: str, name: str) -> bytes:
    """Once in a process: a command looks its policy up more than once."""
    return _fetch(place, name, MOST_TEXT)


def file(place: str, name: str, sha256: str, size: int) -> Path:
    """A file of the zoo at `place`, on this machine: what `size` (bytes) and digest the index says.

    From an address it is fetched unless the cache folder ($MARL_ZOO_CACHE, else ~/.cache/marl_zoo) has it.

    Raises:
        UserError: it cannot be had, is too large, or is another file than the index says.
    """
    if not place.startswith(ADDRESS):
        path = Path(place) / name
        if hashlib.sha256(_read(path, MOST_POLICY)).hexdigest() != sha256:
            raise UserError(f"{path}: is damaged, or another file than its zoo's index.json says (its digest differs)")
        return path
    if size > MOST_POLICY:
        raise UserError(f"zoo.url={place}: {name} has {size:,} bytes; at most {MOST_POLICY:,} are fetched")
    path = _cache() / f"{Path(name).stem}-{sha256[:16]}{Path(name).suffix}"
    if path.is_file() and hashlib.sha256(_read(path, MOST_POLICY)).hexdigest() == sha256:
        return path
    content = _fetch(place, name, size)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"zoo.url={place}: {name} is another file than index.json says (its digest differs)")
    files.write(path, content)
    return path


def _cache() -> Path:
    try:
        return Path(os.environ.get("MARL_ZOO_CACHE") or Path.home() / ".cache" / "marl_zoo")
    except RuntimeError as error:
        raise UserError(f"zoo.url: there is no home folder ({error}); MARL_ZOO_CACHE names a cache folder") from None


def _read(path: Path, most: int) -> bytes:
    try:
        with open(path, "rb") as opened:
            return _limited(opened.read(most + 1), most, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {files.reason(error)}") from error


def _fetch(place: str, name: str, most: int) -> bytes:
    address = f"{place.rstrip('/')}/{name}"
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "marl-engine"})
        with _OPENER.open(request, timeout=TIMEOUT) as answer:
            return _limited(answer.read(most + 1), most, address)
    except urllib.error.HTTPError as error:
        raise UserError(f"zoo.url={place}: {name} cannot be fetched: {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # no address, no route, too slow, cut short
        why = getattr(error, "reason", error)
        why = files.reason(why) if isinstance(why, Exception) else why
        raise UserError(f"zoo.url={place}: {name} cannot be fetched: {why}") from error


def _limited(content: bytes, most: int, where: str) -> bytes:
    if len(content) > most:
        raise UserError(f"{where}: is larger than the {most:,} bytes that it may have")
    return content
