"""uvicorn's server with bounds that it lacks: how many connections, how long a request's head may take and be."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agents.deploy.server.settings import ServerSettings

HEAD = 16_384  # bytes of a request's line and headers
PHRASES = {status: HTTPStatus(status).phrase for status in (400, 408, 431, 503)}


class Connection(HttpToolsProtocol):
    """One client's connection. A head that is slow or long, and one client too many, are told and closed."""

    def __init__(self, settings: ServerSettings, refuse: Callable[[str], None], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.settings, self.refuse = settings, refuse
        self.head_timer: asyncio.TimerHandle | None = None
        self.head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        most = self.settings.max_connections
        if len(self.connections) > most:
            self._end(503, f"connections: {most} are open, which is all that are allowed (max_connections)", "busy")
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.is_closing() or not self._between_requests():
            return
        self.head_bytes += len(data)
        if self.head_bytes > HEAD:
            self._end(431, f"headers: more than {HEAD} bytes", "size")
        else:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in place of uvicorn's text."""
        self._end(400, "request: is not HTTP/1.1", "input")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self.head_bytes = 0
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        """Whether what arrives belongs to no request whose head is complete."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def _await_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(self.settings.slow_seconds, self._late)

    def _stop_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _late(self) -> None:
        self.head_timer = None
        if not self.transport.is_closing():
            self._end(408, f"headers: did not arrive within {self.settings.slow_seconds:g} s (slow_seconds)", "slow")

    def _end(self, status: int, sentence: str, reason: str) -> None:
        """Answer before there is a request, and close."""
        self.refuse(reason)
        body = to_json({"error": sentence})
        head = f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server on a socket that listens already, with `Connection`s; it leaves signals to its caller."""

    def __init__(
        self, app: Any, settings: ServerSettings, context: Any, refuse: Callable[[str], None], sockets: list[Any]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpToolsProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # what fails is logged by the guard
                access_log=False,
                proxy_headers=False,  # anyone could name any address in them
                server_header=False,
                timeout_keep_alive=settings.idle_seconds,
                timeout_graceful_shutdown=settings.slow_seconds + 5,
            )
        )
        self.settings, self.context, self.refuse, self.sockets = settings, context, refuse, sockets

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Begin to listen."""
        await self.lifespan.startup()
        make = partial(Connection, self.settings, self.refuse, config=self.config, server_state=self.server_state,
                       app_state={})  # fmt: skip
        loop, secured = asyncio.get_running_loop(), {}
        if self.context is not None:
            seconds = self.settings.slow_seconds
            secured = {"ssl": self.context, "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": seconds}
        self.servers = [await loop.create_server(make, sock=sock, backlog=2048, **secured) for sock in self.sockets]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn would end the process by the signal again, with its exit code."""
        yield

    def drain(self, seconds: float) -> None:
        """End after so many seconds, in which requests are still answered; a second call ends at once."""
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, setattr, self, "should_exit", True)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)

    def stop(self) -> None:
        """End now, without waiting for what is under way."""
        self.should_exit = self.force_exit = True
