"""Who may ask a server: its token, its certificate and TLS handshakes, the hosts that it answers to."""

import asyncio
import hmac
import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from urllib.parse import urlsplit

from agents.deploy.server.settings import Refused, ServerSettings
from marl.core.errors import UserError

TOKEN = "MARL_SERVE_TOKEN"  # environment variable; a command line is seen by every user of a machine
SHORTEST = 16  # characters of a token


def read_token(settings: ServerSettings) -> bytes | None:
    """The token of `token_file`, else of the environment; None where there is none.

    Raises:
        UserError: it can't be read, is short or no plain ASCII, or is missing where others than this machine may ask.
    """
    where, text = TOKEN, os.environ.get(TOKEN)
    if settings.token_file is not None:
        where = f"token_file={settings.token_file}"
        try:
            text = Path(settings.token_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: can't be read ({getattr(error, 'strerror', None) or 'no text'})") from error
    if text is None:
        if not loopback(settings.host):
            raise UserError(
                f"host={settings.host}: others than this machine may ask then, so a token is needed; put one into a "
                f"file (token_file=PATH) or into the environment ({TOKEN})"
            )
        return None
    text = text.strip()
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise UserError(f"{where}: a token has at least {SHORTEST} printable ASCII characters and no space")
    return text.encode()


def loopback(host: str) -> bool:
    """Whether this is a name or address of the machine itself that no other can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def tls(settings: ServerSettings) -> ssl.SSLContext | None:
    """TLS 1.2 or later with the settings' files; None without them. Raises UserError where they can't be used."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None:
        raise UserError(f"tls_key={key}: needs tls_certificate, too")
    if key is None:
        raise UserError(f"tls_certificate={certificate}: needs tls_key, too")
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        if not os.path.isfile(path):
            raise UserError(f"{name}={path}: there is no such file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An encrypted key would have the password asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise UserError(f"tls_certificate={certificate}: no certificate with the key {key} ({error})") from error
    return context


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

    def end(self) -> None:
        """Close all that are under way: a server that ends waits for none of them."""
        for handshake in self.under_way:
            assert handshake.task is not None
            handshake.task.cancel()  # start_tls closes what it was given


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
        except BaseException:
            transport.abort()  # nothing else would close it
            raise
        finally:
            server.under_way.discard(self)
        if secured is None:  # as where the client left right after its handshake
            server.refuse("handshake")
            return
        try:
            connection = server.make()
            secured.set_protocol(connection)
            connection.connection_made(secured)
            for data in self.early:
                connection.data_received(data)
        except BaseException:
            secured.abort()
            raise


class Gate:
    """Lets requests with the right token through; without a token those that name this machine itself.

    A page in a browser may have a name of its own that leads to 127.0.0.1 (DNS rebinding). Its requests carry that name
    as their host. Any other page may send to 127.0.0.1, too, though it can't read the answer: browsers say from where.
    """

    def __init__(self, token: bytes | None) -> None:
        self.token = token

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises Refused."""
        if self.token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if not loopback(name):
                raise Refused(403, f"host {host[:60]!r}: this server answers to localhost only", reason="host")
            origin = headers.get(b"origin", b"").decode("latin-1")
            if origin and not loopback(_host(origin)):
                why = f"origin {origin[:60]!r}"
            elif headers.get(b"sec-fetch-site") == b"cross-site":  # a browser's GET may have no origin
                why = "sec-fetch-site 'cross-site'"
            else:
                return
            raise Refused(403, f"{why}: pages from elsewhere may not ask this server", reason="origin")
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Compared in constant time: how long it takes must not tell how much of a guess is right.
        if not hmac.compare_digest(given.strip(), self.token) or scheme.lower() != b"bearer":
            raise Refused(
                401,
                "authorization: Bearer TOKEN is needed, with this server's token",
                {"www-authenticate": "Bearer"},
                reason="token",
            )


def _host(origin: str) -> str:
    """The host that an `Origin` header names; nothing where it names none, as `null` does."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""
