"""A server's life: new versions under load, sessions of old ones, its end under load, and how it refuses to begin."""

import gc
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

import httpx

from agents.deploy.client import Client, ServerRefused
from agents.deploy.server import run
from agents.deploy.server.settings import ServerSettings
from marl.core.errors import UserError
from tests.agents.deploy.server.test_batching import make_certificate
from tests.fixtures.serving import GRU, MLP, make_policy, serving
from tests.scripts.conftest import script  # noqa: F401 - a fixture

SEEN = {"red": np.full((1, 2, 5), 0.5, "f4"), "blue": np.full((1, 3, 3), -0.5, "f4")}
BODY = b"".join(value.tobytes() for value in SEEN.values())
RAW = {"content-type": "application/octet-stream"}


class Load:
    """Clients in threads that ask again and again over kept connections, until each is told to go or `stop` is set."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url, self.stop = url, threading.Event()
        self.answers: Counter[tuple[int, str, bytes]] = Counter()
        self.lost: list[str] = []
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            while not self.stop.is_set():
                try:
                    answer = http.post("/v1/act", content=BODY, headers=RAW)
                except httpx.HTTPError as error:  # a request that was sent and not answered
                    self.lost.append(repr(error))
                    return
                self.answers[answer.status_code, answer.headers.get("x-version", ""), answer.content] += 1
                if answer.headers.get("connection") == "close":
                    return

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        while self.answers.total() < 20 and not self.lost:
            self.stop.wait(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def expected(policy) -> bytes:
    actions = policy.act({name: torch.from_numpy(value) for name, value in SEEN.items()})
    return b"".join(value.numpy().astype("f4").tobytes() for value in actions.values())


def close(a: bytes, b: bytes) -> bool:
    return np.allclose(np.frombuffer(a, "f4"), np.frombuffer(b, "f4"), atol=1e-6, rtol=0)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_versions_are_swapped_and_the_server_ended_under_load(tmp_path: Path) -> None:
    place = tmp_path / "team"
    old, new = make_policy(place, MLP, seed=0), make_policy(tmp_path / "new", MLP, seed=1)
    make_policy(tmp_path / "other", GRU, seed=1)
    with serving(f"ckpt={place}", "drain_seconds=0.5") as server, Client(server.url) as client:
        session = client.session()
        first = session.act(SEEN)
        with Load(server.url) as load:
            os.replace(tmp_path / "new" / "policy.safetensors", place / "policy.safetensors")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("version 2 serves")
            seen = load.answers.total()
            while load.answers.total() < seen + 20 and not load.lost:
                load.stop.wait(0.01)
        assert not load.lost and {status for status, _, _ in load.answers} == {200}
        versions = {version: content for _, version, content in load.answers}
        assert close(versions["1"], expected(old)) and close(versions["2"], expected(new))
        assert not close(versions["1"], versions["2"])
        same = session.act(SEEN)  # the version that it began with
        assert all(np.allclose(same[name], first[name], atol=1e-6) for name in first)
        assert client.model()["version"] == 2 and not close(flat(first), flat(client.act(SEEN)))
        with client.session() as later:
            assert close(flat(later.act(SEEN)), flat(client.act(SEEN)))
        (place / "policy.safetensors").write_bytes(b"no policy")
        server.process.send_signal(signal.SIGHUP)
        assert "version 2 stays" in server.wait_for("stays; policies.default=")
        shutil.copy(tmp_path / "other" / "policy.safetensors", place / "policy.safetensors")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("version 2 stays; the new one has other sizes of memory")  # the same groups, with a memory
        assert client.model()["version"] == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_memory_that_the_client_keeps_belongs_to_a_version(tmp_path: Path) -> None:
    make_policy(tmp_path, GRU)
    with serving(f"ckpt={tmp_path}") as server, Client(server.url) as client:
        _, kept = client.act(SEEN, memory={})
        _, kept = client.act(SEEN, memory=kept)
        assert kept.version == "1"
        new = make_policy(tmp_path, GRU, seed=1)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("version 2 serves")
        with pytest.raises(
            ServerRefused, match="version: 2 of default serves, not 1, whose memory means no"
        ) as refused:
            client.act(SEEN, memory=kept)
        assert refused.value.status == 409
        actions, kept = client.act(SEEN, memory={})
        tensors = {name: torch.from_numpy(value) for name, value in SEEN.items()}
        assert kept.version == "2" and close(flat(actions), flat(new.act(tensors, memory=new.memory(1))[0]))


def flat(actions: dict) -> bytes:
    return b"".join(np.asarray(value).astype("f4").tobytes() for value in actions.values())


def test_sigterm_under_load_loses_no_request(tmp_path: Path) -> None:
    """Each client stops where an answer closes its connection; until then every request has its answer."""
    make_policy(tmp_path, MLP)
    with serving(f"ckpt={tmp_path}", "drain_seconds=1", "session_seconds=3", "watch_seconds=0.1") as server:
        with Client(server.url) as client, client.session() as session:
            session.act(SEEN)
            make_policy(tmp_path, MLP, seed=1)  # the server looks by itself
            server.wait_for("version 2 serves")
            time.sleep(3.5)
            with pytest.raises(ServerRefused, match="they end 3 s after their last use"):
                session.act(SEEN)
        with Load(server.url) as load:
            server.process.send_signal(signal.SIGTERM)
            for thread in load.threads:  # nothing but the server ends them
                thread.join(60)
                assert not thread.is_alive()
        assert not load.lost and {status for status, _, _ in load.answers} == {200}
        assert server.process.wait(60) == 0 and len(server.lines) == 2, server.lines


def test_over_tls_and_ctrl_c(tmp_path: Path) -> None:
    make_policy(tmp_path, MLP)
    certificate, key = make_certificate(tmp_path)
    with serving(f"ckpt={tmp_path}", f"tls_certificate={certificate}", f"tls_key={key}", "max_rate=3") as server:
        assert server.url.startswith("https://")
        with Client(server.url, verify=ssl.create_default_context(cafile=certificate), retries=0) as client:
            assert client.act(SEEN)["red"].shape == (1, 2, 2)
            with pytest.raises(ServerRefused, match="more than 3 requests per second") as refused:
                for _ in range(100):
                    client.act(SEEN)
            assert refused.value.status == 429
        with Client(server.url, retries=0) as client, pytest.raises(ServerRefused, match="CERTIFICATE_VERIFY_FAILED"):
            client.model()  # no authority of the usual ones has signed it
        with Client(server.url.replace("https", "http"), retries=0) as client, pytest.raises(ServerRefused):
            client.model()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0 and "Traceback" not in "".join(server.lines)


BAD = [
    ([], "ckpt=RUN_DIR is needed, or policies.NAME=RUN_DIR"),
    (["ckpt=none"], "no checkpoint at none"),
    (["ckpt=zoo/balance", "policies.default=zoo/balance"], "policies.default=zoo/balance: there are two policies"),
    (["policies.=zoo/balance"], "policies.=zoo/balance: must be policies.NAME=RUN_DIR with a name of letters"),
    (["policies.a=zoo/balance", "port=70000"], "port=70000"),
    (["ckpt=zoo/balance", "max_btch=3"], "unknown key 'max_btch'; did you mean 'max_batch'"),
    (["ckpt=zoo/balance", "max_wait_ms=-1"], "max_wait_ms=-1"),
    (["ckpt=zoo/balance", "backend=tensorrt"], "backend=tensorrt"),
    (["ckpt=zoo/balance", "host=0.0.0.0"], "host=0.0.0.0: others than this machine may ask then"),
    (["ckpt=zoo/balance", "host=203.0.113.7", "token_file=token"], "port=8000: Cannot assign requested address"),
    (["ckpt=zoo/balance", "tls_key=key.pem"], "tls_key=key.pem: needs tls_certificate, too"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_mistakes_end_with_one_sentence(arguments: list[str], sentence: str, script, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARL_SERVE_TOKEN", raising=False)
    Path("token").write_text("0123456789abcdef")
    module = script("serve")
    with pytest.raises(UserError) as error:
        module.run(*module.parse(arguments))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_has_exit_code_2(shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "serve", "ckpt=zoo/balance", "host=0.0.0.0")
    assert done.returncode == 2 and done.stderr.startswith("error: host=0.0.0.0: others") and not done.stdout


def test_a_port_that_is_taken(script) -> None:  # noqa: F811
    module = script("serve")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port={port}: Address already in use; port=0 takes any that is free"):
            module.run(*module.parse(["ckpt=zoo/balance", f"port={port}"]))


def test_it_says_that_it_serves_once_it_listens(tmp_path: Path, monkeypatch) -> None:
    """Who reads the line asks at once, and would be refused before."""
    make_policy(tmp_path, MLP)
    lines: list[str] = []

    class Heard(Exception):
        pass

    def hear(line: str) -> None:
        lines.append(line)
        port = int(line.split("/")[2].rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
        raise Heard

    monkeypatch.setattr(run, "say", hear)
    with pytest.raises(Heard):
        run.serve({"team": str(tmp_path)}, "last", ServerSettings(port=0))
    assert gc.get_freeze_count() == 0
    assert len(lines) == 1 and lines[0].endswith("/ serves team (Ctrl-C ends it)")


def test_a_missing_package_is_reported_in_a_sentence(script, monkeypatch) -> None:  # noqa: F811
    for name in [name for name in sys.modules if name.startswith("agents.deploy.server.")]:
        if not name.endswith("settings"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    module = script("serve")
    with pytest.raises(UserError, match=r"uvicorn is not installed; run pip install -e '\.\[serving\]'"):
        module.run(*module.parse(["ckpt=zoo/balance"]))
