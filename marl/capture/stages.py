"""The order of a recording's calls: those that can be made together, and do not depend on one another, are.

Passes of networks come one by one in a loss: target, critics, actor. Where none needs another's result, one call shares
the rows of all of them among threads, and weights that several read are packed once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from marl.native.library import KernelCall


class Recorded(NamedTuple):
    """A call that a replay repeats, and the places in memory that it reads and writes."""

    call: Callable[[], object]
    reads: set[int]
    writes: set[int]


def staged(calls: Sequence[Recorded]) -> list[Callable[[], object]]:
    """The calls, stage by stage: first what is made one by one, in its order, then what can be joined.

    A call's stage is the earliest: after those of the joined calls that wrote what it reads, or read or wrote what it
    writes.
    """
    read_from: dict[int, int] = {}  # place in memory: the first stage in which it can be read
    written_from: dict[int, int] = {}
    stages: dict[int, tuple[list, dict]] = {}
    for call, reads, writes in calls:
        since = [read_from.get(place, 0) for place in reads] + [written_from.get(place, 0) for place in writes]
        stage = max(since, default=0)
        join = call.join if isinstance(call, KernelCall) else None
        after = stage + (join is not None)
        for place in reads | writes:
            written_from[place] = max(written_from.get(place, 0), after)
        for place in writes:
            read_from[place] = max(read_from.get(place, 0), after)
        single, joined = stages.setdefault(stage, ([], {}))
        single.append(call) if join is None else joined.setdefault(join, []).append(call)
    order = []
    for stage in sorted(stages):
        single, joined = stages[stage]
        order += [call.alone() if isinstance(call, KernelCall) else call for call in single]
        order += [join(group) if len(group) > 1 else group[0].alone() for join, group in joined.items()]
    return order
