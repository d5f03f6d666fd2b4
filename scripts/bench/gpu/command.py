"""The check on a GPU as a whole: its parts in their order, each with its share of the time, one JSON and one table."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from bench import machine
from bench.gpu import card, figures, kernels, parts, table, training
from bench.gpu.parts import FAILED, LEFT, Part
from bench.timing import Clock
from marl.core import device
from marl.core.errors import UserError
from marl.core.files import write_json

# Shares in seconds of a whole run. What a part does not need the later ones have.
PARTS = (
    Part("card", 12, card.items, card.rows),
    Part("kernels", 100, kernels.steps, kernels.step, checks=True, side_by_side=True),
    Part("gradients", 30, kernels.gradients, kernels.gradient, checks=True, side_by_side=True),
    Part("resume", 45, training.resumes, training.resume, checks=True),
    Part("capture", 70, training.captures, training.capture, checks=True),
    Part("learn", 40, training.learns, training.learn, checks=True),
    Part("figures", 100, figures.items, figures.rows),
    Part("start", 40, card.starts, card.start),
)
SPARE = 0.97  # of the time that is left, for what lies between parts


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that cannot go together."""
    if not options.device.startswith("cuda"):
        raise UserError(f"--check: needs --device cuda, not {options.device}; it checks what runs on a GPU")
    given = [name for name in ("only", "skip", "report", "keep") if getattr(options, name)]
    if given:
        raise UserError(f"--check: cannot go with --{given[0]}; it has parts of its own, and runs all of them")
    if options.minutes <= 0:
        raise UserError(f"--minutes {options.minutes:g}: must be more than 0")
    if options.write and (why := table.check_page(options.write)):
        raise UserError(why)


def probe(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """One row: why the device cannot be used, or ""."""
    try:
        torch.zeros(1, device=device.pick(options.device)).add_(1).item()
        said = ""
    except UserError as error:
        said = str(error).split(";")[0]  # not what else is allowed: this is about a GPU
    except RuntimeError as error:
        said = f"device={options.device}: {str(error).splitlines()[0]}"
    yield {"said": said}


def no_device(options: argparse.Namespace) -> str:
    """Why there is no GPU to check, in one sentence, or ""; asked in a process of its own."""
    asked = Part("device", 60, lambda _: ["device"], probe)
    return next(parts.run(asked, options, asked.seconds)).get("said", "")


def show(row: dict) -> None:
    """Print a row as it comes."""
    outcome = f"{row['outcome']}: " if "outcome" in row else ""
    if "ratio" in row:
        said = f"{row['ours']:.4g} {row['unit']}, {row['ratio']:.3g} x {row['peer']}"
    else:
        said = f"{row['value']:.4g} {row['unit']}" if "value" in row else row.get("said", "")
    print(f"  {row['name']}: {outcome}{said}", flush=True)


def collect(options: argparse.Namespace, results: dict, chosen: tuple[Part, ...]) -> None:
    """Run the parts; rows go into `results["parts"]` and, after each part, into the JSON."""
    first = time.perf_counter()
    end = first + 60 * options.minutes
    for place, part in enumerate(chosen):
        print(f"{part.name}:", flush=True)
        began, left = time.perf_counter(), end - time.perf_counter()
        seconds = max(0.0, SPARE * left * part.seconds / sum(each.seconds for each in chosen[place:]))
        rows = results["parts"][part.name] = {"rows": [], "share": seconds, "checks": part.checks}
        for row in parts.run(part, options, seconds):
            rows["rows"].append(row)
            show(row)
            if "about" in row:
                results["machine"] |= row.pop("about")
            if "value" in row:
                options.peaks[row["key"]] = row["value"]
        rows["seconds"] = time.perf_counter() - began
        results["seconds"] = time.perf_counter() - first
        write_json(options.json, results)


def run(options: argparse.Namespace, command: str, chosen: tuple[Part, ...] = PARTS) -> int:
    """Check and measure, write the JSON, print the table and write it. Returns the exit code: 1 where a row failed.

    Raises UserError for options that cannot go together, and where there is no such device.
    """
    check_options(options)
    if why := no_device(options):
        raise UserError(f"--check: {why}")
    about = machine.describe("cpu") | {"device": options.device}
    results = {"command": command, "machine": about, "parts": {}, "seconds": 0.0}
    options.peaks = {}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as options.scratch:
        collect(options, results, chosen)
    text = table.markdown(results)
    if options.write:
        table.write(options.write, text)
    print(text)
    if table.counts(results)[LEFT]:
        print("Some items were left out; the table says why. --minutes gives more time.", file=sys.stderr)
    return int(table.counts(results)[FAILED] > 0)
