"""What every request passes before it reaches a route: token, rate, size, time; and the end of a server's life."""

import asyncio
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request

from agents.deploy.server.app import Act
from agents.deploy.server.metrics import Metrics
from agents.deploy.server.security import Gate
from agents.deploy.server.settings import Refused, ServerSettings

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
OPEN = {"/health", "/ready"}  # without a token and at any rate: what starts and ends containers asks them
ROUTES = {"/v1/act", "/v1/model", "/v1/policies", "/v1/sessions", "/health", "/ready", "/metrics", "/docs",
          "/openapi.json"}  # fmt: skip
REMEMBERED = 10_000  # clients whose rate is known; of more, the one that has not asked for longest is forgotten
FLUSHED = 1_000_000  # bytes of a refused body that are still read, so that the client sees the answer


class Rates:
    """How fast each address may ask: `rate` requests per second on average, as many at once (a token bucket)."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.most, self.clock = rate, max(1.0, rate), clock
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Count a request. Raises Refused where it comes too early."""
        now = self.clock()
        left, before = self.left.pop(address, (self.most, now))
        left = min(self.most, left + (now - before) * self.rate)
        self.left[address] = (left - 1 if left >= 1 else left, now)
        if len(self.left) > REMEMBERED:
            self.left.popitem(last=False)
        if left < 1:
            seconds = str(max(1, round((1 - left) / self.rate)))
            raise Refused(429, f"rate: more than {self.rate:g} requests per second", {"retry-after": seconds}, "rate")


class Guard:
    """An ASGI application around another one. It reads a request's body, whole and in time, and answers refusals.

    Args:
        app: whose routes are asked.
        act: of `POST /v1/act`, called without the app's own ways, which would take a fifth of a request's time.
        settings: the limits.
        gate: who may ask.
        metrics: what is counted.

    Attributes:
        draining: whether the server's end has begun.
        in_flight: requests under way.
    """

    def __init__(self, app: Any, act: Act, settings: ServerSettings, gate: Gate, metrics: Metrics) -> None:
        self.app, self.act, self.settings, self.gate, self.metrics = app, act, settings, gate, metrics
        self.rates = Rates(settings.max_rate) if settings.max_rate else None
        self.draining, self.in_flight = False, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        start, path = time.perf_counter(), scope["path"]
        route = "/v1/sessions" if path.startswith("/v1/sessions/") else path if path in ROUTES else "other"
        status, whole = 0, False

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # What was not read would be taken for the next request.
                if self.draining or not whole:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        self.in_flight += 1
        try:
            self._admit(scope, path)
            body = await self._body(scope, receive)
            whole = True
            if path == "/v1/act" and scope["method"] == "POST":
                response = await self.act(Request(scope, replayed(body, receive)))
                await response(scope, receive, answer)
            else:
                await self.app(scope, replayed(body, receive), answer)
        except Refused as refused:
            whole = whole or await self._flush(scope, receive)
            await self._refuse(refused, answer)
        except ConnectionError:  # the client has gone: nothing is left to tell it
            pass
        except Exception:  # a mistake of ours: it is in the log, and the other requests go on
            traceback.print_exc(file=sys.stderr)
            if not status:
                await self._refuse(Refused(500, "the server failed; its log says how", reason="failure"), answer)
        finally:
            self.in_flight -= 1
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def drain(self) -> None:
        """From now on each answer closes its connection."""
        self.draining = True

    def _admit(self, scope: Message, path: str) -> None:
        """Raises Refused where this client may not ask, or not now."""
        if path in OPEN:
            return
        if self.rates:
            self.rates.take((scope.get("client") or ("", 0))[0])
        self.gate.check(dict(scope["headers"]))

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """The whole body. Raises Refused where it is too large or too slow, ConnectionError where the client leaves."""
        most, seconds = self.settings.max_body, self.settings.slow_seconds
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > most:
            raise self._large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ConnectionResetError
                    chunks.append(message["body"])
                    size += len(message["body"])
                    if size > most:
                        raise self._large()
                    more = message["more_body"]
        except TimeoutError:
            raise Refused(408, f"body: did not arrive within {seconds:g} s (slow_seconds)", reason="slow") from None
        return b"".join(chunks)

    def _large(self) -> Refused:
        return Refused(413, f"body: more than {self.settings.max_body} bytes (max_body)", reason="size")

    async def _flush(self, scope: Message, receive: Receive) -> bool:
        """Read some of what a refused client still sends; whether that was all of it."""
        if any(name == b"expect" for name, _ in scope["headers"]):  # it waits for leave to send its body
            return False
        read = 0
        try:
            async with asyncio.timeout(min(1.0, self.settings.slow_seconds)):
                while read <= FLUSHED:
                    message = await receive()
                    if message["type"] != "http.request" or not message["more_body"]:
                        return True
                    read += len(message["body"])
        except TimeoutError:
            pass
        return False

    async def _refuse(self, refused: Refused, send: Send) -> None:
        self.metrics.refused.labels(refused.reason).inc()
        body = to_json({"error": refused.sentence})
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


def replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
