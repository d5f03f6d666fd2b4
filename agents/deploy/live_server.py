"""The served live page: a web server on loopback, one simulated world per browser that connects (aiohttp)."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from agents.deploy.live_session import Session
from agents.policies.policy import Policy
from envs.base import EnvError
from envs.rendering import html_page as pages
from marl.core.errors import UserError

HOST = "127.0.0.1"
MOST = 8  # browsers at once: each runs a simulation
PATIENCE = 1.0  # seconds that a browser has to answer a goodbye
BEGIN = "connect();"


def application(policy: Policy, settings: dict[str, Any], most: int = MOST) -> web.Application:
    """The server: GET / is the page, /ws a world of one's own. Only pages that it served itself may connect."""
    about = "streamed from Python"
    text = pages.page("live", {}, ENGINE=pages.web("remote.js"), BEGIN=BEGIN, ABOUT=about)
    open_now: set[web.WebSocketResponse] = set()
    hello: dict[str, Any] = {}  # the same for every world: what the first one says
    # Simulators swap the process's random generators while they run, so all worlds step on one thread.
    worlds = ThreadPoolExecutor(1, "worlds")

    async def index(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    def begin() -> Session:
        session = Session(policy, settings)
        hello.update(hello or session.hello())
        return session

    async def connect(request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Origin") != f"http://{request.host}" or request.host.partition(":")[0] not in (
            HOST,
            "localhost",
        ):
            raise web.HTTPForbidden(text="only the page of this server may connect")
        socket = web.WebSocketResponse(heartbeat=60, max_msg_size=4096, timeout=PATIENCE)
        await socket.prepare(request)
        if len(open_now) >= most:
            await socket.send_json({"error": f"{most} browsers are connected already, which is all this server takes"})
            await socket.close()
            return socket
        open_now.add(socket)
        try:
            session = await asyncio.get_running_loop().run_in_executor(worlds, begin)
            await socket.send_json({"hello": hello})
            await _play(socket, session, worlds)
        except* ConnectionResetError:
            pass  # the browser has gone: nothing is left to tell it
        finally:
            open_now.discard(socket)
        return socket

    async def goodbye(app: web.Application) -> None:
        closing = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server has ended") for socket in open_now]
        with contextlib.suppress(TimeoutError):  # a browser that reads nothing would hold the server up
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), PATIENCE)

    async def end_worlds(app: web.Application) -> None:
        worlds.shutdown(wait=False, cancel_futures=True)

    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/ws", connect)])
    app.on_shutdown.append(goodbye)
    app.on_cleanup.append(end_worlds)
    app["open"] = open_now
    return app


async def _play(socket: web.WebSocketResponse, session: Session, worlds: Executor) -> None:
    """Step in time and do what comes in, until the browser leaves."""
    clock = asyncio.get_running_loop()

    def after(job: Callable[..., None], *arguments: Any) -> dict[str, Any]:
        job(*arguments)
        return session.frame()

    async def send(frame: dict[str, Any]) -> None:
        try:
            await socket.send_str(json.dumps(frame, allow_nan=False))
        except ValueError:  # JSON has no NaN: the page could not read it
            await socket.send_json({"error": f"step {frame['steps']}: the scenario's numbers are not finite; reset it"})

    async def run() -> None:
        due = clock.time()
        while not socket.closed:
            due = max(due + session.simulator.world.dt / session.speed, clock.time())
            if session.playing:
                await send(await clock.run_in_executor(worlds, after, session.step))
            await asyncio.sleep(min(max(due - clock.time(), 0.005), 1.0))

    await send(await clock.run_in_executor(worlds, session.frame))
    async with asyncio.TaskGroup() as group:  # a world that fails ends its connection, and is in the log
        running = group.create_task(run())
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                continue
            try:
                command = json.loads(message.data)
                await send(await clock.run_in_executor(worlds, after, session.command, command))
            except EnvError:  # of the world itself
                raise
            except (UserError, json.JSONDecodeError) as error:
                await socket.send_json({"error": str(error)})
            except RecursionError:
                await socket.send_json({"error": "a command is one object, not thousands within each other"})
        running.cancel()


def serve(policy: Policy, settings: dict[str, Any], port: int = 8000) -> None:
    """Serve on 127.0.0.1 until interrupted. Raises UserError where the port is taken."""

    async def forever() -> None:
        runner = web.AppRunner(application(policy, settings), shutdown_timeout=PATIENCE)
        await runner.setup()
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(
                f"port={port}: {error.strerror or error}; choose another, 0 takes any that is free"
            ) from error
        address = runner.addresses[0]
        print(f"http://{address[0]}:{address[1]}/ (Ctrl-C ends it)", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(forever())
