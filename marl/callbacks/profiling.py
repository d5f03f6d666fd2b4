"""Where an iteration's time goes: a trace to look at, and a table of stages and operators."""

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch.profiler import ProfilerActivity, profile

from marl.callbacks.base import Callback
from marl.engine import spans
from marl.engine.run_view import RunView
from marl.engine.spans import MARK

SPANS = ("collect", "simulation", "rollout", "update", "optimizer", "evaluate", "save")  # tasks lack some of them
OUTSIDE = "elsewhere"


@dataclass
class Profiler(Callback):
    """Profiles a few iterations; writes `profile/trace.json` and `profile/table.txt` into the run directory.

    The first `warm_up` iterations pass, `iterations` are timed as they are, then as many under `torch.profiler`: its
    own cost (some µs per operator) makes the profiled ones slower, so the table gives the stages' seconds of the plain
    ones, and calls and shares of the operators from the profiled ones.

    Args:
        warm_up: iterations before anything is measured.
        iterations: how many are timed, and then how many are profiled.
        top: operators in the table.
    """

    warm_up: Annotated[int, Field(ge=1)] = 2
    iterations: Annotated[int, Field(ge=1)] = 2
    top: Annotated[int, Field(ge=1)] = 20
    iteration: int = field(default=0, init=False)

    def on_start(self, trainer: RunView) -> None:
        self.iteration = 0
        self.profiler: profile | None = None
        self.plain: dict[str, float] = {}

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        self.iteration += 1
        if self.iteration == self.warm_up:
            self.start_seconds = {**trainer.seconds, "whole": time.perf_counter()}
        elif self.iteration == self.warm_up + self.iterations:
            ended = {**trainer.seconds, "whole": time.perf_counter()}
            took = {stage: after - self.start_seconds.get(stage, 0.0) for stage, after in ended.items()}
            self.plain = {stage: seconds / self.iterations for stage, seconds in took.items() if stage != "total"}
            self._start()
        elif self.iteration == self.warm_up + 2 * self.iterations:
            self._finish(trainer, self.iterations)

    def on_end(self, trainer: RunView) -> None:
        if self.profiler is not None:
            self._finish(trainer, self.iteration - self.warm_up - self.iterations)
        elif self.iteration < self.warm_up + self.iterations:
            needed = self.warm_up + 2 * self.iterations
            ended = f"the run ended after {self.iteration} iterations"
            print(f"nothing was profiled: {ended}, {needed} are needed", flush=True)

    def _start(self) -> None:
        spans.record(True)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.profiler = profile(activities=activities)
        self.profiler.start()

    def _finish(self, trainer: RunView, iterations: int) -> None:
        profiler, self.profiler = self.profiler, None
        assert profiler is not None  # it was started
        profiler.stop()
        spans.record(False)
        if not iterations:
            print("nothing was profiled: the run ended as the profiler began", flush=True)
            return
        folder = Path(trainer.run_dir) / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        text = table(self.plain, profiler.events() or [], iterations, self.top)
        (folder / "table.txt").write_text(text)
        print(f"{text}trace: {folder / 'trace.json'} (open it in https://ui.perfetto.dev)", flush=True)


def owners(named: list[tuple[float, float, str]]) -> Callable[[float], str]:
    """Which span a moment lies in, the innermost one. named: (begin, end, name) of spans, nested or apart."""
    edges: list[tuple[float, str]] = []  # from this moment on it is that span's
    open_spans: list[tuple[float, str]] = []
    for begin, end, name in sorted(named, key=lambda span: (span[0], -span[1])):
        while open_spans and open_spans[-1][0] <= begin:
            moment, _ = open_spans.pop()
            edges.append((moment, open_spans[-1][1] if open_spans else OUTSIDE))
        edges.append((begin, name))
        open_spans.append((end, name))
    while open_spans:
        moment, _ = open_spans.pop()
        edges.append((moment, open_spans[-1][1] if open_spans else OUTSIDE))
    moments = [moment for moment, _ in edges]

    def owner(moment: float) -> str:
        place = bisect_right(moments, moment)
        return edges[place - 1][1] if place else OUTSIDE

    return owner


def table(plain: dict[str, float], events, iterations: int, top: int) -> str:
    """The report: stages, spans and operators, per iteration.

    plain: seconds per iteration of the engine's stages, unprofiled, and "whole". events: `profile.events()`.
    """
    whole = plain["whole"]
    stages = {stage: plain[stage] for stage in ("collect", "update", "evaluate") if plain.get(stage)}
    lines = [f"One iteration: {1e3 * whole:.1f} ms (mean of unprofiled ones)"]
    for stage, seconds in [*stages.items(), ("rest (records, logs, checkpoints)", whole - sum(stages.values()))]:
        lines.append(f"  {stage:<34}{1e3 * seconds:>10.1f} ms {100 * seconds / whole:>5.0f} %")

    on_cpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    marked = [event for event in on_cpu if event.name.startswith(MARK)]
    named = [(e.time_range.start, e.time_range.end, e.name.removeprefix(MARK)) for e in marked]
    owner = owners(named)
    inclusive, calls = defaultdict(float), defaultdict(int)
    for begin, end, name in named:
        inclusive[name] += end - begin
        calls[name] += 1
    operators: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    covered = defaultdict(float)
    for event in on_cpu:
        if event.name.startswith(MARK):
            continue
        stage = owner(event.time_range.start)
        entry = operators[stage, event.name]
        entry[0] += 1
        entry[1] += event.self_cpu_time_total
        entry[2] += event.self_device_time_total
        covered[stage] += event.self_cpu_time_total
    nested = defaultdict(float)
    for begin, end, name in named:
        outer = owner(begin - 1e-3)
        if outer != name:
            nested[outer] += end - begin
    lines += ["", f"Under the profiler ({iterations} iterations; its own cost included), per iteration:",
              f"  {'span':<22}{'calls':>8}{'ms':>10}{'outside operators (Python, kernels)':>38}"]  # fmt: skip
    for name in [name for name in SPANS if calls[name]]:
        rest = max(0.0, inclusive[name] - nested[name] - covered[name])
        lines.append(f"  {name:<22}{calls[name] / iterations:>8.0f}{inclusive[name] / 1e3 / iterations:>10.2f}"
                     f"{rest / 1e3 / iterations:>35.2f} ms")  # fmt: skip
        if name == "rollout":
            advantage = inclusive["collect"] - inclusive["rollout"]
            lines.append(f"  {'values, advantages':<22}{'':>8}{advantage / 1e3 / iterations:>10.2f}")
    devices = any(entry[2] for entry in operators.values())
    total = sum(entry[1] for entry in operators.values())
    head = f"  {'operator':<37}{'span':<14}{'calls':>8}{'self ms':>10}{'share':>8}"
    lines += ["", "Operators by their own time on the CPU, per iteration:", head + ("   device ms" if devices else "")]
    ranked = sorted(operators.items(), key=lambda item: item[1][1] + item[1][2], reverse=True)[:top]
    for (stage, name), (count, cpu, device) in ranked:
        line = f"  {name[:36]:<37}{stage:<14}{count / iterations:>8.0f}{cpu / 1e3 / iterations:>10.2f}"
        line += f"{100 * cpu / max(total, 1e-9):>6.1f} %"
        lines.append(line + (f"{device / 1e3 / iterations:>12.2f}" if devices else ""))
    return "\n".join(lines) + "\n"
