"""The settings of a server, and the one error by which a request is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Seconds = Annotated[float, Field(gt=0, le=3600)]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and places of a server; `scripts/serve.py` says what each key means.

    Times are seconds but for max_wait_ms. A row is the observation of one environment's agents, [A, F] per group.
    """

    backend: Literal["torch", "onnx"] = "torch"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    token_file: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    max_batch: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] | None = 2.0
    max_body: Annotated[int, Field(ge=1, le=2**31)] = 4_000_000
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 256
    max_sessions: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    session_seconds: Annotated[float, Field(gt=0, le=30 * 86400)] = 600.0
    max_rate: Annotated[float, Field(gt=0)] | None = None
    slow_seconds: Seconds = 5.0
    idle_seconds: Seconds = 60.0
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 2.0
    watch_seconds: Seconds | None = None


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP, 4xx or 503.
        sentence: why, for the client.
        headers: to be sent with it, such as Retry-After.
        reason: one word for the metric `marl_refused_total`.
    """

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None, reason: str = "input"
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers, self.reason = status, sentence, dict(headers or {}), reason
