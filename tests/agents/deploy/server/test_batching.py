"""Parts of the server by themselves: batches, both backends, sessions and rates by a clock of the test, tokens, TLS."""

import asyncio
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

from agents.deploy.server.batching import Acted, Batcher, Job, finite
from agents.deploy.server.guard import REMEMBERED, Rates
from agents.deploy.server.networks import Networks
from agents.deploy.server.security import Gate, loopback, read_token, tls
from agents.deploy.server.sessions import Sessions
from agents.deploy.server.settings import Refused, ServerSettings
from agents.deploy.server.versions import Version
from agents.deploy.server.wire import Shapes
from envs.spec import EnvSpec
from marl.core.errors import UserError
from tests.fixtures.serving import GRU, MLP, SPEC, make_policy


class Log:
    """Remembers the batches that it is told of: (rows, requests)."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def batch(self, rows: int, jobs: int, seconds: float) -> None:
        self.batches.append((rows, jobs))


def jobs(policy, rows: list[int], scale: float = 1.0) -> list[Job]:
    draw = torch.Generator().manual_seed(1)
    groups = policy.spec.groups.items()
    return [
        Job({n: scale * torch.randn(r, g.n_agents, g.observation_size, generator=draw) for n, g in groups}, r,
            policy.memory(r), deterministic=i % 2 == 0, seed=i)
        for i, r in enumerate(rows)
    ]  # fmt: skip


def test_batches_are_full_or_the_last_and_mix_modes_and_samples(tmp_path: Path) -> None:
    policy, log = make_policy(tmp_path, GRU), Log()
    batcher = Batcher(policy, Networks(policy, "torch"), max_batch=8, max_wait=0.01, watches=log)
    rows = [3, 3, 3, 8, 1, 2]

    async def together():
        return await asyncio.gather(*(batcher.act(job) for job in jobs(policy, rows)))

    results = asyncio.run(together())
    # Eight rows are full, whatever waits: 3 + 3, 3, then 8, then 1 + 2 when the time is over.
    assert log.batches == [(6, 2), (3, 1), (8, 1), (3, 2)]
    for job, acted in zip(jobs(policy, rows), results, strict=True):
        draw = torch.Generator().manual_seed(job.seed)
        actions, memory = policy.act(job.observations, job.deterministic, draw, memory=job.memory)
        for name in SPEC.groups:
            torch.testing.assert_close(acted.actions[name], actions[name], atol=1e-6, rtol=0)
            torch.testing.assert_close(acted.memory[name], memory[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("wait", "expected"), [(None, [(1, 1)] * 3), (0.0, [(3, 3)])])
def test_waiting_may_be_left_out(tmp_path: Path, wait: float | None, expected: list) -> None:
    policy, log = make_policy(tmp_path, MLP), Log()
    batcher = Batcher(policy, Networks(policy, "torch"), max_batch=8, max_wait=wait, watches=log)

    async def together():
        await asyncio.gather(*(batcher.act(job) for job in jobs(policy, [1, 1, 1])))

    asyncio.run(together())
    assert log.batches == expected


def test_a_result_that_is_not_finite_is_refused() -> None:
    good = Acted({"red": torch.zeros(1, 2, 2), "blue": torch.zeros(1, 3, 2, dtype=torch.int64)}, {})
    assert finite(good) is good
    for bad in (torch.nan, torch.inf):
        with pytest.raises(Refused, match="numbers of red are so large") as refused:
            finite(Acted({"red": torch.tensor([[[0.0, bad]]])}, {}))
        assert refused.value.status == 400


@pytest.mark.parametrize(("name", "network"), [("blue", GRU), ("red", MLP)])  # with memory and masks; with neither
def test_onnxruntime_gives_the_same(tmp_path: Path, name: str, network: dict) -> None:
    pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
    policy = make_policy(tmp_path, network, spec=EnvSpec({name: SPEC.groups[name]}))
    batchers = [Batcher(policy, Networks(policy, backend), 64, None, Log()) for backend in ("torch", "onnx")]
    for ours, theirs in zip(jobs(policy, [1, 5, 64]), jobs(policy, [1, 5, 64]), strict=True):
        masks = (
            {}
            if name == "red"
            else {"blue": torch.rand(ours.rows, 3, 7, generator=torch.Generator().manual_seed(2)) < 0.5}
        )
        ours.masks = theirs.masks = masks
        a, b = (asyncio.run(batcher.act(job)) for batcher, job in zip(batchers, (ours, theirs), strict=True))
        torch.testing.assert_close(a.actions, b.actions, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.memory, b.memory, atol=1e-5, rtol=0)


def test_sessions_end_after_their_time(tmp_path: Path) -> None:
    policy, now = make_policy(tmp_path, GRU), [0.0]
    batcher = Batcher(policy, Networks(policy, "torch"), 8, None, Log())
    version = Version("team", 1, policy, Shapes.of(policy), batcher, ("", 0, 0, 0))
    sessions = Sessions(most=2, seconds=10.0, clock=lambda: now[0])
    first, second = sessions.open(version), sessions.open(version)
    with pytest.raises(Refused, match="all 2 are in use") as full:
        sessions.open(version)
    assert full.value.status == 503
    now[0] = 9.0
    assert sessions.find(first.id) is first and sessions.of(version) == 2
    now[0] = 15.0
    with pytest.raises(Refused, match="there is none") as gone:
        sessions.find(second.id)
    assert gone.value.status == 404 and sessions.find(first.id) is first
    (job,) = jobs(policy, [2])
    first.begin(job, reset=False)
    with pytest.raises(Refused, match="not answered yet") as busy:
        first.begin(job, reset=False)
    assert busy.value.status == 409
    now[0] = 100.0
    sessions.sweep()
    assert list(sessions.by_id) == [first.id], "a request is under way"
    first.end(None)
    sessions.sweep()
    assert not sessions.by_id


def test_rates_by_hand() -> None:
    now = [0.0]
    rates = Rates(2.0, clock=lambda: now[0])
    rates.take("a")
    rates.take("a")
    with pytest.raises(Refused, match="more than 2 requests per second") as refused:
        rates.take("a")
    assert refused.value.status == 429 and refused.value.headers == {"retry-after": "1"}
    rates.take("b")
    now[0] = 0.5  # one more has come back
    rates.take("a")
    with pytest.raises(Refused):
        rates.take("a")
    for address in range(2 * REMEMBERED):
        rates.take(str(address))
    assert len(rates.left) == REMEMBERED


def test_where_a_token_comes_from_and_when_it_is_needed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MARL_SERVE_TOKEN", raising=False)
    assert read_token(ServerSettings()) is None
    with pytest.raises(UserError, match=r"host=0\.0\.0\.0: others than this machine .*MARL_SERVE_TOKEN"):
        read_token(ServerSettings(host="0.0.0.0"))
    monkeypatch.setenv("MARL_SERVE_TOKEN", "a" * 16)
    assert read_token(ServerSettings(host="0.0.0.0")) == b"a" * 16
    file = tmp_path / "token"
    file.write_text("b" * 20 + "\n")
    assert read_token(ServerSettings(token_file=str(file))) == b"b" * 20
    for text in ("short", "a" * 15 + "é", "a b" * 10):
        file.write_text(text)
        with pytest.raises(UserError, match="at least 16 printable ASCII characters and no space"):
            read_token(ServerSettings(token_file=str(file)))
    with pytest.raises(UserError, match=r"token_file=.*none: can't be read \(No such file or directory\)"):
        read_token(ServerSettings(token_file=str(tmp_path / "none")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_hosts_of_this_machine(host: str) -> None:
    assert loopback(host)
    Gate(None).check({b"host": f"{host}:8000".encode() if host != "::1" else b"[::1]:8000"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_hosts_of_others(host: str) -> None:
    assert not loopback(host)
    with pytest.raises(Refused, match="answers to localhost only"):  # a page whose name leads to 127.0.0.1
        Gate(None).check({b"host": host.encode()})


ELSEWHERE = [
    {b"origin": b"https://example.org"},
    {b"origin": b"null"},
    {b"origin": b"http://[::1"},
    {b"origin": b"http://127.0.0.1.example.org"},
    {b"sec-fetch-site": b"cross-site"},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_pages_from_elsewhere_may_not_ask_a_server_without_a_token(headers: dict[bytes, bytes]) -> None:
    host = {b"host": b"localhost:8000"}
    with pytest.raises(Refused, match="pages from elsewhere may not ask this server") as refused:
        Gate(None).check({**host, **headers})
    assert refused.value.status == 403 and refused.value.reason == "origin"
    assert str(refused.value).startswith(next(iter(headers)).decode())  # it names the header that is at fault
    for origin in (b"http://localhost:3000", b"http://127.0.0.1:8000", b"https://[::1]:8443"):
        Gate(None).check({**host, b"origin": origin, b"sec-fetch-site": b"same-origin"})
    Gate(b"a" * 16).check({**host, **headers, b"authorization": b"Bearer " + b"a" * 16})


def test_a_step_that_fails_leaves_a_session_as_it_was(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, GRU)
    batcher = Batcher(policy, Networks(policy, "torch"), 8, None, Log())
    session = Sessions(2, 10.0).open(Version("team", 1, policy, Shapes.of(policy), batcher, ("", 0, 0, 0)))
    three, one = jobs(policy, [3, 1])
    session.begin(three, reset=False)
    session.end(None)
    session.begin(one, reset=False)  # the step of three rows was none
    session.end(Acted({}, {"red": torch.full((1, 2, 6), 0.5)}))
    session.begin(three, reset=True)
    assert not three.memory["red"].any()
    session.end(None)
    session.begin(one, reset=False)
    assert one.memory["red"].eq(0.5).all() and one.memory["blue"].eq(0).all()


def test_files_for_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    assert tls(ServerSettings()) is None and tls(ServerSettings(tls_certificate=certificate, tls_key=key)) is not None
    with pytest.raises(UserError, match="tls_key=.*key.pem: needs tls_certificate, too"):
        tls(ServerSettings(tls_key=key))
    with pytest.raises(UserError, match="tls_certificate=.*cert.pem: needs tls_key, too"):
        tls(ServerSettings(tls_certificate=certificate))
    with pytest.raises(UserError, match="tls_key=none: there is no such file"):
        tls(ServerSettings(tls_certificate=certificate, tls_key="none"))
    with pytest.raises(UserError, match="no certificate with the key"):
        tls(ServerSettings(tls_certificate=key, tls_key=certificate))


def make_certificate(folder: Path) -> tuple[str, str]:
    """A certificate of localhost that it signed itself, and its key."""
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
               "-keyout", key, "-out", certificate]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key
