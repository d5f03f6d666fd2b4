"""What one connection may cost: requests ahead of their answers, long heads and trailers, answers that are not read."""

import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

import httpx

from agents.deploy.server.connections import HEAD, WAITING
from tests.agents.deploy.server.test_batching import make_certificate
from tests.fixtures.serving import MLP, ROOT, make_policy, serving

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST /v1/act HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    make_policy(folder, MLP)
    with serving(f"ckpt={folder}", "slow_seconds=2") as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


def counted(http: httpx.Client, metric: str) -> float:
    found = re.search(rf"^{re.escape(metric)} (\S+)$", http.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def talk(server, *pieces: bytes) -> bytes:
    """What the server answers to these bytes, until it closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
            while part := line.recv(65536):
                answer += part
        except ConnectionError:  # closed while we were still sending
            pass
    return answer


def test_a_few_requests_may_come_before_their_answers(server) -> None:
    last = HEALTH.replace(b"Host", b"Connection: close\r\nHost")
    answer = talk(server, HEALTH * (WAITING - 1) + last)
    assert answer.count(b"HTTP/1.1 200 OK") == WAITING == answer.count(b'{"status":"alive"}')


def test_many_requests_before_their_answers_are_not_kept(server, http) -> None:
    refused = counted(http, 'marl_refused_total{reason="busy"}')
    asked = counted(http, 'marl_requests_total{route="/health",status="200"}')
    answer = talk(server, HEALTH * 2000)
    assert b" 400 " not in answer, "it would be taken for the first one's answer"
    assert counted(http, 'marl_refused_total{reason="busy"}') == refused + 1
    assert counted(http, 'marl_requests_total{route="/health",status="200"}') - asked <= WAITING + 1


HEADS = {
    "one header": b"GET /health HTTP/1.1\r\nHost: localhost\r\na: " + b"b" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 4_000 + b"\r\n",
    "the address": b"GET /health?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "trailers": CHUNKED + b"0\r\n" + b"a: b\r\n" * 4_000 + b"\r\n",
    "one trailer without end": CHUNKED + b"0\r\na: " + b"b" * 400_000,
    "headers and trailers": CHUNKED.replace(b"\r\n\r\n", b"\r\na: " + b"b" * (HEAD // 2) + b"\r\n\r\n") + b"0\r\na: "
    + b"b" * (HEAD // 2) + b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("message", HEADS.values(), ids=HEADS)
def test_long_heads_and_trailers_however_they_arrive(server, http, message: bytes) -> None:
    refused = counted(http, 'marl_refused_total{reason="size"}')
    answer = talk(server, message)
    assert b" 200 " not in answer and b" 415 " not in answer
    assert counted(http, 'marl_refused_total{reason="size"}') == refused + 1
    body = CHUNKED + b"1\r\n{\r\n" * 5_000 + b"0\r\na: b\r\n\r\n"  # longer than a head may be, and no part of one
    assert b" 415 " in talk(server, body.replace(b"Host", b"Connection: close\r\nHost"))


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_who_does_not_read_is_cut_off(server, http, secured: bool, tmp_path: Path) -> None:
    """Answers fill what the kernel holds; then the server waits for slow_seconds, and neither longer nor for ever."""
    if not secured:
        fill(server, http, lambda line: line)
        return
    certificate, key = make_certificate(tmp_path)
    make_policy(tmp_path, MLP)
    context = ssl.create_default_context(cafile=certificate)
    with (
        serving(f"ckpt={tmp_path}", "slow_seconds=2", f"tls_certificate={certificate}", f"tls_key={key}") as other,
        httpx.Client(base_url=other.url, timeout=60, trust_env=False, verify=context) as secure,
    ):
        fill(other, secure, lambda line: context.wrap_socket(line, server_hostname="localhost"))


def fill(server, http: httpx.Client, wrapped: Callable[[socket.socket], socket.socket]) -> None:
    """Ask over one connection, and never read, until the server cuts it off."""
    page = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n"
    route, unread = 'marl_requests_total{route="/docs",status="200"}', 'marl_refused_total{reason="unread"}'
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", server.port))
        line = wrapped(line)
        deadline, asked = time.monotonic() + 50, counted(http, route)
        while not counted(http, unread):
            assert time.monotonic() < deadline, "the connection is held for ever"
            if counted(http, route) == asked and not counted(http, unread):
                line.sendall(page * WAITING)
                asked += WAITING
        line.close()
    assert counted(http, unread) == 1 and counted(http, "marl_connections") == 1
    assert "Traceback" not in "".join(server.lines)


def test_the_health_check_of_the_container(server) -> None:
    text = Path(ROOT, "Dockerfile.serve").read_text()
    command = re.search(r"^HEALTHCHECK .*? CMD (\[.*?\])$", text, re.S | re.M)[1]
    code = json.loads(command.replace("\\\n", ""))[2]
    nowhere = "http://127.0.0.1:9"

    def check(url: str) -> int:
        environment = {"HEALTH_URL": url, "http_proxy": nowhere, "HTTP_PROXY": nowhere}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode

    assert check(f"{server.url}health") == 0 and check(f"{nowhere}/health") == 1
