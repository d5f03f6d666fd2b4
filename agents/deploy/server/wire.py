"""What requests and answers look like: JSON by agents' names, or raw little-endian float32 for speed.

Shapes: B rows of a request, A agents in a group, F features, D action dimensions, M numbers of memory, C choices of an
agent, sum(nvec).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from torch import Tensor

from agents.deploy.server.batching import Acted, Job
from agents.deploy.server.settings import Refused
from agents.policies.policy import Policy
from envs.spec import GroupSpec
from marl.core.errors import closest

Numbers = list[float] | list[list[float]]
Flags = list[bool] | list[list[bool]]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PARTS = ("observations", "memory", "action_masks", "alive")


@dataclass(frozen=True)
class Shapes:
    """What a policy's requests are measured by: its groups, {group: M} and {group: C} of those that have either."""

    groups: dict[str, GroupSpec]
    memory: dict[str, int]
    choices: dict[str, int]

    @classmethod
    def of(cls, policy: Policy) -> "Shapes":
        """Those of a policy; asking it each time would take longer than a small network."""
        groups = policy.spec.groups
        memory = {name: zeros.shape[-1] for name, zeros in policy.memory().items()}
        return cls(groups, memory, {n: sum(g.action.nvec) for n, g in groups.items() if "action" in g.masks})

    def zeros(self, rows: int) -> dict[str, Tensor]:
        """What is remembered at an episode's beginning: {group: float32 [rows, A, M]}."""
        return {name: torch.zeros(rows, self.groups[name].n_agents, size) for name, size in self.memory.items()}


class ActRequest(BaseModel):
    """What `POST /v1/act` takes as JSON.

    Every agent has a list of numbers, or as many lists as there are rows (environments that are played at once).
    Groups may be left out, then their agents are not asked.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    observations: Annotated[
        dict[str, dict[str, Numbers]], Field(description="{group: {agent: [F] or [rows, F]}}, finite")
    ]
    policy: Annotated[str | None, Field(description="its name; null: the only one, or the session's")] = None
    deterministic: Annotated[
        bool | None, Field(description="true: the policy's mode; false: a sample; null: true unless there is a seed")
    ] = None
    seed: Annotated[Seed | None, Field(description="of the sample: the same seed, the same action")] = None
    version: Annotated[
        int | None, Field(description="of the answer that the memory comes from; 409 where another serves by now")
    ] = None
    session: Annotated[str | None, Field(description="of POST /v1/sessions, which remembers")] = None
    reset: Annotated[bool, Field(description="true: an episode begins, the session forgets what was before")] = False
    memory: Annotated[
        dict[str, dict[str, Numbers]] | None,
        Field(description="what the answer to the step before held, {} at an episode's beginning; not with a session"),
    ] = None
    action_masks: Annotated[
        dict[str, dict[str, Flags]] | None,
        Field(description="{group: {agent: [C] or [rows, C]}}: true where a choice is allowed"),
    ] = None
    alive: Annotated[
        dict[str, dict[str, bool | list[bool]]] | None,
        Field(description="{group: {agent: true or [rows]}}: the dead remember nothing"),
    ] = None


class RawRequest(BaseModel):
    """The query of `POST /v1/act` with a raw body."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    policy: str | None = None
    deterministic: bool | None = None
    seed: Seed | None = None
    version: int | None = None
    session: str | None = None
    reset: bool = False
    groups: str | None = None
    parts: str = "observations"


def text(body: bytes) -> ActRequest:
    """A JSON body. Raises Refused with one sentence for its first mistake."""
    try:
        return ActRequest.model_validate_json(body)
    except ValidationError as error:
        raise Refused(400, sentence(error)) from None


def query(line: bytes) -> RawRequest:
    """The query string of a raw request. Raises Refused."""
    try:
        pairs = parse_qsl(line.decode("ascii"), keep_blank_values=True, strict_parsing=bool(line), max_num_fields=20)
        values = dict(pairs)
        if len(values) < len(pairs):
            raise Refused(400, "query: a key stands in it twice")
        return RawRequest.model_validate(values)
    except ValidationError as error:
        raise Refused(400, sentence(error)) from None
    except ValueError:  # of the decoding and of parse_qsl
        raise Refused(400, "query: must be KEY=VALUE&KEY=VALUE") from None


def sentence(error: ValidationError) -> str:
    """The first mistake that pydantic found: where it lies, and what would be right."""
    # Of a union pydantic names each branch's mistake: the one that lies deepest is of the branch that was meant.
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(errors, key=lambda each: len(each["loc"]))
    place = [str(part) for part in first["loc"] if not str(part).startswith(("list[", "bool"))]
    where = ".".join(part[:40] for part in place) or "body"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"[:300]


def job_of_text(shapes: Shapes, request: ActRequest, max_rows: int) -> tuple[Job, bool]:
    """The job of a JSON request, and whether the agents' lists have a dimension of rows. Raises Refused."""
    found: list[tuple[int, bool]] = []

    def tensors(key: str, given: Mapping[str, Mapping[str, Any]] | None, widths: Mapping[str, int], kind: Any) -> Any:
        result = {}
        for name, agents in (given or {}).items():
            group = known(shapes, name, key)
            if name not in widths:
                raise Refused(400, f"{key}.{name}: this group has none")
            array, batched = _array(f"{key}.{name}", group, agents, widths[name], kind)
            found.append((len(array), batched))
            result[name] = torch.from_numpy(array)
        return result

    sizes = {name: group.observation_size for name, group in shapes.groups.items()}
    observations = tensors("observations", request.observations, sizes, np.float32)
    memory = tensors("memory", request.memory, shapes.memory, np.float32)
    masks = tensors("action_masks", request.action_masks, shapes.choices, np.bool_)
    alive = tensors("alive", request.alive, dict.fromkeys(sizes, 0), np.bool_)
    if not observations:
        raise Refused(400, f"observations: name at least one of the groups {', '.join(sizes)}")
    if len(set(found)) > 1:
        raise Refused(400, "observations: all agents of all groups need the same number of rows")
    rows, batched = found[0]
    job = Job(observations, rows, memory, masks, alive, sampled(request), request.seed)
    return checked(job, max_rows), batched


def _array(where: str, group: GroupSpec, agents: Mapping[str, Any], width: int, kind: Any) -> tuple[np.ndarray, bool]:
    """[B, A, width] (width 0: [B, A]) of all agents of a group, and whether there is a dimension of rows."""
    for name in agents:
        if name not in group.agents:
            raise Refused(400, f"{where}.{name[:40]}: no such agent{closest(name, group.agents)}")
    values = []
    for name in group.agents:
        if name not in agents:
            raise Refused(400, f"{where}.{name}: is missing; all agents of a group are asked together")
        try:
            with np.errstate(over="ignore"):  # beyond float32, which is reported below
                value = np.array(agents[name], dtype=kind)
        except ValueError:
            raise Refused(400, f"{where}.{name}: its rows differ in length") from None
        if width and value.shape[-1] != width:
            raise Refused(400, f"{where}.{name}: holds {value.shape[-1]} values; it must be {width}")
        values.append(value)
    if len({value.shape for value in values}) > 1:
        raise Refused(400, f"{where}: its agents differ in their number of rows")
    batched = values[0].ndim == (2 if width else 1)
    array = np.stack(values, int(batched))
    return (array if batched else array[None]), batched


def job_of_raw(shapes: Shapes, request: RawRequest, body: bytes, max_rows: int) -> Job:
    """The job of a raw body: for each of `parts` the named groups in their order, [B, A, …]; B follows from its length.

    Observations and memory are float32, masks and alive one byte each, 0 or 1. Raises Refused.
    """
    spec, parts = shapes.groups, request.parts.split(",")
    for part in parts:
        if part not in PARTS:
            raise Refused(400, f"parts: {part[:40]!r} is none of {', '.join(PARTS)}{closest(part[:40], PARTS)}")
    if len(set(parts)) < len(parts) or "observations" not in parts:
        raise Refused(400, "parts: names observations, and each part once")
    named = list(spec) if request.groups is None else request.groups.split(",")
    groups = {name: known(shapes, name, "groups") for name in named}
    if len(groups) < len(named):
        raise Refused(400, "groups: names a group twice")
    widths = {"observations": {name: group.observation_size for name, group in spec.items()},
              "memory": shapes.memory, "action_masks": shapes.choices, "alive": dict.fromkeys(spec, 1)}  # fmt: skip
    blocks = [
        (part, name, group.n_agents, widths[part][name])
        for part in parts
        for name, group in groups.items()
        if name in widths[part]
    ]
    size = sum(n * width * (4 if part in PARTS[:2] else 1) for part, _, n, width in blocks)
    rows, rest = divmod(len(body), size)
    if rest or not rows:
        raise Refused(400, f"body: has {len(body)} bytes; it must be {size} for each row of {', '.join(parts)}")
    if rows > max_rows:
        raise Refused(413, f"body: has {rows} rows; at most {max_rows} are allowed (max_batch)", reason="size")
    values: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    start = 0
    for part, name, n, width in blocks:
        kind, count = (np.dtype("<f4") if part in PARTS[:2] else np.dtype("u1")), rows * n * width
        array = np.frombuffer(body, kind, count, start).reshape(rows, n, width)
        start += count * kind.itemsize
        if kind.itemsize == 1 and array.max() > 1:
            raise Refused(400, f"{part}.{name}: a byte is neither 0 nor 1")
        array = array.astype(np.float32 if kind.itemsize == 4 else np.bool_)
        values[part][name] = torch.from_numpy(array[..., 0] if part == "alive" else array)
    job = Job(values["observations"], rows, values["memory"], values["action_masks"], values["alive"],
              sampled(request), request.seed)  # fmt: skip
    return checked(job, max_rows)


def sampled(request: ActRequest | RawRequest) -> bool:
    """Whether the policy's mode is asked for. Raises Refused for a seed that would not be used."""
    if request.deterministic and request.seed is not None:
        raise Refused(400, "seed: is of samples; leave it out, or ask for deterministic=false")
    return request.seed is None if request.deterministic is None else request.deterministic


def checked(job: Job, max_rows: int) -> Job:
    """`job`, whose numbers are finite and whose rows are not too many. Raises Refused."""
    if job.rows > max_rows:
        raise Refused(413, f"observations: {job.rows} rows; at most {max_rows} are allowed (max_batch)", reason="size")
    if not job.rows:
        raise Refused(400, "observations: there is no row in them")
    for part, tensors in (("observations", job.observations), ("memory", job.memory)):
        for name, value in tensors.items():
            if not np.isfinite(value.numpy()).all():
                raise Refused(400, f"{part}.{name}: holds numbers that are not finite in float32")
    return job


def known(shapes: Shapes, name: str, key: str) -> GroupSpec:
    """A group of the policy. Raises Refused where it has none of this name."""
    if name not in shapes.groups:
        hint = closest(name[:40], shapes.groups)
        raise Refused(400, f"{key}: no group {name[:40]!r}{hint} (there are {', '.join(shapes.groups)})")
    return shapes.groups[name]


def answer_text(shapes: Shapes, acted: Acted, batched: bool, remembers: bool, about: Mapping[str, Any]) -> bytes:
    """JSON: `about`, actions by group and agent, and memory where the client keeps it."""

    def by_agent(values: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        lists = {name: (value.transpose(0, 1) if batched else value[0]).tolist() for name, value in values.items()}
        return {name: dict(zip(shapes.groups[name].agents, v, strict=True)) for name, v in lists.items()}

    memory = {"memory": by_agent(acted.memory)} if remembers else {}
    return to_json({**about, "actions": by_agent(acted.actions), **memory})


def answer_raw(groups: Iterable[str], acted: Acted, remembers: bool) -> bytes:
    """float32: actions of `groups` in their order [B, A, D], then memory of those that remember [B, A, M]."""
    names = list(groups)
    values = [acted.actions[name] for name in names]
    values += [acted.memory[name] for name in names if remembers and name in acted.memory]
    return b"".join(value.numpy().astype("<f4").tobytes() for value in values)
