"""uvicorn's server with bounds that it lacks: on connections, on heads and trailers, on what waits, on not reading."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from agents.deploy.server.security import Handshakes
from agents.deploy.server.settings import ServerSettings

HEAD = 16_384  # bytes of a request's line, headers and trailers
WAITING = 8  # requests of one connection that may wait for the one before them (HTTP pipelining)
PHRASES = {status: HTTPStatus(status).phrase for status in (400, 408, 431, 503)}


class Ended(Exception):
    """Raised inside of the parser, so that it leaves the rest of what has arrived."""


class Flow(FlowControl):
    """uvicorn's flow of a connection, but nothing is read while requests wait that were read already.

    uvicorn reads on with every answer: heads would pile up faster than they are answered.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self.waiting = waiting

    def resume_reading(self) -> None:
        if not self.waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One client's connection. What is slow, long or too much is answered and closed; who does not read is cut off."""

    def __init__(self, settings: ServerSettings, refuse: Callable[[str], None], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.settings, self.refuse = settings, refuse
        self.head_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None
        self.head_bytes = 0  # of this message's line, headers and trailers
        self.answering: RequestResponseCycle | None = None  # what `cycle` is only where no other request waits
        self.unparsed = 0  # bytes since the last head or part of a body: the parser may hold them all

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        most = self.settings.max_connections
        if len(self.connections) > most:
            self._end(503, f"connections: {most} are open, which is all that are allowed (max_connections)", "busy")
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.unparsed += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.unparsed > HEAD:
            self._long()
        elif self._between_requests():
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in place of uvicorn's text."""
        self._end(400, "request: is not HTTP/1.1", "input")

    def on_message_begin(self) -> None:
        self.head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: those of a body in chunks come here, too."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self.unparsed = 0
        super().on_headers_complete()
        if len(self.pipeline) > WAITING:
            self._end(400, f"requests: more than {WAITING} wait for the one before them", "busy")
            raise Ended

    def on_body(self, body: bytes) -> None:
        self.unparsed = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # else the rest has to be read, too
            self._stop_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        self._give_up()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        """Whether what arrives belongs to no request whose head is complete."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def _count(self, size: int) -> None:
        """Add to the message's head. Raises Ended where that is too long."""
        self.head_bytes += size
        if self.head_bytes > HEAD:
            self._long()
            raise Ended

    def _long(self) -> None:
        self._end(431, f"headers: more than {HEAD} bytes", "size")

    def _await_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(self.settings.slow_seconds, self._late)

    def _stop_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _late(self) -> None:
        self.head_timer = None
        if not self.transport.is_closing():
            self._end(408, f"headers: did not arrive within {self.settings.slow_seconds:g} s (slow_seconds)", "slow")

    def _await_reader(self) -> None:
        """Give the client `slow_seconds` to read what was written."""
        if self.write_timer is None:
            self.write_timer = self.loop.call_later(self.settings.slow_seconds, self._unread)

    def _stop_write_timer(self) -> None:
        if self.write_timer is not None:
            self.write_timer.cancel()
            self.write_timer = None

    def _unread(self) -> None:
        """Cut the connection: closing it would wait for what is not read."""
        self.write_timer = None
        self.refuse("unread")
        self._give_up()
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self) -> None:
        """Tell the request under way that its client is gone; uvicorn tells the one that arrived last."""
        if self.answering is not None and not self.answering.response_complete:
            self.answering.disconnected = True
            self.answering.message_event.set()

    def _end(self, status: int, sentence: str, reason: str) -> None:
        """Answer before there is a request, or in a request's place, and close."""
        if self.transport.is_closing():  # ended inside of the parser, which then complains of that
            return
        self.refuse(reason)
        cycle = self.cycle
        whose = cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)
        if whose and not self.pipeline:  # else it would be taken for the answer to an earlier request
            body = to_json({"error": sentence})
            head = f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self._give_up()
        self.transport.close()
        self._await_reader()


class Server(uvicorn.Server):
    """uvicorn's server on sockets of its caller's, with `Connection`s; it leaves signals to its caller.

    announce: is called once it listens; before that, clients would be refused.
    """

    def __init__(
        self,
        app: Any,
        settings: ServerSettings,
        context: Any,
        refuse: Callable[[str], None],
        sockets: list[Any],
        announce: Callable[[], None],
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
        self.settings, self.context, self.refuse = settings, context, refuse
        self.sockets, self.announce = sockets, announce
        self.handshakes: Handshakes | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Begin to listen."""
        await self.lifespan.startup()
        make = partial(Connection, self.settings, self.refuse, config=self.config, server_state=self.server_state,
                       app_state={})  # fmt: skip
        if self.context is not None:
            self.handshakes = make = Handshakes(
                self.context, self.settings, self.server_state.connections, make, self.refuse
            )
        loop = asyncio.get_running_loop()
        self.servers = [await loop.create_server(make, sock=sock, backlog=2048) for sock in self.sockets]
        self.started = True
        self.announce()

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End what is open; who never finished a handshake is not waited for."""
        if self.handshakes:
            self.handshakes.end()
        await super().shutdown(sockets)

    def open(self) -> int:
        """Connections that count, those in their handshake among them."""
        return len(self.server_state.connections) + (len(self.handshakes.under_way) if self.handshakes else 0)

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
