"""Requests that are no good, thousands of them, against a server: none gets in, none takes it down.

    python tests/trials/malformed_requests.py --count 10000 --seed 0

Most are good requests that were spoilt: bytes changed, cut, doubled; odd numbers, keys, lengths; heads that are no
HTTP; some stop half way and wait. Exit code 0 where none without the token was served, no request failed inside of the
server, and it answers as before. The line says how often each status came back; 0 stands for a connection that was
closed without one.
"""

import argparse
import json
import os
import random
import socket
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fixtures.serving import GRU, make_policy, serving  # noqa: E402

ODD = ["NaN", "1e999", "-1", "null", '"x"', "[]", "{}", "true", "1" * 400, "[[" * 60, '"\\ud800"', "0.1e", "--", "\x00"]
HEADERS = [
    *("content-length: -1", "content-length: 99999999999", "content-length: x", "transfer-encoding: chunked"),
    *("transfer-encoding: gzip, chunked", "expect: 100-continue", "upgrade: websocket\r\nconnection: upgrade"),
    *("content-type: text/html", "a" * 9000 + ": b", "host:", "content-encoding: gzip", ": x", "x: \x01"),
]
QUERIES = [
    *("seed=x", "seed=1e5", "groups=", "groups=,", "parts=", "parts=observations,observations", "a=b&" * 30, "%%%"),
    *("session=" + "z" * 3000, "policy=%00%ff", "deterministic=perhaps", "reset=2", "\xe9"),
]
PATHS = ["/v1/sessions", "/v1/model", "/", "/v1/../act", "/v1/act/", "//", "*", "/%2e%2e", *["/v1/act"] * 3]
METHODS = ["GET", "PUT", "DELETE", "HEAD", "CONNECT", "PRI", "post", "", *["POST"] * 3]
BODIES = [b"[" * 5000, b"{" * 5000, b'{"a":' * 900, b"\xff" * 200, b" " * 4990, b"{}" * 2400, b'"' * 999]
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
TOKEN, THREADS = "of-this-trial-alone", 40
SLOW = 0.02  # of all: they stop half way and wait for the server's patience to end


def spoilt(dice: random.Random, token: str) -> tuple[bytes, bool]:
    """A request, and whether it bears the token."""
    authorized = dice.random() < 0.85
    method, path, extra, query = "POST", "/v1/act", [], ""
    good = {"observations": {"red": {"a": [0.0] * 5, "b": [1.0] * 5}}, "memory": {}, "seed": 3}
    body = json.dumps(good).encode()
    kind = "application/json"
    way = dice.randrange(7)
    if way == 0:  # bytes of the body
        changed = bytearray(body)
        for _ in range(dice.randint(1, 5)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        body = bytes(changed[: dice.choice([len(changed), dice.randrange(len(changed))])])
    elif way == 1:  # odd values
        body = body.replace(dice.choice([b"0.0", b"1.0", b"3", b"{}", b'"a"']), dice.choice(ODD).encode(), 1)
    elif way == 2:  # raw bodies
        kind, query = "application/octet-stream", dice.choice(["groups=red", "", dice.choice(QUERIES)])
        body = dice.randbytes(dice.choice([0, 1, 39, 40, 41, 400, 4000, 6000]))
    elif way == 3:
        extra = dice.sample(HEADERS, dice.randint(1, 2))
    elif way == 4:
        method, path = dice.choice(METHODS), dice.choice(PATHS)
    elif way == 5:
        query = dice.choice(QUERIES)
    else:
        body = dice.choice(BODIES)
    line = f"{method} {path}{'?' if query else ''}{query} HTTP/1.1"
    head = [line, "host: localhost", f"content-type: {kind}", *extra]
    head += [f"authorization: Bearer {token}"] if authorized else [f"authorization: Bearer {token[:-1]}"]
    head += [] if any("length" in each or "chunked" in each for each in extra) else [f"content-length: {len(body)}"]
    message = "\r\n".join([*head, "connection: close", "", ""]).encode("latin-1") + body
    if dice.random() < 0.1:
        changed = bytearray(message)
        changed[dice.randrange(min(200, len(changed)))] = dice.randrange(256)
        message, authorized = bytes(changed), True  # it may have become anything
    return message, authorized


def send(address: tuple[str, int], message: bytes, waits: bool) -> int:
    """The status that comes back; 0: the server closed without one.

    waits: leave it to the server to end the wait for what does not come.
    """
    answer = b""
    with socket.create_connection(address, timeout=30) as line:
        try:
            line.sendall(message)
            line.settimeout(60 if waits else 0.3)
            while True:
                try:
                    part = line.recv(65536)
                except TimeoutError:
                    assert not waits, f"a minute without an answer: {message[:300]!r}"
                    line.shutdown(socket.SHUT_WR)
                    line.settimeout(60)
                    continue
                if not part:
                    break
                answer += part
        except ConnectionError:  # closed while we were still sending
            pass
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def attack(url: str, token: str, count: int, dice: random.Random, slow: float = 0.0) -> Counter[int]:
    """Send `count` requests; how often each status came back. AssertionError where one without the token got in."""
    place = urlsplit(url)
    statuses: Counter[int] = Counter()
    for _ in range(count):
        message, authorized = spoilt(dice, token)
        waits = dice.random() < slow
        if waits:
            message = message[: dice.randrange(1, len(message))]
        status = send((place.hostname, place.port), message, waits)
        assert authorized or status >= 400 or status == 0, f"served without the token: {message[:300]!r}"
        statuses[status] += 1
    return statuses


def main() -> int:
    """The trial; 0 where it went well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_policy(Path(folder), GRU)
        limits = ["max_body=5000", "max_batch=8", "slow_seconds=1", f"max_connections={THREADS + 10}"]
        with (
            serving(f"ckpt={folder}", *limits, MARL_SERVE_TOKEN=TOKEN) as server,
            ThreadPoolExecutor(THREADS) as threads,
        ):
            dice = [random.Random(f"{options.seed}:{thread}") for thread in range(THREADS)]
            each = [options.count // THREADS + (thread < options.count % THREADS) for thread in range(THREADS)]
            parts = threads.map(lambda many, own: attack(server.url, TOKEN, many, own, SLOW), each, dice)
            statuses = sum(parts, Counter())
            alive = send(("127.0.0.1", server.port), HEALTH, True)
            tracebacks = "".join(server.lines).count("Traceback")
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}; /health {alive}, {tracebacks} tracebacks")
    return int(alive != 200 or tracebacks > 0 or any(status >= 500 and status != 503 for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
