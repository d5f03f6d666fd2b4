"""What a server does not serve: each mistake is one sentence, and nothing of it touches the others' requests."""

import json
import random
import re
import socket
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

import httpx

from agents.deploy.client import Client, ServerRefused
from tests.fixtures.serving import GRU, make_policy, serving
from tests.trials.malformed_requests import attack

TOKEN = "0123456789abcdef0123"
KEY = {"authorization": f"Bearer {TOKEN}"}
RAW = {"content-type": "application/octet-stream"}
SEEN = {"red": {"a": [0.0] * 5, "b": [1.0] * 5}}
ROW = np.ones((2, 5), "<f4").tobytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    make_policy(folder, GRU)
    limits = ["max_batch=8", "max_body=5000", "max_connections=12", "max_sessions=2", "slow_seconds=1"]
    with serving(f"policies.team={folder}", *limits, MARL_SERVE_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60, headers=KEY, trust_env=False) as client:
        yield client


def request(**changes) -> dict:
    return {"observations": SEEN, "memory": {}, **changes}


def agents(a: object, b: object = None) -> dict:
    return {"observations": {"red": {"a": a, "b": [0.0] * 5 if b is None else b}}}


JSON = [
    (request(observation=SEEN), 400, "observation: extra inputs are not permitted"),
    (request(policy="taem"), 404, "policy 'taem': there is none; did you mean 'team'? (there are team)"),
    (request(seed=-1), 400, "seed: input should be greater than or equal to 0"),
    (request(seed=1, deterministic=True), 400, "seed: is of samples; leave it out, or ask for deterministic=false"),
    (request(session="x"), 400, "memory: is kept either by the session or by the client, not by both"),
    (request(memory=None), 400, "memory: this policy remembers what red, blue saw; open a session, or send memory"),
    (request(memory=None, session="x"), 404, "session 'x': there is none"),
    (request(reset=True), 400, "reset: is of sessions"),
    (request(version=2), 409, "version: 1 of team serves, not 2, whose memory means nothing to it; begin the episode"),
    (request(version="1"), 400, "version: input should be a valid integer"),
    (request(memory={"red": {"a": [0.0] * 6}}), 400, "memory.red.b: is missing"),
    (request(memory={"green": {}}), 400, "memory: no group 'green'"),
    (request(action_masks={"red": {"a": [True]}}), 400, "action_masks.red: this group has none"),
    (request(action_masks={"blue": {"c": [1, 0]}}), 400, "action_masks.blue.c.0: input should be a valid boolean"),
    (request(**agents([0.0] * 4)), 400, "observations.red.a: holds 4 values; it must be 5"),
    (request(**agents([0.0] * 4 + ["1"])), 400, "observations.red.a.4: input should be a valid number"),
    (request(**agents([0.0] * 4 + [True])), 400, "observations.red.a.4: input should be a valid number"),
    (request(**agents([0.0] * 4 + [1e39])), 400, "observations.red: holds numbers that are not finite in float32"),
    (request(**agents([[0.0] * 5])), 400, "observations.red: its agents differ in their number of rows"),
    (request(**agents([[0.0] * 5, [0.0]], [[0.0] * 5])), 400, "observations.red.a: its rows differ in length"),
    (request(**agents([], [])), 400, "observations.red.a: holds 0 values; it must be 5"),
    (request(**agents([[0.0] * 5] * 9, [[0.0] * 5] * 9)), 413, "observations: 9 rows; at most 8 are allowed"),
    (request(observations={"red": {"a": [0.0] * 5}}), 400, "observations.red.b: is missing; all agents of a group"),
    (request(observations={"red": {**SEEN["red"], "aa": [0.0] * 5}}), 400, "observations.red.aa: no such agent"),
    (request(observations={}), 400, "observations: name at least one of the groups red, blue"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), JSON, ids=range(len(JSON)))
def test_a_mistake_is_told_in_a_sentence(http, body: dict, status: int, sentence: str) -> None:
    answer = http.post("/v1/act", json=body)
    assert answer.status_code == status and answer.json()["error"].startswith(sentence), answer.text
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(http, number: str) -> None:
    text = json.dumps(request(**agents([0.0] * 4 + ["X"]))).replace('"X"', number)
    answer = http.post("/v1/act", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "finite number" in answer.json()["error"]
    row = np.ones(10, "<f4")
    row[3] = float(number)
    answer = http.post("/v1/act?groups=red&parts=observations,memory", content=row.tobytes() + bytes(48), headers=RAW)
    assert answer.status_code == 400 and "not finite" in answer.json()["error"]


BODIES = [
    ("groups=red", ROW[:-1], 400, "body: has 39 bytes; it must be 40 for each row of observations"),
    ("groups=red", b"", 400, "body: has 0 bytes"),
    ("groups=red", ROW * 9, 413, "body: has 9 rows; at most 8 are allowed (max_batch)"),
    ("groups=red,red", ROW, 400, "groups: names a group twice"),
    ("groups=pink", ROW, 400, "groups: no group 'pink'"),
    ("groups=red&parts=memory", ROW, 400, "parts: names observations, and each part once"),
    ("groups=red&parts=observations,mask", ROW, 400, "parts: 'mask' is none of observations, memory, action_masks"),
    ("groups=red&parts=observations,memory&version=2", ROW + bytes(48), 409, "version: 1 of team serves, not 2"),
    ("groups=red&group=red", ROW, 400, "group: extra inputs are not permitted"),
    ("groups=red&groups=red", ROW, 400, "query: a key stands in it twice"),
    ("groups", ROW, 400, "query: must be KEY=VALUE&KEY=VALUE"),
    (
        "groups=blue&parts=observations,action_masks",
        bytes(36) + b"\2" * 21,
        400,
        "action_masks.blue: a byte is neither",
    ),
]


@pytest.mark.parametrize(("query", "body", "status", "sentence"), BODIES, ids=range(len(BODIES)))
def test_a_raw_body_that_does_not_fit(http, query: str, body: bytes, status: int, sentence: str) -> None:
    answer = http.post(f"/v1/act?{query}", content=body, headers=RAW)
    assert answer.status_code == status and answer.json()["error"].startswith(sentence), answer.text


def test_kinds_of_bodies_routes_and_methods(http) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = http.post("/v1/act", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]
    assert http.post("/v1/act?seed=1", json=request()).json()["error"].startswith("query: is of raw bodies")
    assert http.get("/v1/act").status_code == 405 and http.get("/v2").status_code == 404
    assert http.get("/health/").status_code == 404  # and no redirect
    assert http.get("/v1/model?policy=none").status_code == 404
    assert http.delete("/v1/sessions/none").status_code == 404
    form = http.post("/v1/sessions", content=b'{"policy": "team"}', headers={"content-type": "text/plain"})
    assert form.status_code == 415 and form.json()["error"] == "content-type 'text/plain': must be application/json"
    assert http.post("/v1/sessions", json={"polcy": "team"}).json()["error"] == "polcy: extra inputs are not permitted"


@pytest.mark.parametrize("header", [None, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer é", TOKEN])
def test_without_the_token_nothing_is_told(server, header: str | None) -> None:
    headers = [] if header is None else [(b"authorization", header.encode())]
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
        for path in ("/v1/model", "/v1/policies", "/metrics", "/docs", "/openapi.json", "/none"):
            answer = http.get(path, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        assert http.post("/v1/act", json=request(), headers=headers).status_code == 401
        assert http.post("/v1/sessions", headers=headers).status_code == 401
        assert http.get("/health").status_code == 200 and http.get("/ready").status_code == 200
    with Client(server.url, token="not the token at all") as client:
        with pytest.raises(ServerRefused, match="Bearer TOKEN is needed"):
            client.model()


def test_large_bodies_and_headers(server, http) -> None:
    answer = http.post("/v1/act", content=bytes(5001), headers=RAW)
    assert answer.status_code == 413 and answer.json()["error"] == "body: more than 5000 bytes (max_body)"
    answer = http.post("/v1/act", content=(bytes(1000) for _ in range(9)), headers=RAW)  # in chunks, its length untold
    assert answer.status_code == 413
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000
    assert b" 431 " in talk(server, head)


def test_sessions_are_bounded(server, http) -> None:
    ids = [http.post("/v1/sessions").json()["session"] for _ in range(2)]
    full = http.post("/v1/sessions")
    assert full.status_code == 503 and full.headers["retry-after"] == "1" and "all 2 are in use" in full.json()["error"]
    assert [http.delete(f"/v1/sessions/{id}").status_code for id in ids] == [204, 204]
    assert http.delete(f"/v1/sessions/{http.post('/v1/sessions').json()['session']}").status_code == 204


def talk(server, *pieces: bytes, pause: float = 0.0, seconds: float = 30.0) -> bytes:
    """What the server answers to these bytes, until it closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
                time.sleep(pause)
            while part := line.recv(65536):
                answer += part
        except ConnectionError:  # closed while we were still sending; what came before counts
            pass
    return answer


def test_slow_requests_are_ended(server) -> None:
    assert b" 408 " in talk(server)  # nothing at all
    assert b" 408 " in talk(server, b"GET /health HTTP/1.1\r\n")
    assert b" 408 " in talk(server, *[b"\r\n"] * 3, pause=0.3)  # a little of nothing
    head = b"POST /v1/act HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n" % TOKEN.encode()
    slow = talk(server, head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n", b"{", b" ", pause=0.3)
    assert b" 408 " in slow and b"slow_seconds" in slow
    assert b" 400 " in talk(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")


def test_connections_are_bounded_and_one_that_leaves_makes_room(server, http) -> None:
    assert http.get("/health").status_code == 200
    lines = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(11)]
    try:
        deadline = time.monotonic() + 20
        while b" 503 " not in (answer := talk(server)):
            assert time.monotonic() < deadline, answer
        assert b"12 are open, which is all that are allowed (max_connections)" in answer
        assert http.get("/health").status_code == 200  # who was there before goes on
    finally:
        for line in lines:
            line.close()
    with Client(server.url, token=TOKEN, retries=8) as client:  # it tries again
        assert client.model()["policy"] == "team"


def test_malformed_requests_change_nothing(server, http) -> None:
    """A small part of what tests/trials/malformed_requests.py does by hand."""
    before = http.post("/v1/act", json=request()).json()
    counts = attack(server.url, TOKEN, 300, random.Random(0))
    assert sum(counts.values()) == 300 and not {s for s in counts if s >= 500 and s != 503}, counts
    assert counts[401] > 10 and counts[400] > 100
    assert http.post("/v1/act", json=request()).json() == before
    assert "Traceback" not in "".join(server.lines)


def test_what_is_refused_is_counted(server, http) -> None:
    def counts() -> dict[str, float]:
        found = re.findall(r'marl_refused_total{reason="(\w+)"} (\S+)', http.get("/metrics").text)
        return {reason: float(count) for reason, count in found}

    before = counts()
    assert http.post("/v1/act", json=request(observations={})).status_code == 400
    assert http.get("/metrics", headers={"authorization": "Bearer none"}).status_code == 401
    assert http.post("/v1/act", content=bytes(5001), headers=RAW).status_code == 413
    assert http.post("/v1/act", json=request(version=2)).status_code == 409
    assert b" 408 " in talk(server, b"GET")
    ids = [http.post("/v1/sessions").json()["session"] for _ in range(2)]
    assert http.post("/v1/sessions").status_code == 503
    assert [http.delete(f"/v1/sessions/{id}").status_code for id in ids] == [204, 204]
    after = counts()
    reasons = ("input", "token", "size", "version", "slow", "sessions")
    assert {reason: after[reason] - before.get(reason, 0) for reason in reasons} == dict.fromkeys(reasons, 1)
