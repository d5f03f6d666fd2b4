"""The routes of a server of policies."""

import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from agents.deploy.export import card
from agents.deploy.server import wire
from agents.deploy.server.batching import Acted, Job
from agents.deploy.server.metrics import Metrics
from agents.deploy.server.openapi_page import page
from agents.deploy.server.sessions import Session, Sessions
from agents.deploy.server.settings import Refused, ServerSettings
from agents.deploy.server.versions import Policies, Version
from envs.spec import describe
from marl.core.files import finite

JSON, RAW = "application/json", "application/octet-stream"
SCHEMAS = "#/components/schemas/{model}"
# The page holds no script, and whatever it shows may fetch nothing.
PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "x-frame-options": "DENY"}


def kind_of(request: Request) -> str:
    """The body's content type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


Act = Callable[[Request], Awaitable[Response]]


class NewSession(BaseModel):
    """What `POST /v1/sessions` takes; no body at all means {}."""

    model_config = ConfigDict(extra="forbid", strict=True)

    policy: str | None = None


def application(
    policies: Policies, sessions: Sessions, metrics: Metrics, settings: ServerSettings, ready: Callable[[], bool]
) -> tuple[FastAPI, Act]:
    """The server's routes, and by itself the function behind `POST /v1/act`. ready: whether requests are welcome."""
    app = FastAPI(
        title="marl-engine: policies",
        description="Observations of agents to their actions.",
        version="1",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name whatever host the client names
    )

    # Texts that take as long as many actions: each is made once.
    models: WeakKeyDictionary[Version, bytes] = WeakKeyDictionary()

    @app.post(
        "/v1/act",
        summary="Actions for observations",
        description=(
            f"As {JSON}, or as {RAW}: then the body is little-endian float32, for each of the query's `parts` "
            "(`observations`, `memory`; `action_masks` and `alive` in bytes 0 and 1) each of its `groups` "
            "[rows, agents, numbers], one after the other. The answer is actions [rows, agents, numbers] of each "
            "group in float32, then memory where the request held it; its headers name policy and version."
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    JSON: {"schema": wire.ActRequest.model_json_schema(ref_template=SCHEMAS)},
                    RAW: {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "parameters": [
                {"name": name, "in": "query", "required": False, "description": "of a raw body only", "schema": schema}
                for name, schema in wire.RawRequest.model_json_schema()["properties"].items()
            ],
        },
    )
    async def act(request: Request) -> Response:
        kind = kind_of(request)
        body = await request.body()
        if kind == JSON:
            if request.scope["query_string"]:
                raise Refused(400, "query: is of raw bodies; with JSON all of it stands in the body")
            asked = wire.text(body)
            version, session = chosen(asked, asked.memory is not None)
            job, batched = wire.job_of_text(version.shapes, asked, settings.max_batch)
            keeps = asked.memory is not None
            acted = await answered(version, session, job, asked.reset, keeps)
            about = {"policy": version.name, "version": version.number}
            return Response(wire.answer_text(version.shapes, acted, batched, keeps, about), media_type=JSON)
        if kind == RAW:
            raw = wire.query(request.scope["query_string"])
            keeps = "memory" in raw.parts.split(",")
            version, session = chosen(raw, keeps)
            job = wire.job_of_raw(version.shapes, raw, body, settings.max_batch)
            acted = await answered(version, session, job, raw.reset, keeps)
            headers = {"x-policy": version.name, "x-version": str(version.number)}
            return Response(wire.answer_raw(job.observations, acted, keeps), headers=headers, media_type=RAW)
        raise Refused(415, f"content-type {kind[:60]!r}: must be {JSON} or {RAW}")

    def chosen(asked: wire.ActRequest | wire.RawRequest, keeps: bool) -> tuple[Version, Session | None]:
        """Which version acts, and whose session it is."""
        if asked.session is None:
            version, session = policies.find(asked.policy), None
        elif keeps:
            raise Refused(400, "memory: is kept either by the session or by the client, not by both")
        else:
            session = sessions.find(asked.session)
            version = session.version
            if asked.policy not in (None, version.name):
                raise Refused(400, f"policy: this session is of {version.name}")
        if asked.version not in (None, version.number):
            raise Refused(
                409,
                f"version: {version.number} of {version.name} serves, not {asked.version}, whose memory means nothing "
                "to it; begin the episode again with memory={}, or use a session, which stays at its version",
                reason="version",
            )
        return version, session

    async def answered(version: Version, session: Session | None, job: Job, reset: bool, keeps: bool) -> Acted:
        """The actions, with the memory that the job needs."""
        if session is None:
            if reset:
                raise Refused(400, "reset: is of sessions")
            zeros = version.shapes.zeros(job.rows)
            if zeros and not keeps:
                names = ", ".join(zeros)
                raise Refused(400, f"memory: this policy remembers what {names} saw; open a session, or send memory")
            job.memory = {**zeros, **job.memory}
            return await version.batcher.act(job)
        session.begin(job, reset)
        acted = None
        try:
            acted = await version.batcher.act(job)
        finally:
            session.end(acted)
        return acted

    @app.post(
        "/v1/sessions",
        status_code=201,
        summary="Begin a session: the server remembers for you, and stays at today's version",
        openapi_extra={"requestBody": {"content": {JSON: {"schema": NewSession.model_json_schema()}}}},
    )
    async def open_session(request: Request) -> dict[str, Any]:
        body = await request.body()
        if body and kind_of(request) != JSON:  # which a page from elsewhere can't send unasked
            raise Refused(415, f"content-type {kind_of(request)[:60]!r}: must be {JSON}")
        try:
            asked = NewSession.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise Refused(400, wire.sentence(error)) from None
        version = policies.find(asked.policy)
        session = sessions.open(version)
        return {
            "session": session.id,
            "policy": version.name,
            "version": version.number,
            "seconds": sessions.seconds,
        }

    @app.delete("/v1/sessions/{id}", status_code=204, summary="End a session")
    async def close_session(id: Annotated[str, Path(max_length=100)]) -> None:
        sessions.close(id)

    @app.get("/v1/policies", summary="The policies and their versions")
    async def names() -> dict[str, Any]:
        return {"policies": [
            {"policy": name, "version": version.number, "sessions": sessions.of(version)}
            for name, version in policies.current.items()
        ]}  # fmt: skip

    @app.get("/v1/model", summary="What a policy takes and gives, and its model card")
    async def model(policy: Annotated[str | None, Query(max_length=100)] = None) -> Response:
        version = policies.find(policy)
        if version not in models:
            models[version] = to_json(told_of(version))
        return Response(models[version], media_type=JSON)

    def told_of(version: Version) -> dict[str, Any]:
        of = version.policy
        return {
            "policy": version.name,
            "version": version.number,
            "backend": settings.backend,
            "max_batch": settings.max_batch,
            "spec": finite(describe(of.spec)),
            "memory": version.shapes.memory,
            "action_masks": version.shapes.choices,
            "run": finite(of.metadata.get("run") or {}),
            "env": finite(of.metadata.get("env") or {}),
            "card": card(of, "safetensors"),
        }

    @app.get("/health", summary="200 as long as the server lives")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="200 while new requests are welcome, 503 once the server is ending")
    async def is_ready() -> dict[str, str]:
        if not ready():
            raise Refused(503, "the server is ending", reason="draining")
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures for Prometheus")
    async def figures() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return Response(documented(), headers=PAGE_HEADERS, media_type="text/html")

    documented = functools.cache(lambda: page(app.openapi()))

    def response(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
        return Response(to_json({"error": sentence}), status, headers, JSON)

    @app.exception_handler(Refused)
    async def refuse(request: Request, refused: Refused) -> Response:
        metrics.refused.labels(refused.reason).inc()
        return response(refused.status, refused.sentence, refused.headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        metrics.refused.labels("route").inc()
        place = f"{request.method[:10]} {request.url.path[:60]}"
        return response(error.status_code, f"{place}: {str(error.detail).lower()}; /docs lists what there is")

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        """The guard logs it."""
        metrics.refused.labels("failure").inc()
        return response(500, "the server failed; its log says how")

    return app, act
