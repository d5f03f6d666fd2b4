"""Feeds the scripts with bad input: no traceback, no signal, no exit code but 0, 2 and 3, one sentence with 2.

    python tests/trials/fuzz.py --overrides 5000 --commands 400 --files 300 --seed 0
    python tests/trials/fuzz.py --repeat files:17 --seed 0       # one again, with all that it prints

overrides: arguments of every script through composition and checking, in this process, by the code that commands run.
commands: whole commands with tiny budgets, good and spoilt ones, each a process of its own.
files: one file of a run, a sweep, a study, a data set, a policy or the kernel cache is damaged, then each command that
reads it is run on a copy (forked from this process, which has imported everything).

What is tried depends on the seed, the number and the parts of the world alone.
A line for each fault says how to repeat it; exit code 1 if any.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import matplotlib.backends.backend_svg  # noqa: E402, F401 - imported here, so that no fork has to
import torchmetrics  # noqa: E402, F401

from tests.fixtures import warm_shell  # noqa: E402
from tests.trials.fuzzing import commands, damage, overrides, process, world  # noqa: E402
from tests.trials.fuzzing.outcome import Outcome  # noqa: E402

CHUNK = {"overrides": 25, "commands": 1, "files": 1}  # trials of one fork


class Fuzz:
    """Trials by kind and number. folder: where the world is (made where it is not there) and trials take place."""

    def __init__(self, folder: Path, seed: int, parts: tuple[str, ...] = ()) -> None:
        self.folder, self.seed = folder, seed
        self.world = world.build(folder, process.fork, parts)
        self.cache = folder / "cache"

    def trial(self, kind: str, index: int) -> Iterator[Outcome]:
        """All commands of one trial."""
        name, dice = f"{self.seed}:{kind}:{index}", random.Random(f"{self.seed}:{kind}:{index}")
        place = self.folder / f"trial-{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            if kind == "overrides":
                script, arguments = overrides.generate(dice, str(self.world / "run"))
                yield overrides.attempt(script, arguments, place / "here")
            elif kind == "commands":
                script, arguments = commands.generate(dice, self.world)
                yield process.process(script, arguments, commands.prepare(place, self.world), self.cache)
            else:
                yield from self.damaged(dice, name, place)
        finally:
            damage.mend(place)
            shutil.rmtree(place)

    def damaged(self, dice: random.Random, name: str, place: Path) -> Iterator[Outcome]:
        """One damage, and each command that meets it, on a copy of its own."""
        kind, file, number = damage.generate(dice, self.world, self.cache)
        what = f"{getattr(damage.DAMAGES[number], '__qualname__', number)} {file}"
        for script, arguments in damage.commands(kind, file):
            here = place / "here"
            here.mkdir()
            damage.prepare(kind, file, number, name, here, self.world, self.cache)
            cache = here / "cache" if kind == "cache" else self.cache
            outcome = process.fork(script, arguments, here, cache)
            outcome.where = f"after {what}"
            yield outcome
            damage.mend(here)
            shutil.rmtree(here)

    def chunk(self, kind: str, indices: range, report: Path) -> int:
        """Run trials in a fork that writes a line of JSON for each command to `report`; returns its process id."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            with open(report, "w") as file:
                for index in indices:
                    file.write(json.dumps({"begins": index}) + "\n")
                    file.flush()
                    for outcome in self.trial(kind, index):
                        row = {
                            "index": index,
                            "code": outcome.code,
                            "seconds": outcome.seconds,
                            "fault": outcome.fault(),
                        }
                        row |= {"command": outcome.shown(), "where": outcome.where if kind == "files" else ""}
                        file.write(json.dumps(row) + "\n")
                        file.flush()
            code = 0
        except BaseException as error:
            import traceback

            traceback.print_exception(error)
        finally:
            os._exit(code)

    def run(self, kind: str, count: int, jobs: int, start: int = 0) -> Iterator[dict]:
        """Trials `start` to `count`; yields a row per command. A fork that dies has its trial as a fault."""
        waiting = [range(i, min(i + CHUNK[kind], count)) for i in range(start, count, CHUNK[kind])][::-1]
        running: dict[int, tuple[range, Path]] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                indices = waiting.pop()
                report = self.folder / f"report-{kind}-{indices.start}.json"
                running[self.chunk(kind, indices, report)] = indices, report
            pid, status = os.wait()
            indices, report = running.pop(pid)
            rows = [json.loads(line) for line in report.read_text().splitlines()]
            report.unlink()
            code = os.waitstatus_to_exitcode(status)
            yield from (row for row in rows if "begins" not in row)
            if code != 0:
                last = next((row["begins"] for row in reversed(rows) if "begins" in row), indices.start)
                what = f"signal {-code}" if code < 0 else "the fuzz itself failed"
                yield {"index": last, "code": code, "fault": what, "command": "?", "where": "", "seconds": 0.0}
                if last + 1 < indices.stop:
                    waiting.append(range(last + 1, indices.stop))


def main(argv: list[str] | None = None) -> int:
    """All kinds; prints a line for each fault and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in (("overrides", 5000), ("commands", 400), ("files", 300)):
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"trials (default {count})")
    parser.add_argument("--start", type=int, default=0, help="number of the first trial (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once (default 1)")
    parser.add_argument("--folder", type=Path, help="keep the world here for another time; else a temporary folder")
    names = [name for name, _, _ in world.PARTS]
    parser.add_argument("--parts", nargs="+", default=(), choices=names, help="make only these parts of the world")
    parser.add_argument("--repeat", metavar="KIND:NUMBER", help="one trial, with all that it prints")
    parser.add_argument("--json", type=Path, help="where the faults go, and the counts")
    options = parser.parse_args(argv)
    warm_shell.prepare()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        fuzz = Fuzz(folder, options.seed, tuple(options.parts))
        if options.repeat:
            return repeat(fuzz, *options.repeat.split(":"))
        figures, faults = {}, []
        for kind in CHUNK:
            began, codes, commands_run, last_printed = time.monotonic(), Counter(), 0, time.monotonic()
            for row in fuzz.run(kind, getattr(options, kind), options.jobs, options.start):
                commands_run += 1
                codes[str(row["code"])] += 1
                if time.monotonic() > last_printed + 60:
                    last_printed = time.monotonic()
                    print(f"{kind}: trial {row['index']} of {getattr(options, kind)}", file=sys.stderr, flush=True)
                if row["fault"]:
                    faults.append({"kind": kind, **row})
                    print(f"{kind}:{row['index']}: {row['fault']}\n    {row['command']} {row['where']}", flush=True)
            wrong = sum(fault["kind"] == kind for fault in faults)
            figures[kind] = {"commands": commands_run, "codes": dict(codes), "faults": wrong}
            print(f"{kind}: {commands_run} commands, exit codes {dict(codes)}, {wrong} faults, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        kinds = Counter(fault["fault"] for fault in faults)
        print("\n".join(f"{count} times: {fault}" for fault, count in kinds.most_common()))
        if options.json:
            options.json.write_text(json.dumps({"seed": options.seed, "figures": figures, "faults": faults}, indent=1))
    return int(bool(faults))


def repeat(fuzz: Fuzz, kind: str, index: str) -> int:
    """Print everything about one trial."""
    wrong = 0
    for outcome in fuzz.trial(kind, int(index)):
        fault = outcome.fault()
        wrong += fault is not None
        print(f"$ {outcome.shown()} {outcome.where}\n{outcome.out[-3000:]}{outcome.err[-5000:]}"
              f"exit code {outcome.code}, {outcome.seconds:.1f} s: {fault or 'fine'}\n", flush=True)  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
