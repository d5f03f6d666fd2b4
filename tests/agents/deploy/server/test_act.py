"""A real server gives the actions of `Policy.act`, in both formats, alone and in a batch, with and without memory."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

import httpx

from agents.deploy.client import Client, ServerRefused
from agents.evaluation.episodes import evaluate, statistics
from agents.policies.policy import Policy
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError
from tests.fixtures.serving import GRU, MLP, ROOT, closely, make_policy, observations, serving

RAW = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, Policy]:
    folder = tmp_path_factory.mktemp("policies")
    made = {name: make_policy(folder / name, network) for name, network in (("mlp", MLP), ("gru", GRU))}
    return {**made, "places": folder}


@pytest.fixture(scope="module")
def server(policies):
    places = [f"policies.{name}={policies['places'] / name}" for name in ("mlp", "gru")]
    with serving("ckpt=zoo/balance", *places, "max_batch=200", "max_wait_ms=5", "max_body=300000") as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def masks(policy: Policy, rows: int) -> dict[str, dict[str, torch.Tensor]]:
    """Of the group blue: some choices, at least the first of each kind, and some that live."""
    draw = torch.Generator().manual_seed(5)
    allowed = torch.rand(rows, 3, 7, generator=draw) < 0.4
    allowed[..., [0, 3]] = True
    return {"blue": {"action": allowed, "alive": torch.rand(rows, 3, generator=draw) < 0.7}}


def by_agent(policy: Policy, values: dict[str, torch.Tensor], row: int | None = None) -> dict:
    """As a JSON request has it."""
    return {
        name: {
            agent: (value[:, i] if row is None else value[row, i]).tolist()
            for i, agent in enumerate(policy.spec.groups[name].agents)
        }
        for name, value in values.items()
    }


def stacked(policy: Policy, answer: dict) -> dict[str, torch.Tensor]:
    """The inverse, of rows."""
    return {n: torch.tensor([agents[a] for a in policy.spec.groups[n].agents]).transpose(0, 1)
            for n, agents in answer.items()}  # fmt: skip


same = partial(closely, atol=1e-6)


@pytest.mark.parametrize("seed", [None, 3])
def test_both_formats_give_the_policys_actions(http, policies, seed: int | None) -> None:
    policy = policies["mlp"]
    seen, hidden = observations(policy, 6), masks(policy, 6)
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    expected = policy.act(seen, seed is None, draw, hidden)
    request = {
        "policy": "mlp",
        "observations": by_agent(policy, seen),
        "action_masks": by_agent(policy, {"blue": hidden["blue"]["action"]}),
        "seed": seed,
    }
    answer = http.post("/v1/act", json=request)
    assert answer.status_code == 200 and answer.json()["version"] == 1, answer.text
    same(stacked(policy, answer.json()["actions"]), expected)
    body = b"".join(v.numpy().tobytes() for v in seen.values())
    body += hidden["blue"]["action"].numpy().astype("u1").tobytes()
    query = f"policy=mlp&parts=observations,action_masks{'' if seed is None else f'&seed={seed}'}"
    raw = http.post(f"/v1/act?{query}", content=body, headers=RAW)
    assert raw.headers["x-policy"] == "mlp" and raw.headers["x-version"] == "1"
    numbers = np.concatenate([np.ravel(v) for v in stacked(policy, answer.json()["actions"]).values()])
    assert np.array_equal(np.frombuffer(raw.content, "<f4"), numbers.astype("f4"))  # the formats agree bitwise
    one = http.post("/v1/act", json={"policy": "mlp", "observations": by_agent(policy, seen, 2)}).json()["actions"]
    same({n: torch.tensor(list(a.values())) for n, a in one.items()}, policy.act({n: v[2] for n, v in seen.items()}))


def test_a_request_gets_what_it_would_get_alone(server, policies) -> None:
    """Twenty clients at once, some with samples: each has the actions of `Policy.act` on its own rows."""
    policy = policies["mlp"]

    def ask(number: int) -> None:
        seen, seed = observations(policy, 1 + number % 3, number), None if number % 2 else number
        with Client(server.url, policy="mlp") as client:
            for _ in range(3):
                mine = client.act({n: v.numpy() for n, v in seen.items()}, seed=seed)
                draw = None if seed is None else torch.Generator().manual_seed(seed)
                same(mine, policy.act(seen, seed is None, draw))

    before = batches(server)
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(ask, range(20)))
    jobs, count = (after - b for after, b in zip(batches(server), before, strict=True))
    assert jobs == 60 and count < 50, "nothing was joined"


def batches(server) -> tuple[float, float]:
    """Requests that were computed, and batches that they were computed in."""
    text = httpx.get(f"{server.url}metrics", timeout=60).text
    return tuple(float(re.search(rf"marl_batch_requests_{key} (\S+)", text)[1]) for key in ("sum", "count"))


def test_memory_is_kept_by_the_session_or_by_the_client(server, policies) -> None:
    policy, memory = policies["gru"], policies["gru"].memory(4)
    with Client(server.url, policy="gru") as client, client.session() as session:
        kept = {}
        for step in range(4):
            seen, hidden = observations(policy, 4, step), masks(policy, 4)
            arrays = {n: v.numpy() for n, v in seen.items()}
            if step == 3:  # another episode
                memory, kept = policy.memory(4), {}
            expected, memory = policy.act(seen, masks=hidden, memory=memory)
            allowed = {"blue": hidden["blue"]["action"].numpy()}
            alive = {"blue": hidden["blue"]["alive"].numpy()}
            same(session.act(arrays, action_masks=allowed, alive=alive, reset=step == 3), expected)
            actions, kept = client.act(arrays, action_masks=allowed, alive=alive, memory=kept)
            same(actions, expected)
            same(kept, memory)
        with pytest.raises(ServerRefused, match="began with 4 rows, not 1") as refused:
            session.act({n: v[:1] for n, v in arrays.items()})
        assert refused.value.status == 400
        one = {n: v[0] for n, v in arrays.items()}
        same(session.act(one, reset=True), policy.act({n: v[0] for n, v in seen.items()}, memory=policy.memory())[0])
        with pytest.raises(ServerRefused, match="remembers what red, blue saw; open a session, or send memory"):
            client.act(arrays)
        with pytest.raises(UserError, match=r"memory of red: has shape \(2, 6\); all of a request have rows"):
            client.act(arrays, memory={"red": np.zeros((2, 6), "f4")})
        session.close()
        with pytest.raises(ServerRefused, match="there is none") as gone:
            session.act(one)
        assert gone.value.status == 404


def test_memory_as_json(http, policies) -> None:
    policy, memory, kept = policies["gru"], policies["gru"].memory(2), {}
    for step in range(3):
        seen = observations(policy, 2, step)
        expected, memory = policy.act(seen, memory=memory)
        request = {"policy": "gru", "observations": by_agent(policy, seen), "memory": kept}
        answer = http.post("/v1/act", json=request).json()
        same(stacked(policy, answer["actions"]), expected)
        kept = answer["memory"]
    same(stacked(policy, kept), memory)


def test_groups_may_be_asked_apart(server, policies) -> None:
    policy, seen = policies["mlp"], observations(policies["mlp"], 3)
    expected = policy.act(seen)
    with Client(server.url, policy="mlp") as client:
        same(client.act({"blue": seen["blue"].numpy()}), {"blue": expected["blue"]})
        swapped = client.act({n: seen[n].numpy() for n in ("blue", "red")})  # in the order of the request
        same(swapped, {n: expected[n] for n in ("blue", "red")})
        assert swapped["blue"].dtype == np.int64 and swapped["red"].dtype == np.float32


def test_the_client_passes_on_what_it_is_given_or_refuses_it(server, policies) -> None:
    policy, seen, hidden = policies["mlp"], observations(policies["mlp"], 3), masks(policies["mlp"], 3)
    arrays, allowed = {n: v.numpy() for n, v in seen.items()}, hidden["blue"]["action"].numpy()
    with Client(server.url, policy="mlp") as client:
        numbers = {"blue": allowed.astype("f4")}  # no bytes, no booleans
        same(client.act(arrays, action_masks=numbers, alive={"blue": np.ones((3, 3), "f4")}),
             policy.act(seen, masks={"blue": {"action": hidden["blue"]["action"]}}))  # fmt: skip
        for given, sentence in (
            (
                {"action_masks": {"bleu": allowed}},
                "action_masks: no group 'bleu'; did you mean 'blue'? (there are blue)",
            ),
            ({"action_masks": {"red": allowed}}, "action_masks: no group 'red' (there are blue)"),
            ({"alive": {"blu": allowed}}, "alive: no group 'blu'; did you mean 'blue'? (there are red, blue)"),
            ({"memory": {"red": allowed}}, "memory: no group 'red' (there are none)"),
        ):
            with pytest.raises(UserError) as refused:
                client.act(arrays, **given)
            assert str(refused.value) == sentence
        with pytest.raises(UserError, match="observations: no group 'rde'"):
            client.act({"rde": arrays["red"]})


def test_only_plain_http_is_not_verified(monkeypatch) -> None:
    given = {}
    monkeypatch.setattr(httpx, "Client", lambda **settings: given.update({settings["base_url"]: settings["verify"]}))
    for url in ("http://localhost", "HTTP://localhost", "https://localhost", "HTTPS://localhost", "Https://localhost"):
        Client(url)
    assert list(given.values()) == [False, False, True, True, True]


def test_a_sample_without_a_seed_is_another_each_time(server, policies) -> None:
    seen = {"red": observations(policies["mlp"], 1)["red"].numpy()}
    with Client(server.url, policy="mlp") as client:
        drawn = [client.act(seen, deterministic=False)["red"] for _ in range(3)]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_what_a_server_tells_of_itself(http, policies) -> None:
    model = http.get("/v1/model", params={"policy": "gru"}).json()
    assert model["memory"] == {"red": 6, "blue": 6} and model["action_masks"] == {"blue": 7}
    assert model["spec"]["groups"]["red"]["action"]["high"] == [[1.0, 2.0], [3.0, 0.5]]
    assert "`red_observation` | float32 [B, 2, 5]" in model["card"] and model["max_batch"] == 200
    names = [each["policy"] for each in http.get("/v1/policies").json()["policies"]]
    assert names == ["default", "mlp", "gru"]
    assert http.get("/health").json() == {"status": "alive"} and http.get("/ready").json() == {"status": "ready"}
    assert 'marl_requests_total{route="/health",status="200"}' in http.get("/metrics").text
    described = http.get("/openapi.json").json()["paths"]
    assert set(described) == {"/v1/act", "/v1/sessions", "/v1/sessions/{id}", "/v1/policies", "/v1/model", "/health",
                              "/ready", "/metrics"}  # fmt: skip
    page = http.get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "POST /v1/act" in page.text and "action_masks" in page.text
    assert not re.search(r"<script|<link|<img|https?://|@import", page.text), "something from elsewhere"


def test_the_loop_of_the_docs_reaches_the_return_of_evaluate(server) -> None:
    code = re.search(r"```python\n(from agents.deploy.client.*?)```", read("docs", "guides", "serving.md"), re.S)[1]
    scope: dict = {}
    code = code.replace("http://127.0.0.1:8000", server.url).replace("num_envs=200", 'num_envs=200, fast="off"')
    exec(code, scope)
    env = VmasEnv("balance", num_envs=200, max_steps=100, fast="off",
                  scenario_kwargs=Policy.load("zoo/balance").metadata["env"]["scenario_kwargs"])  # fmt: skip
    low, high = statistics(evaluate(env, Policy.load("zoo/balance").actors, seed=0).episode_returns())["ci95"]
    assert low <= scope["total"].mean() <= high


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_docs_ask_for_actions(server, tmp_path: Path) -> None:
    commands = re.search(r"```bash\n(python -c .*?)```", read("docs", "guides", "serving.md"), re.S)[1]
    commands = commands.replace("localhost:8000", f"127.0.0.1:{server.port}").replace(
        "python ", f"{sys.executable} ", 1
    )
    done = subprocess.run(["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer, draw = json.loads(done.stdout), torch.Generator().manual_seed(7)
    expected = Policy.load("zoo/balance").act({"agents": torch.full((4, 16), 0.1)}, False, draw)
    assert answer["policy"] == "default" and answer["version"] == 1
    same({"agents": torch.tensor(list(answer["actions"]["agents"].values()))}, expected)
    shown = re.search(r"# (\{.*)", commands)[1]  # numbers cut after three decimals
    for number in re.findall(r"(0\.\d+)…", shown):
        assert number in done.stdout, number


def read(*parts: str) -> str:
    return Path(ROOT, *parts).read_text()


def test_the_client_needs_no_torch() -> None:
    code = "import sys, agents.deploy.client; print(sorted({'torch', 'hydra', 'vmas', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
