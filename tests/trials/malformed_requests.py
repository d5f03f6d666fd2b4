"""Requests that are no good, thousands of them, against a running server: none gets in, none takes it down.

    python tests/trials/malformed_requests.py http://127.0.0.1:8000 --token-file token --count 10000

Exit code 0 where each was refused or answered as it should be and the server answers as before. Most are good requests
that were spoilt: bytes changed, cut, doubled; odd numbers, keys, lengths; heads that are no HTTP; bodies that stop.
"""

import argparse
import json
import random
import socket
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

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
        body = dice.choice(
            [b"[" * 5000, b"{" * 5000, b'{"a":' * 900, b"\xff" * 200, b" " * 4990, body * 20, b'"' * 999]
        )
    head = [
        f"{method} {path}{'?' if query else ''}{query} HTTP/1.1",
        "host: localhost",
        f"content-type: {kind}",
        *extra,
    ]
    head += [f"authorization: Bearer {token}"] if authorized else [f"authorization: Bearer {token[:-1]}"]
    head += [] if any("length" in each or "chunked" in each for each in extra) else [f"content-length: {len(body)}"]
    message = "\r\n".join([*head, "connection: close", "", ""]).encode("latin-1") + body
    if dice.random() < 0.1:
        changed = bytearray(message)
        changed[dice.randrange(min(200, len(changed)))] = dice.randrange(256)
        message, authorized = bytes(changed), True  # it may have become anything
    return message, authorized


def send(address: tuple[str, int], message: bytes, waits: bool) -> int:
    """The status that comes back; 0: the server closed without one, as it may for what is no HTTP."""
    answer = b""
    with socket.create_connection(address, timeout=30) as line:
        try:
            line.sendall(message)
            if not waits:
                line.shutdown(socket.SHUT_WR)  # nothing more will come: the server need not wait for it
            while part := line.recv(65536):
                answer += part
        except ConnectionError:
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
    parser.add_argument("url")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    statuses = attack(options.url, options.token_file.read_text().strip(), options.count,
                      random.Random(options.seed), SLOW)  # fmt: skip
    place = urlsplit(options.url)
    alive = send(
        (place.hostname, place.port), b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", True
    )
    print(f"{dict(sorted(statuses.items()))}; /health says {alive}")
    return int(alive != 200 or any(status >= 500 and status != 503 for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
