"""A client of the server of policies: observations as NumPy arrays in, actions out; it needs numpy and httpx only.

Shapes: B rows (environments that are played at once), A agents in a group, F features, D action dimensions, M numbers
of memory, C choices of an agent.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np

from marl.core.errors import UserError, closest

RAW = "application/octet-stream"
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between attempts: doubled each time
Arrays = Mapping[str, np.ndarray]


class Memory(dict[str, np.ndarray]):
    """{group: float32 [B, A, M] or [A, M]} that an answer brought. version: of the policy whose numbers these are."""

    def __init__(self, values: Arrays, version: str) -> None:
        super().__init__(values)
        self.version = version


class ServerRefused(UserError):
    """The server refused a request; the text is its sentence. status: of HTTP; 0: it could not be reached."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """One server's policy, over connections that are kept open. Threads may share it.

    Args:
        url: of the server.
        token: what the server asks for; None: the variable MARL_SERVE_TOKEN, where it is set.
        policy: its name; None: the only one.
        retries: how often a request is sent again where the server says 503 (busy, ending) or can't be reached.
        timeout: seconds for an answer.
        verify: of TLS: True: certificates of the usual authorities; or an SSLContext that knows your own.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        policy: str | None = None,
        retries: int = 6,
        timeout: float = 10.0,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        token = token or os.environ.get("MARL_SERVE_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # The variables for proxies are for the web at large; a token goes to the server that is named, or nowhere.
        if url.lower().startswith("http:"):
            verify = False  # there is nothing to verify, and reading the authorities takes longer than a request
        self.http = httpx.Client(base_url=url, headers=headers, timeout=timeout, verify=verify, trust_env=False)
        self.policy, self.retries = policy, retries
        self._model: dict[str, Any] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def model(self) -> dict[str, Any]:
        """What the policy takes and gives: "spec", "memory", "action_masks", "env", "run", "card", "version" and more.

        Raises:
            ServerRefused: no such policy, no token, or no server.
        """
        return self._send("GET", "/v1/model", params=self._named()).json()

    def act(
        self,
        observations: Arrays,
        deterministic: bool | None = None,
        seed: int | None = None,
        action_masks: Arrays | None = None,
        alive: Arrays | None = None,
        memory: Arrays | None = None,
    ) -> dict[str, np.ndarray] | tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Actions in the environment's units: {group: float32 [B, A, F] or [A, F]} -> {group: [B, A, D] or [A, D]}.

        Args:
            observations: of the groups that act; groups may be left out.
            deterministic: the policy's mode; False: a sample. None: the mode, unless there is a seed.
            seed: of the sample, 0 or more; the same one gives the same action.
            action_masks: {group: bool [B, A, C]}: where a choice is allowed.
            alive: {group: bool [B, A]}: the dead remember nothing.
            memory: {group: float32 [B, A, M]}, what came back beside the actions of the step before, {} at an episode's
                beginning. The result is a pair then, actions and memory, a dict that knows its `version`: where the
                server has another one by the next step, that is refused. A `session` has the server remember.

        Returns:
            float32, or int64 where all of an action's numbers are choices.

        Raises:
            ServerRefused: as `model`, or observations that the policy does not take, or (status 409) memory of a
                version that serves no more.
            UserError: a group that the policy has not, or arrays of which only some have rows.
        """
        return self._act(self._named(), observations, deterministic, seed, action_masks, alive, memory)

    def session(self) -> Session:
        """Episodes that the server remembers, by the version that is current now. Use it in a `with` statement.

        Raises:
            ServerRefused: as `model`, or where there are too many.
        """
        return Session(self, self._send("POST", "/v1/sessions", json=self._named()).json()["session"])

    def _named(self) -> dict[str, str]:
        return {} if self.policy is None else {"policy": self.policy}

    def _act(
        self,
        query: dict[str, Any],
        observations: Arrays,
        deterministic: bool | None,
        seed: int | None,
        action_masks: Arrays | None,
        alive: Arrays | None,
        memory: Arrays | None,
    ) -> Any:
        if self._model is None:
            self._model = self.model()
        groups, sizes = self._model["spec"]["groups"], self._model["memory"]
        choices = self._model["action_masks"]
        given = {"observations": observations, "action_masks": action_masks, "alive": alive, "memory": memory}
        for part, known in zip(given, (groups, choices, groups, sizes), strict=True):
            for n in given[part] or ():
                if n not in known:
                    raise UserError(
                        f"{part}: no group {n!r}{closest(n, known)} (there are {', '.join(known) or 'none'})"
                    )
        batched = np.ndim(next(iter(observations.values()), ())) == 3
        arrays = {n: _rows(f"observations of {n}", value, batched, 3) for n, value in observations.items()}
        parts = [("observations", [value.astype("<f4", copy=False) for value in arrays.values()])]
        rows = len(next(iter(arrays.values()), ()))
        if memory is not None:
            shapes = {n: (rows, len(groups[n]["agents"]), sizes[n]) for n in arrays if n in sizes}
            zeros = {n: np.zeros(shape, "<f4") for n, shape in shapes.items()}
            kept = {n: _rows(f"memory of {n}", value, batched, 3) for n, value in memory.items()}
            parts.append(("memory", [kept.get(n, value).astype("<f4", copy=False) for n, value in zeros.items()]))
            query = {**query, "version": memory.version} if memory and isinstance(memory, Memory) else query
        if action_masks is not None:
            widths = {n: choices[n] for n in arrays if n in choices}
            allowed = [np.ones((rows, len(groups[n]["agents"]), c), "u1") for n, c in widths.items()]
            masks = {n: _rows(f"action_masks of {n}", value, batched, 3) for n, value in action_masks.items()}
            parts.append(("action_masks", [masks.get(n, o).astype("u1") for n, o in zip(widths, allowed, strict=True)]))
        if alive is not None:
            lives = {n: _rows(f"alive of {n}", value, batched, 2) for n, value in alive.items()}
            everyone = {n: np.ones((rows, len(groups[n]["agents"])), "u1") for n in arrays}
            parts.append(("alive", [lives.get(n, value).astype("u1") for n, value in everyone.items()]))
        query = {**query, "groups": ",".join(arrays), "parts": ",".join(name for name, _ in parts)}
        query |= {} if deterministic is None else {"deterministic": str(deterministic).lower()}
        query |= {} if seed is None else {"seed": str(seed)}
        body = b"".join(np.ascontiguousarray(block).tobytes() for _, own in parts for block in own)
        again = "session" not in query  # a step of a session must not be made twice
        answer = self._send("POST", "/v1/act", again=again, params=query, content=body, headers={"content-type": RAW})
        numbers, start = np.frombuffer(answer.content, "<f4"), 0
        results: list[dict[str, np.ndarray]] = []
        for widths in ({n: _size(groups[n]["action"]) for n in arrays}, sizes if memory is not None else {}):
            results.append({})
            for name in (n for n in arrays if n in widths):
                shape = rows, len(groups[name]["agents"]), widths[name]
                value = numbers[start : start + int(np.prod(shape))].reshape(shape)
                start += value.size
                whole = not results[1:] and groups[name]["action"]["low"] is None
                value = value.astype(np.int64 if whole else np.float32)
                results[-1][name] = value if batched else value[0]
        return results[0] if memory is None else (results[0], Memory(results[1], answer.headers["x-version"]))

    def _send(self, method: str, path: str, again: bool = True, **content: Any) -> httpx.Response:
        """A request and its answer, tried again where that can't do harm. Raises ServerRefused."""
        wait, refused = FIRST_WAIT, None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                answer = self.http.request(method, path, **content)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                refused = ServerRefused(0, f"{self.http.base_url}: can't be reached ({error})")
                continue
            except httpx.TransportError as error:  # the request may have been served
                refused = ServerRefused(0, f"{self.http.base_url}: no answer ({type(error).__name__}: {error})")
                if not again:
                    break
                continue
            if answer.is_success:
                return answer
            refused = ServerRefused(answer.status_code, _sentence(answer))
            if answer.status_code != 503:
                break
        raise refused


class Session:
    """Episodes of one client, of which the server remembers what the policy needs; made by `Client.session`.

    Args:
        client: whose server has it.
        id: the server's name for it.
    """

    def __init__(self, client: Client, id: str) -> None:
        self.client, self.id = client, id

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def act(
        self,
        observations: Arrays,
        deterministic: bool | None = None,
        seed: int | None = None,
        action_masks: Arrays | None = None,
        alive: Arrays | None = None,
        reset: bool = False,
    ) -> dict[str, np.ndarray]:
        """As `Client.act`. reset: episodes begin with these observations.

        Raises:
            ServerRefused: also where the session has ended, or where the answer was lost: then begin again.
        """
        query = {"session": self.id, **({"reset": "true"} if reset else {})}
        return self.client._act(query, observations, deterministic, seed, action_masks, alive, None)

    def close(self) -> None:
        """End it. One that the server has forgotten already is none to complain of."""
        try:
            self.client._send("DELETE", f"/v1/sessions/{self.id}", again=False)
        except ServerRefused as refused:
            if refused.status not in (0, 404):
                raise


def _rows(name: str, value: Any, batched: bool, dimensions: int) -> np.ndarray:
    """An array with a dimension of rows. Raises UserError where it has another number of dimensions."""
    array = np.asarray(value)
    if array.ndim != dimensions - (not batched):
        raise UserError(f"{name}: has shape {array.shape}; all of a request have rows, or none has")
    return array if batched else array[None]


def _size(action: Mapping[str, Any]) -> int:
    """D of a group's action."""
    return len(action["nvec"]) + (len(action["low"][0]) if action["low"] else 0)


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):  # another server's, such as a proxy
        return f"status {answer.status_code}"
