"""A server from its settings to its last answer."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Mapping

from agents.deploy.server.app import application
from agents.deploy.server.connections import Server
from agents.deploy.server.guard import Guard
from agents.deploy.server.metrics import Metrics
from agents.deploy.server.security import Gate, loopback, read_token, tls
from agents.deploy.server.sessions import Sessions
from agents.deploy.server.settings import ServerSettings
from agents.deploy.server.versions import Policies
from marl.core.errors import UserError

SWEEP = 5.0  # seconds between looks at sessions that have ended


def say(text: str) -> None:
    """A line for the user who started the server."""
    with contextlib.suppress(BrokenPipeError):  # its reader has gone, which is no reason to end
        print(text, flush=True)


def serve(places: Mapping[str, str], which: str, settings: ServerSettings) -> None:
    """Serve the policies at `places` until a signal comes: SIGTERM and SIGINT end, SIGHUP looks for new versions.

    Args:
        places: {name: run directory, checkpoint, policy file or zoo/NAME}.
        which: last or best, of run directories.
        settings: of the server.

    Raises:
        UserError: settings that do not fit together, a policy that can't be loaded, a port that is taken.
    """
    gate, context = Gate(read_token(settings)), tls(settings)
    if context is None and not loopback(settings.host):
        say(f"host={settings.host} without TLS: the token can be read on its way; set tls_certificate and tls_key, "
            "or let a proxy on this machine add TLS")  # fmt: skip
    listening = listen(settings)  # before the policies are loaded, which takes longer
    try:
        asyncio.run(_serve(places, which, settings, gate, context, listening))
    finally:
        listening.close()


def listen(settings: ServerSettings) -> socket.socket:
    """A socket at host and port that does not listen yet. Raises UserError where it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(
            f"host={settings.host} port={settings.port}: {error.strerror or error}; port=0 takes any that is free"
        ) from error
    return listening


async def _serve(
    places: Mapping[str, str],
    which: str,
    settings: ServerSettings,
    gate: Gate,
    context: object,
    listening: socket.socket,
) -> None:
    metrics = Metrics()
    policies = Policies(places, which, settings, metrics, say)
    sessions = Sessions(settings.max_sessions, settings.session_seconds)
    app, act = application(policies, sessions, metrics, settings, lambda: not guard.draining)
    guard = Guard(app, act, settings, gate, metrics)
    host, port = listening.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    line = f"{'https' if context else 'http'}://{address}/ serves {', '.join(policies.current)} (Ctrl-C ends it)"
    server = Server(guard, settings, context, lambda reason: metrics.refused.labels(reason).inc(), [listening],
                    lambda: say(line))  # fmt: skip
    metrics.watch("marl_sessions", "Sessions that are open", lambda: len(sessions.by_id))
    metrics.watch("marl_connections", "Connections that are open, those in a TLS handshake too", server.open)
    metrics.watch("marl_swaps_failed", "New versions that could not be taken", lambda: policies.failures)
    metrics.watch("marl_version_total", "Versions of all policies that were loaded",
                  lambda: sum(version.number for version in policies.current.values()))  # fmt: skip
    loop, background = asyncio.get_running_loop(), set()

    def start(coroutine: object) -> None:
        """Run beside the requests; a reference is kept, or the loop might forget it."""
        task = loop.create_task(coroutine)
        background.add(task)
        task.add_done_callback(background.discard)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP)
            sessions.sweep()

    def end(seconds: float) -> None:
        guard.drain()
        server.drain(seconds)

    loop.add_signal_handler(signal.SIGTERM, end, settings.drain_seconds)
    loop.add_signal_handler(signal.SIGINT, end, 0.0)
    loop.add_signal_handler(signal.SIGHUP, lambda: start(policies.reload()))
    start(sweep())
    if settings.watch_seconds is not None:
        start(policies.watch(settings.watch_seconds))
    # What is there by now stays; a collection that goes through it stops all requests for a tenth of a second.
    gc.collect()
    gc.freeze()
    try:
        await server.serve()
    finally:
        gc.unfreeze()
        for task in background:
            task.cancel()
