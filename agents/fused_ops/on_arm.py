"""Compiled networks, losses and optimisers on 64-bit Arm, without such a machine: each library held to its own check.

    python -m agents.fused_ops.on_arm [mlp ppo replay gather adam lerp] [--compiler gcc|clang|apple]

A library's check compares it with torch when it is loaded. Here it is cross-compiled, and answers from qemu's processor
(`marl.native.arm`), while torch computes in this process. Prints a table.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from agents.fused_ops import gather, native, replay_terms
from marl.core.errors import CannotCompile
from marl.native.arm import cross
from marl.native.library import Library
from marl.networks import fused_mlp
from marl.optim import fused_adam, fused_lerp

LIBRARIES: dict[str, Library] = {
    "mlp": fused_mlp.kernel,
    "ppo": native.functions,
    "replay": replay_terms.functions,
    "gather": gather.functions,
    "adam": fused_adam.functions,
    "lerp": fused_lerp.functions,
}


def measure(name: str, kind: str = "gcc") -> dict[str, Any]:
    """One row: whether a library of `LIBRARIES` passes its check on Arm ("why" is empty), and seconds of CPU time."""
    library, row = LIBRARIES[name], {"name": name, "why": "", "functions": 0, "compile": 0.0, "check": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        try:
            source = "".join(part.read_text() for part in library.sources)
            row["compile"] = cross.compile_for_arm([source], path, library.flags, kind)
            start = cross.cpu_seconds()
            with cross.emulated(path) as emulated:
                for function, (arguments, result) in library.functions.items():
                    call = getattr(emulated, function)
                    call.argtypes, call.restype = arguments, result
                library.check(emulated)
                row |= {"functions": len(emulated.called), "check": cross.cpu_seconds() - start}
        except (CannotCompile, RuntimeError) as error:
            row["why"] = str(error)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| functions | called | agree with torch on Arm | compile, s | check, s |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = f"no: {row['why']}" if row["why"] else "yes"
        lines.append(f"| {row['name']} | {row['functions']} | {verdict} | {row['compile']:.1f} | {row['check']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="*", help=f"{', '.join(LIBRARIES)}; all where none is named")
    parser.add_argument("--compiler", choices=cross.COMPILERS, default="gcc", help="apple: clang for Apple's M1")
    options = parser.parse_args()
    for name in options.libraries:
        if name not in LIBRARIES:
            parser.error(f"{name!r} is none of {', '.join(LIBRARIES)}")
    if reason := cross.why_not(options.compiler):
        parser.error(reason)
    print(table([measure(name, options.compiler) for name in options.libraries or LIBRARIES]))


if __name__ == "__main__":
    main()
