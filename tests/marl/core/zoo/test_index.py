"""zoo/NAME: what it stands for, in a folder and at an address, and what is refused: other bytes, other names, sizes."""

import functools
import hashlib
import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from marl.core import run_directory
from marl.core.errors import UserError
from marl.core.zoo import index as zoo
from marl.core.zoo import places

CONTENT = b"eight by" * 100


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path: Path) -> None:
    """The process's zoo is put back, and nothing is kept in the user's cache."""
    monkeypatch.setattr(zoo, "_chosen", None)
    monkeypatch.setattr(zoo, "_of_run", None)
    monkeypatch.setenv("MARL_ZOO_CACHE", str(tmp_path / "cache"))
    places._fetched.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A zoo of one policy, whose file is no policy: here only bytes count."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "navigation.safetensors").write_bytes(CONTENT)
    (folder / "navigation.json").write_text('{"name": "navigation"}')
    zoo.write_entry(folder, "navigation")
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of that zoo on a web server, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def change(folder: Path, **values) -> None:
    """Change the entry in the index."""
    content = json.loads((folder / "index.json").read_text())
    content["policies"]["navigation"] |= values
    (folder / "index.json").write_text(json.dumps(content))


# ---- names


def test_the_index_says_digest_and_size(folder: Path) -> None:
    zoo.use(str(folder))
    entry = zoo.entries()["navigation"]
    assert entry.sha256 == hashlib.sha256(CONTENT).hexdigest() and entry.bytes == 800
    assert zoo.card("navigation") == {"name": "navigation"}
    assert zoo.located("zoo/navigation") == zoo.located(Path("zoo/navigation/")) == folder / "navigation.safetensors"


def test_a_path_that_exists_keeps_its_meaning(folder: Path, tmp_path: Path, monkeypatch) -> None:
    zoo.use(str(folder))
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "zoo" / "navigation" / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"mine")
    assert run_directory.find("zoo/navigation") == Path("zoo/navigation/checkpoints/last.pt")
    assert run_directory.home_of("zoo/navigation/checkpoints/last.pt") == Path("zoo/navigation/checkpoints")
    assert zoo.named("zoo/navigation") is None and zoo.named("zoo/other") == "other"
    assert zoo.named("outputs/zoo/navigation") is None and zoo.named("zoo/last.pt") is None


def test_what_is_made_of_one_goes_to_outputs(folder: Path) -> None:
    zoo.use(str(folder))
    path = run_directory.find("zoo/navigation")
    assert path == folder / "navigation.safetensors"
    assert run_directory.home_of("zoo/navigation") == run_directory.beside("zoo/navigation", path)
    assert run_directory.home_of("zoo/navigation") == Path("outputs/zoo/navigation")
    assert run_directory.beside(path, path) == folder  # given as a file it is like any other


def test_an_unknown_name_is_told_with_those_there_are(folder: Path) -> None:
    zoo.use(str(folder))
    with pytest.raises(UserError) as told:
        run_directory.find("zoo/navigatoin")
    assert str(told.value) == (
        "zoo/navigatoin: the zoo has no such policy; did you mean 'navigation'? (there are navigation)"
    )


def test_packages_without_the_zoo(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zoo, "OURS", tmp_path / "docs" / "zoo")
    with pytest.raises(UserError, match=r"docs/zoo: is not there\. .* `pip install -e \. .* zoo\.url=FOLDER"):
        zoo.located("zoo/navigation")


def test_the_command_line_says_where(folder: Path) -> None:
    assert zoo.taken(["verify", f"zoo.url={folder}", "navigation"]) == ["verify", "navigation"]
    assert zoo.place() == str(folder)
    zoo.of_run(str(folder / "nothing"))  # a run's own does not count then, and need not be there any more
    assert zoo.place() == str(folder)
    zoo.use(None)
    zoo.of_run(str(folder))
    assert zoo.place() == str(folder)
    zoo.of_run(None)
    assert zoo.place() == str(zoo.OURS)
    for wrong in ("ftp://x.y/z", "file:///etc", str(folder / "nothing")):
        with pytest.raises(UserError, match=r"zoo.url=.*: must be a folder that is there, or an address"):
            zoo.taken([f"zoo.url={wrong}"])


# ---- what is not what the index says


def test_other_bytes_are_refused(folder: Path) -> None:
    zoo.use(str(folder))
    (folder / "navigation.safetensors").write_bytes(CONTENT[:-1] + b"Y")
    with pytest.raises(UserError, match="is damaged, or another file than its zoo's index.json says"):
        zoo.policy("navigation")
    (folder / "navigation.json").write_text('{"name": "another"}')
    with pytest.raises(UserError, match="is another card than index.json says"):
        zoo.card("navigation")


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"format": 2, "policies": {}}',
        {"../../up": {"sha256": "0" * 64, "card": "0" * 64, "bytes": 1}},
        {"up": {"sha256": "short", "card": "0" * 64, "bytes": 1}},
        {"up": {"sha256": "0" * 64, "card": "0" * 64, "bytes": "many"}},
        {"up": {"sha256": "0" * 64, "card": "0" * 64, "bytes": -2}},  # read(-1) would read all there is
        {"up": {"sha256": "0" * 64, "card": "0" * 64, "bytes": True}},
        {"up": {"sha256": "0" * 64, "card": "0" * 64}},
    ],
)
def test_an_index_of_another_kind_is_refused(folder: Path, content: str | dict) -> None:
    text = content if isinstance(content, str) else json.dumps({"format": 1, "policies": content})
    (folder / "index.json").write_text(text)
    zoo.use(str(folder))
    with pytest.raises(UserError, match="index.json: (cannot be read as|is no index|its entry)"):
        zoo.entries()


def test_a_further_policy_leaves_the_other_entries_as_they_are(folder: Path) -> None:
    before = json.loads((folder / "index.json").read_text())["policies"]["navigation"]
    (folder / "navigation.safetensors").write_bytes(b"swapped")
    (folder / "wheel.safetensors").write_bytes(CONTENT)
    (folder / "wheel.json").write_text("{}")
    zoo.write_entry(folder, "wheel")
    zoo.use(str(folder))
    assert list(zoo.entries()) == ["navigation", "wheel"]
    assert json.loads((folder / "index.json").read_text())["policies"]["navigation"] == before
    with pytest.raises(UserError, match="is damaged, or another file"):
        zoo.policy("navigation")


def test_a_zoo_counts_where_its_policies_play() -> None:
    assert not zoo.plays({"groups": {}}) and not zoo.plays({"groups": {"agents": {"policy": "learn", "n": None}}})
    assert zoo.plays({"groups": {"adversary": {"policy": "zoo/simple_tag"}}})


# ---- at an address


def test_a_policy_is_fetched_once_and_kept(served, tmp_path: Path) -> None:
    address, asked = served
    zoo.use(address)
    path = run_directory.find("zoo/navigation")
    assert path.read_bytes() == CONTENT and path.parent == tmp_path / "cache"
    assert path.name == f"navigation-{hashlib.sha256(CONTENT).hexdigest()[:16]}.safetensors"
    assert zoo.policy("navigation") == path and zoo.card("navigation") == {"name": "navigation"}
    assert asked == ["/index.json", "/navigation.safetensors", "/navigation.json"]
    path.write_bytes(b"spoilt")  # in the cache: it is fetched again
    assert zoo.policy("navigation").read_bytes() == CONTENT and asked.count("/navigation.safetensors") == 2


def test_what_is_fetched_is_checked_before_it_is_kept(served, folder: Path, tmp_path: Path) -> None:
    zoo.use(served[0])
    change(folder, sha256="0" * 64)
    with pytest.raises(UserError, match="navigation.safetensors is another file than index.json says"):
        zoo.policy("navigation")
    assert not (tmp_path / "cache").exists()


def test_no_more_is_fetched_than_the_index_says(served, folder: Path) -> None:
    zoo.use(served[0])
    change(folder, bytes=799)
    with pytest.raises(UserError, match="is larger than the 799 bytes that it may have"):
        zoo.policy("navigation")
    places._fetched.cache_clear()
    change(folder, bytes=places.MOST_POLICY + 1)
    with pytest.raises(UserError, match="at most 67,108,864 are fetched"):
        zoo.policy("navigation")


def test_an_address_without_an_answer_is_told(served, folder: Path) -> None:
    address, _ = served
    (folder / "navigation.safetensors").unlink()
    zoo.use(address)
    with pytest.raises(UserError, match=r"navigation.safetensors cannot be fetched: 404"):
        zoo.policy("navigation")
    for broken in ("https://.example.com", "http://127.0.0.1/z\u00f6\u00f6", "http://[x"):
        zoo.use(broken)
        with pytest.raises(UserError, match=r"zoo.url=.*: index.json cannot be fetched: "):
            zoo.entries()
    zoo.use("http://127.0.0.1:1/zoo")
    with pytest.raises(UserError, match=r"zoo.url=http://127.0.0.1:1/zoo: index.json cannot be fetched: "):
        zoo.entries()


def test_a_redirect_does_not_leave_https() -> None:
    request = urllib.request.Request("https://one.example/index.json")
    follow = places._StaysEncrypted().redirect_request
    assert follow(request, None, 302, "Found", {}, "https://two.example/index.json").full_url.startswith("https://two")
    with pytest.raises(urllib.error.HTTPError, match="leads from https to http"):
        follow(request, None, 302, "Found", {}, "http://two.example/index.json")
