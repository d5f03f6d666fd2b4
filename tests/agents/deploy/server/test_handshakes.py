"""TLS handshakes over real sockets: they count among the connections, end in time, and lose nothing of a request."""

import asyncio
import re
import signal
import socket
import ssl
import time

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

import httpx

from agents.deploy.server.security import Handshakes
from agents.deploy.server.settings import ServerSettings
from tests.agents.deploy.server.test_batching import make_certificate
from tests.fixtures.serving import MLP, make_policy, serving

MOST, SLOW = 4, 15  # seconds: a busy machine must not end handshakes while they are counted
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the first bytes of a ClientHello
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory) -> tuple[ssl.SSLContext, list[str]]:
    """What a client knows the server by, and the server's settings."""
    folder = tmp_path_factory.mktemp("policy")
    certificate, key = make_certificate(folder)
    make_policy(folder, MLP)
    limits = [f"max_connections={MOST}", f"slow_seconds={SLOW}"]
    settings = [f"ckpt={folder}", f"tls_certificate={certificate}", f"tls_key={key}", *limits]
    return ssl.create_default_context(cafile=certificate), settings


@pytest.fixture(scope="module")
def server(trusted):
    with serving(*trusted[1]) as running:
        yield running
        assert "Traceback" not in "".join(running.lines) and len(running.lines) == 1, running.lines


@pytest.fixture
def http(server, trusted):
    """A client whose one connection is kept open."""
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False, verify=trusted[0], limits=limits) as client:
        assert counted(client, "marl_connections") == 1
        yield client


def counted(http: httpx.Client, metric: str) -> float:
    found = re.search(rf"^{re.escape(metric)} (\S+)$", http.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def refused(http: httpx.Client, reason: str) -> float:
    return counted(http, f'marl_refused_total{{reason="{reason}"}}')


def wait_for(http: httpx.Client, connections: int) -> None:
    """Until so many connections are open."""
    deadline = time.monotonic() + 30
    while (now := counted(http, "marl_connections")) != connections:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)  # the server needs the core


def until_closed(line: socket.socket) -> bytes:
    """What still comes."""
    answer = b""
    try:
        while part := line.recv(65536):
            answer += part
    except ConnectionError:
        pass
    return answer


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def test_a_handshake_is_a_connection_that_counts_and_ends(server, http, trusted) -> None:
    busy, failed = refused(http, "busy"), refused(http, "handshake")
    lines = [connect(server) for _ in range(MOST - 1)]  # and the client's own
    try:
        lines[0].sendall(HELLO)  # the others say nothing at all
        wait_for(http, MOST)
        with connect(server) as more:
            assert until_closed(more) == b""  # at once: the others still hold their places
        assert refused(http, "busy") == busy + 1 and counted(http, "marl_connections") == MOST
        assert refused(http, "handshake") == failed
        for line in lines:
            assert until_closed(line) == b""  # the server's patience is at its end
        assert refused(http, "handshake") == failed + MOST - 1 and counted(http, "marl_connections") == 1
    finally:
        for line in lines:
            line.close()
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False, verify=trusted[0]) as another:
        assert another.get("/health").status_code == 200


def test_a_server_that_ends_waits_for_no_handshake(trusted) -> None:
    """With a patience of ten minutes: one that was silent is closed at once, and so is the process."""
    settings = [each for each in trusted[1] if not each.startswith("slow_seconds")]
    with serving(*settings, "slow_seconds=600", "drain_seconds=0") as running, connect(running) as line:
        with httpx.Client(base_url=running.url, timeout=60, trust_env=False, verify=trusted[0]) as client:
            wait_for(client, 2)
        running.process.send_signal(signal.SIGTERM)
        line.settimeout(30)
        assert until_closed(line) == b""
        assert running.process.wait(30) == 0


def test_the_end_closes_what_shakes_hands(tmp_path) -> None:
    """In a loop of its own, since the end of a process would close its sockets as well."""
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    refusals: list[str] = []

    async def scene() -> bytes:
        made = Handshakes(context, ServerSettings(slow_seconds=600), (), asyncio.Protocol, refusals.append)
        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        while not made.under_way:
            await asyncio.sleep(0.01)
        made.end()
        said = await asyncio.wait_for(reader.read(), 30)
        assert not made.under_way
        writer.close()
        server.close()
        return said

    assert asyncio.run(scene()) == b"" and refusals == []


OTHERS = {"plain HTTP": HEALTH, "no protocol": bytes(range(256)) * 8, "another record": b"\x17\x03\x03\x00\x05hello"}


@pytest.mark.parametrize("said", OTHERS.values(), ids=OTHERS)
def test_what_is_no_handshake_leaves_its_place_at_once(server, http, said: bytes) -> None:
    failed = refused(http, "handshake")
    for _ in range(2 * MOST):
        with connect(server) as line:
            line.sendall(said)
            assert b"200" not in until_closed(line)
    assert refused(http, "handshake") == failed + 2 * MOST and counted(http, "marl_connections") == 1


def test_who_does_not_trust_the_certificate_leaves_its_place(server, http) -> None:
    for _ in range(2 * MOST):
        with connect(server) as line, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(line, server_hostname="localhost")
    wait_for(http, 1)  # the last one's end is on its way
    assert http.get("/health").status_code == 200


def answer_of(client: ssl.SSLObject, incoming: ssl.MemoryBIO, line: socket.socket) -> bytes:
    """The first bytes that the server sent decrypted."""
    while True:
        try:
            return client.read(65536)
        except ssl.SSLWantReadError:
            part = line.recv(65536)
            assert part, "closed without an answer"
            incoming.write(part)


@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_request_that_comes_with_the_end_of_the_handshake(server, http, trusted, version, leaves: bool) -> None:
    """With TLS 1.3 in one piece: the server decrypts the request before the connection has its own protocol."""
    context = ssl.create_default_context(cafile=trusted[1][1].partition("=")[2])
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    failed = refused(http, "handshake")
    with connect(server) as line:
        done = False
        while not done:
            try:
                client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    line.sendall(outgoing.read())
                incoming.write(line.recv(65536))
        client.write(HEALTH)
        if leaves:
            with pytest.raises(ssl.SSLWantReadError):
                client.unwrap()
        line.sendall(outgoing.read())  # with TLS 1.3 the client's last part of the handshake, too
        if leaves:
            until_closed(line)
        else:
            assert answer_of(client, incoming, line).startswith(b"HTTP/1.1 200 OK")
    wait_for(http, 1)
    assert refused(http, "handshake") - failed <= leaves
