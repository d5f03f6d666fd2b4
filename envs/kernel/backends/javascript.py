"""Writes a lowered step as JavaScript: one environment, for pages in which the scenario itself runs.

The same statements as on the CPU, in scalars of double precision that `Math.fround` rounds to float32 after every
operation: sums, products, quotients and roots then are bitwise the simulator's, other functions to rounding.
"""

import json
import re

from envs.kernel.backends.c_writer import FUNCTIONS, Writer, parts_of
from envs.kernel.backends.javascript_names import function
from envs.kernel.ir.layout import Layout
from envs.kernel.ir.lowered_step import Lowered
from envs.kernel.ir.program import F32
from envs.kernel.tracing.tape import Refusal
from envs.kernel.tracing.trace import TRACED

PRELUDE = """
"use strict";
const f = Math.fround;
const min_ = (a, b) => a < b || a !== a ? a : b, max_ = (a, b) => b < a || a !== a ? a : b;  // nan wins, as in torch
const round_ = (a) => { const r = Math.round(a); return r - a === 0.5 && r % 2 !== 0 ? r - 1 : r; };  // half to even
const load = (table, size, i) => { i = Math.trunc(i); return i >= 0 && i < size ? table[i] : 0; };
const store = (table, size, i, x) => { i = Math.trunc(i); if (i >= 0 && i < size) table[i] = x; };
"""
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARE = {"lt": "<", "le": "<=", "eq": "===", "ne": "!==", "xor": "!=="}
EXACT = {
    "abs": "Math.abs({})",
    "floor": "Math.floor({})",
    "ceil": "Math.ceil({})",
    "trunc": "Math.trunc({})",
    "round": "round_({})",
    "neg": "-{}",
    "min": "min_({}, {})",
    "max": "max_({}, {})",
    "fmod": "{} % {}",
    "same": "{}",
    "not": "!{}",
    "and": "{} && {}",
    "or": "{} || {}",
    "select": "{} ? {} : {}",
    "mul0": "f({0} === 0 ? 0 : {0} * {1})",
}
MATH = {"sqrt"} | FUNCTIONS


class JsWriter(Writer):
    """One environment: bools are JavaScript's, numbers are doubles that hold float32 values."""

    def target(self, what: str, i: int) -> str:
        return f"s[{i}]" if what == "field" else f"o[{i}]"

    def ref(self, value: int) -> str:
        if self.p.ops[value][0] != "const":
            return f"v{value}"
        number = self.p.number(value)
        return ("true" if number else "false") if self.p.kinds[value] == "b" else _literal(number)

    def as_float(self, value: int) -> str:
        return f"({self.ref(value)} ? 1 : 0)" if self.p.kinds[value] == "b" else self.ref(value)

    def expression(self, v: int) -> str:
        op, boolean = self.p.ops[v], self.p.kinds[v] == "b"
        if op[0] in ("input", "load"):
            text = (
                self.input(op[1])
                if op[0] == "input"
                else (f"load(T{self.table[op[1]]}, {self.size(op[1])}, {self.ref(op[3])})")
            )
            return f"{text} !== 0" if boolean else text
        args = [self.ref(a) for a in op[1:]]
        if op[0] in INFIX:
            return f"f({args[0]} {INFIX[op[0]]} {args[1]})"
        if op[0] in COMPARE:
            return f"{args[0]} {COMPARE[op[0]]} {args[1]}"
        if op[0] in EXACT:
            return EXACT[op[0]].format(*args)
        if op[0] in MATH:
            return f"f(Math.{op[0]}({', '.join(args)}))"
        raise Refusal(f"there is no JavaScript for {op[0]}")

    def input(self, source: tuple) -> str:
        if source[0] == "state":
            return f"s[{self.field[source[1:]]}]"
        if source[0] == "action":
            return f"a.{_key(self.groups.index(source[1]))}[{source[2]}]"
        return f"z[{self.offset[source[1]] + source[2]}]"

    def nothing(self, value: int) -> str:
        return "false" if self.p.kinds[value] == "b" else "0"

    def asks(self, condition: int, answer: bool) -> str:
        return self.ref(condition) if answer else f"!{self.ref(condition)}"


def _key(group: int) -> str:
    """The property of the actions' object that holds a group's."""
    return f"${group}"


def _literal(number: F32) -> str:
    number = float(number)
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "(-Infinity)" if number < 0 else "Infinity"
    if number == 0:
        return "(-0)" if str(number)[0] == "-" else "0"
    text = repr(int(number)) if number == int(number) and abs(number) < 2**53 else repr(number)
    return f"({text})" if number < 0 else text


def translate(line: str) -> str:
    """A statement of the common writer's in JavaScript's words."""
    line = re.sub(r"^const v[fb] ", "const ", line)
    line = re.sub(r"^v[fb] v", "let v", line)
    line = re.sub(r"^store\(([a-z]\[[^,]+), (.*)\);$", r"\1 = \2;", line)
    line = re.sub(r"= truth\(load\((t\[\d+\])\)\);$", r"= \1 !== 0;", line)
    line = re.sub(r"= load\((t\[\d+\])\);$", r"= \1;", line)
    line = re.sub(r"^store\((T\d+), (\d+)L, (.*), n\);$", r"store(\1, \2, \3);", line)
    return line


def emit_js(lowered: Lowered, places: Layout) -> str:
    """The source of an expression whose value is `{step, outputs, draws, …}`. Raises Refusal.

    step(s, a, z, T, o): one step in place on s, a Float32Array of the state's fields, with actions a {group key:
    numbers}, random numbers z and tables T; writes o, a Float32Array of all outputs, terminated and truncated last.
    outputs: [[key, first row, count], …].
    """
    writer = JsWriter(lowered, places)
    parts, handed = parts_of(writer, writer.schedule())
    tables = "".join(f", T{i}" for i in range(len(places.tables)))
    source = ["(() => {", PRELUDE, f"const t = new Float32Array({max(handed, 1)});"]
    for i, part in enumerate(parts):
        source += function(f"part{i}", f"s, a, z, o{tables}", [translate(line) for line in part])
    rows, outputs = 0, []
    for key, count in places.outputs:
        outputs.append(["/".join(key), rows, count])
        rows += count
    table_args = "".join(f", T[{i}]" for i in range(len(places.tables)))
    description = {
        "outputs": [*outputs, ["terminated", rows, 1], ["truncated", rows + 1, 1]],
        "rows": rows + 2,
        "fields": len(places.fields),
        "noise": places.noise,
        "draws": [_draw(draw) for draw in lowered.noise],
        "tables": [[count, kind] for _, count, kind in places.tables],
        "actions": {g: {"key": _key(k), "count": n, "integers": i} for k, (g, n, i) in enumerate(places.actions)},
    }
    described = json.dumps(description).replace("</", "<\\/")  # a name must not end the page's script
    source += [
        "function step(s, a, z, T, o) {",
        *(f"  part{i}(s, a, z, o{table_args});" for i in range(len(parts))),
        "}",
        f"return {{...{described}, step}};",
        "})()",
    ]
    return "\n".join(source)


def _draw(draw: tuple) -> list:
    """[kind, count, two parameters] of a recorded random draw: uniform (low, high), normal or integers."""
    name, args, kwargs, shape, _ = draw
    packet = name.removeprefix("aten.").partition(".")[0].rstrip("_").removesuffix("_like")
    count = 1
    for n in shape:
        count *= n
    count //= TRACED
    plain = [a for a in args if isinstance(a, (int, float))]

    def pair(*named: tuple[str, float]) -> list:
        return [plain[i] if i < len(plain) else kwargs.get(key, default) for i, (key, default) in enumerate(named)]

    if packet in ("rand", "randn"):
        return ["uniform" if packet == "rand" else "normal", count, 0, 1]
    if packet == "uniform":
        return ["uniform", count, *pair(("from", 0.0), ("to", 1.0))]
    if packet == "normal":
        return ["normal", count, *pair(("mean", 0.0), ("std", 1.0))]
    if packet == "randint" and plain:
        return ["integers", count, *(plain[:2] if len(plain) > 1 else (0, plain[0]))]
    raise Refusal(f"the step draws by {packet}, for which there is no JavaScript")
