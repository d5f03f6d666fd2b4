"""Measuring two or more sides in turn, and what is said of the seconds they took."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 5  # alternations at least


class Clock:
    """How long a case may still take: after that no further round begins (the round in hand is finished)."""

    def __init__(self, seconds: float):
        self.seconds, self.began = seconds, time.perf_counter()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    def over(self) -> bool:
        return self.spent >= self.seconds


def synchronize(device: str) -> None:
    """Wait for the device, where it has a queue."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that `work` takes."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def alternate(
    sides: dict[str, Callable[[], float]], rounds: int, clock: Clock, warm_up: int = 1
) -> dict[str, list[float]]:
    """Ask each side in turn, `rounds` times, the order reversed every other round; {side: what it answered}.

    The first `warm_up` rounds are not counted. When the case's time is up the round in hand is the last, so that
    fewer than `rounds` answers may come back, but one at least.
    """
    answers: dict[str, list[float]] = {name: [] for name in sides}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of one side's turn is not that side's
    try:
        for turn in range(warm_up + rounds):
            names = list(sides) if turn % 2 == 0 else list(sides)[::-1]
            for name in names:
                answer = sides[name]()
                if turn >= warm_up:
                    answers[name].append(answer)
            if turn >= warm_up and clock.over():
                break
    finally:
        if enabled:
            gc.enable()
    return answers


def steps_within(step: Callable[[], object], seconds: float, least: int, device: str = "cpu") -> int:
    """How many calls of `step` fill about `seconds`, at least `least`; calls it a few times."""
    timed(step, device)
    one = timed(lambda: [step() for _ in range(3)], device) / 3
    return max(least, int(seconds / max(one, 1e-9)))


def compared(key: str, name: str, peer: str, unit: str, ours: list[float], theirs: list[float], **more) -> dict:
    """A row of the results: medians of both sides and how many times less ours takes; spread over the pairs.

    ours, theirs: what each alternation took, in `unit` (seconds, milliseconds): less is better.
    """
    pairs = [t / o for o, t in zip(ours, theirs, strict=True)]
    row = {"key": key, "name": name, "peer": peer, "unit": unit, "rounds": len(pairs)}
    row |= {"ours": statistics.median(ours), "theirs": statistics.median(theirs)}
    row |= {"ratio": row["theirs"] / row["ours"], "low": min(pairs), "high": max(pairs)}
    return row | more


def figure(key: str, name: str, value: float, unit: str, **more) -> dict:
    """A row of the results that is one figure."""
    return {"key": key, "name": name, "value": value, "unit": unit} | more
