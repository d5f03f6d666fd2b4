"""Seconds that a GPU takes for work, by its own clock: two events around it, and one wait behind the second."""

from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Seconds that one of `times` calls of `work` takes, from when the device begins the first to when it is done."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / times


def calls_within(work: Callable[[], object], span: float, least: int = 1, most: int = 10_000) -> int:
    """How many calls of `work` fill about `span` seconds; calls it a few times, the first one uncounted."""
    seconds(work)
    return min(most, max(least, int(span / max(seconds(work, 2), 1e-9))))


def side(work: Callable[[], object], times: int, scale: float = 1.0) -> Callable[[], float]:
    """For `bench.timing.alternate`: `scale` times the seconds of one of `times` calls of `work`."""
    return lambda: scale * seconds(work, times)
