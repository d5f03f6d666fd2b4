"""Serves trained policies over HTTP: python scripts/serve.py ckpt=RUN_DIR [policies.NAME=RUN_DIR …] [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, a checkpoint, a policy.safetensors or zoo/NAME: the policy `default`
  policies.NAME=…      the same under another name; as many as wanted
  which=last           last | best: which checkpoint of run directories
  backend=torch        torch | onnx (onnxruntime)

Where, and for whom (docs/guides/serving.md, docs/security.md)

  host=127.0.0.1       the address to listen at; any but this machine's own needs a token
  port=8000            0: any that is free
  token_file=null      a file with the token that requests must bring; null: the variable MARL_SERVE_TOKEN, if it is set
  tls_certificate=null with tls_key: PEM files of a certificate, with its chain, and of its key; null: no TLS
  tls_key=null

Batches, sessions, versions

  max_batch=256        rows (environments) of a batch, and of a request
  max_wait_ms=2        milliseconds that a request may wait for others to be computed with; null: each by itself
  max_sessions=1000    sessions at once
  session_seconds=600  seconds without a request after which a session is forgotten
  watch_seconds=null   seconds between looks for new checkpoints; null: only when SIGHUP asks for it

Limits

  max_body=4000000     bytes of a request
  max_connections=256  connections at once, TLS handshakes among them
  max_rate=null        requests per second of one address; null: any number
  slow_seconds=5       seconds that a TLS handshake, a request's headers, its body, the reading of its answer may take
  idle_seconds=60      seconds after which a connection without requests is closed
  drain_seconds=2      seconds after SIGTERM in which requests are still answered while /ready says 503

POST /v1/act takes observations and gives actions; /docs lists the rest. SIGTERM ends without losing a request, SIGHUP
swaps new checkpoints in.
"""

import re
from dataclasses import dataclass, fields
from typing import Literal

from agents.deploy.server.settings import ServerSettings
from marl.config import options
from marl.core.errors import UserError
from marl.launch import cli

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
PREFIX = "policies."


@dataclass(frozen=True, kw_only=True)
class Options(ServerSettings):
    """The options above, but for policies.NAME."""

    ckpt: str | None = None
    which: Literal["last", "best"] = "last"


def parse(arguments: list[str]) -> tuple[Options, dict[str, str]]:
    """Options and policies by name. Raises UserError for a wrong one, and where there is no policy."""
    named = [argument for argument in arguments if argument.startswith(PREFIX)]
    chosen = options.parse(Options, [argument for argument in arguments if argument not in named])
    places = {} if chosen.ckpt is None else {"default": chosen.ckpt}
    for argument in named:
        key, _, place = argument.partition("=")
        name = key.removeprefix(PREFIX)
        if not NAME.fullmatch(name) or not place:
            raise UserError(f"{argument}: must be policies.NAME=RUN_DIR with a name of letters, digits, _, - and .")
        if name in places:
            raise UserError(f"{argument}: there are two policies of this name")
        places[name] = place
    if not places:
        raise UserError("ckpt=RUN_DIR is needed, or policies.NAME=RUN_DIR")
    return chosen, places


def run(chosen: Options, places: dict[str, str]) -> None:
    """Serve until a signal comes. Raises UserError."""
    try:
        from agents.deploy.server.run import serve
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run pip install -e '.[serving]'") from error
    settings = {field.name: getattr(chosen, field.name) for field in fields(ServerSettings)}
    serve(places, chosen.which, ServerSettings(**settings))


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(*parse(arguments)))
