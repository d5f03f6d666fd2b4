"""TLS handshakes of a server: counted with its connections, and ended in time."""

import asyncio
import ssl
from collections.abc import Callable, Sized

from agents.deploy.server.settings import ServerSettings


class Handshakes:
    """Makes the protocols of what is accepted: each becomes one of `make` once its handshake is complete.

    asyncio's own listening with TLS makes no protocol before that, so nothing could count what is in a handshake.

    Args:
        context: with the server's certificate.
        settings: the limits.
        established: the connections whose handshakes are complete.
        make: a protocol for one more.
        refuse: is called with a reason for everyone who gets none.

    Attributes:
        under_way: the handshakes that are not complete.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        settings: ServerSettings,
        established: Sized,
        make: Callable[[], asyncio.Protocol],
        refuse: Callable[[str], None],
    ) -> None:
        self.context, self.settings, self.established = context, settings, established
        self.make, self.refuse = make, refuse
        self.under_way: set[Handshake] = set()

    def __call__(self) -> asyncio.Protocol:
        return Handshake(self)


class Handshake(asyncio.Protocol):
    """One client's connection until its handshake is complete.

    Attributes:
        early: what arrived decrypted before the connection's own protocol was there.
    """

    def __init__(self, server: Handshakes) -> None:
        self.server = server
        self.early: list[bytes] = []
        self.task: asyncio.Task[None] | None = None  # a reference, or the loop might forget it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        server = self.server
        if len(server.established) + len(server.under_way) >= server.settings.max_connections:
            server.refuse("busy")
            transport.abort()  # a sentence would cost the handshake that it is to save
            return
        transport.pause_reading()  # until start_tls reads
        server.under_way.add(self)
        self.task = asyncio.get_running_loop().create_task(self._secure(transport))

    def data_received(self, data: bytes) -> None:
        self.early.append(data)

    async def _secure(self, transport: asyncio.Transport) -> None:
        """Shake hands, then leave the connection to a protocol of its own."""
        server, seconds = self.server, self.server.settings.slow_seconds
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(transport, self, server.context, server_side=True,
                                           ssl_handshake_timeout=seconds, ssl_shutdown_timeout=seconds)  # fmt: skip
        except OSError:  # too slow, no TLS, no version or cipher in common, gone: the transport is closed
            secured = None
        finally:
            server.under_way.discard(self)
        if secured is None:  # as where the client left right after its handshake
            server.refuse("handshake")
            return
        connection = server.make()
        secured.set_protocol(connection)
        connection.connection_made(secured)
        for data in self.early:
            connection.data_received(data)
