"""Writes a lowered step as C++: one function over blocks of W environments, in place on state kept field by field.

Depth-first order keeps few values alive; a value is stored as soon as it is known. Programs beyond `PART` statements
are split into functions that hand values on through memory, since compilers take more than linear time per function.
"""

from dataclasses import dataclass
from pathlib import Path

from envs.kernel.program import arguments
from envs.kernel.schedule import Scope, schedule
from envs.kernel.trace import Lowered

PART = 1500
NAMES = {
    "and": "and_",
    "or": "or_",
    "xor": "xor_",
    "not": "not_",
    "div": "div_",
    "min": "min_",
    "max": "max_",
    "select": "sel",
    "neg": "neg_",
    "abs": "abs_",
    "sqrt": "sqrt_",
    "floor": "floor_",
    "ceil": "ceil_",
    "trunc": "trunc_",
    "round": "round_",
    "fmod": "fmod_",
    "same": "",
}
FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "exp",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "atan2",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "pow",
}


@dataclass
class Layout:
    """Where everything lies: the order of pointers that a kernel is called with, and of the rows of its outputs."""

    fields: list[tuple[str, int]]
    tables: list[tuple[str, int, str]]  # (path, elements per environment, kind)
    actions: list[tuple[str, int, bool]]  # (group, numbers per environment, integers?)
    noise: int  # numbers per environment
    outputs: list[tuple[tuple, int]]  # (key, numbers per environment), floats
    restarted: list[tuple]  # keys among the outputs that are also given after the auto-reset
    inner: dict[tuple, tuple[int, ...]]  # key -> shape of an output without E

    @property
    def pointers(self) -> list[tuple]:
        """Names of the pointers, in the order of the call."""
        names: list[tuple] = [("state",), ("pool",), ("noise",)]
        names += [("table", path) for path, _, _ in self.tables] + [("pool_table", path) for path, _, _ in self.tables]
        names += [("action", group) for group, _, _ in self.actions]
        names += [key for key, _ in self.outputs]
        for key in self.restarted:
            names += [("after", *key), ("fresh", *key)]
        return [*names, ("terminated",), ("truncated",), ("nan",)]


def layout(lowered: Lowered, actions: dict[str, tuple[int, bool]]) -> Layout:
    """The layout of a step. actions: {group: (A * D, integers?)}."""
    outputs = [(key, array.size) for key, array in lowered.outputs.items() if len(key) > 1]
    tables = []
    for path, (_, kind) in lowered.tables.items():
        shape, _, axis = lowered.shapes[path]
        count = 1
        for d, n in enumerate(shape):
            count *= 1 if d == axis else n
        tables.append((path, count, kind))
    noise = sum(_count(shape) for _, _, _, shape, _ in lowered.noise)
    return Layout(
        lowered.fields,
        tables,
        [(g, n, i) for g, (n, i) in actions.items()],
        noise,
        outputs,
        [key for key, _ in outputs if key[0] == "observation"],
        {key: array.shape for key, array in lowered.outputs.items()},
    )


def _count(shape: tuple) -> int:
    from envs.kernel.trace import TRACED

    count = 1
    for n in shape:
        count *= n
    return count // TRACED


class Writer:
    """Turns scheduled steps into statements. Subclasses speak another dialect of C."""

    def __init__(self, lowered: Lowered, places: Layout) -> None:
        self.lowered, self.places, self.p = lowered, places, lowered.program
        self.field = {key: i for i, key in enumerate(places.fields)}
        self.table = {path: i for i, (path, _, _) in enumerate(places.tables)}
        self.groups = [group for group, _, _ in places.actions]
        self.offset, start = {}, 0
        for i, (_, _, _, shape, _) in enumerate(lowered.noise):
            self.offset[i], start = start, start + _count(shape)

    def schedule(self) -> Scope:
        """All steps of an environment's step: state, then outputs, each stored as soon as it is known."""
        p, lowered = self.p, self.lowered
        loads = {op[1][1:]: v for v, op in enumerate(p.ops) if op[0] == "input" and op[1][0] == "state"}
        stores = [last for last, _ in lowered.tables.values() if last >= 0]
        ended = [int(lowered.outputs[key].reshape(-1)[0]) for key in (("terminated",), ("truncated",))]
        rows = [v for key, _ in self.places.outputs for v in lowered.outputs[key].reshape(-1).tolist()] + ended
        plan = schedule(p, [*lowered.next, *rows, *stores])
        live = set(plan.live)
        for key, value in zip(lowered.fields, lowered.next, strict=True):
            old = loads.get(key, -1)
            if value == old:
                continue  # never changes
            plan.need(value, plan.root)
            if old in live:
                plan.need(old, plan.root)  # read before it is overwritten
            plan.store(value, self.target("field", self.field[key]))
        for last in stores:
            plan.need(last, plan.root)
        for row, value in enumerate(rows):
            plan.store(value, self.target("row", row))
        return plan.finish()

    def target(self, what: str, i: int) -> str:
        """Where a field of the state or a row of the outputs lies."""
        return f"s + {i} * m" if what == "field" else f"o[{i}]"

    def type(self, value: int) -> str:
        return "vb" if self.p.kinds[value] == "b" else "vf"

    def ref(self, value: int) -> str:
        """A value as an operand."""
        if self.p.ops[value][0] != "const":
            return f"v{value}"
        number = self.p.number(value)
        return f"B({int(number)})" if self.p.kinds[value] == "b" else f"K({_literal(number)})"

    def as_float(self, value: int) -> str:
        return f"num({self.ref(value)})" if self.p.kinds[value] == "b" else self.ref(value)

    def expression(self, v: int) -> str:
        """What defines a value."""
        op, kind = self.p.ops[v], self.type(v)
        if op[0] == "input":
            text = self.input(op[1])
            return f"truth({text})" if kind == "vb" else text
        if op[0] == "load":
            text = f"load(T{self.table[op[1]]}, {self.size(op[1])}L, {self.ref(op[3])}, n)"
            return f"truth({text})" if kind == "vb" else text
        name = NAMES.get(op[0], f"{op[0]}_" if op[0] in FUNCTIONS else op[0])
        return f"{name}({', '.join(self.ref(a) for a in op[1:])})"

    def size(self, path: str) -> int:
        return next(n for p, n, _ in self.places.tables if p == path)

    def input(self, source: tuple) -> str:
        """A number from outside."""
        if source[0] == "state":
            return f"ld(s + {self.field[source[1:]]} * m)"
        if source[0] == "action":
            return f"ld(a{self.groups.index(source[1])}[{source[2]}])"
        return f"ld(z[{self.offset[source[1]] + source[2]}])"

    def write(self, step: tuple, declared: set[int]) -> list[str]:
        """The lines of a step; `declared` values are assigned, others are defined."""
        if step[0] == "define":
            v = step[1]
            define = "" if v in declared else f"const {self.type(v)} "
            return [f"{define}v{v} = {self.expression(v)};"]
        if step[0] == "store":
            return [f"st({step[2]}, {self.as_float(step[1])});"]
        if step[0] == "table":
            op = self.p.ops[step[1]]
            name, size = f"T{self.table[op[1]]}", self.size(op[1])
            return [f"store({name}, {size}L, {self.ref(op[3])}, {self.as_float(op[4])}, n);"]
        block = step[1]
        condition, answer = block.literal
        lines = [f"{self.type(v)} v{v} = {self.nothing(v)};" for v in block.hoisted]
        lines.append(f"if ({self.asks(condition, answer)}) {{")
        inner = declared | set(block.hoisted)
        for s in block.steps:
            lines += self.write(s, inner)
        return [*lines, "}"]

    def nothing(self, value: int) -> str:
        return "B(0)" if self.p.kinds[value] == "b" else "K(0.0f)"

    def asks(self, condition: int, answer: bool) -> str:
        return f"any({self.ref(condition)})" if answer else f"any(not_({self.ref(condition)}))"


def _touched(writer: Writer, step: tuple) -> tuple[list[int], list[int]]:
    """(values that a step defines, values that it reads), blocks included."""
    if step[0] == "store":
        return [], [step[1]]
    if step[0] in ("define", "table"):
        op = writer.p.ops[step[1]]
        reads = [op[3], op[4]] if op[0] == "store" else [op[3]] if op[0] == "load" else list(arguments(op))
        return ([step[1]] if step[0] == "define" else []), reads
    defines, reads = [], [step[1].literal[0]]
    for s in step[1].steps:
        d, r = _touched(writer, s)
        defines, reads = defines + d, reads + r
    return defines, reads


def _parts(writer: Writer, root: Scope) -> tuple[list[list[str]], int]:
    """Functions of about PART statements, and how many values are handed on between them."""
    where: dict[int, int] = {}
    touched, part_of, part, length = [], [], 0, 0
    for step in root.steps:
        defines, reads = _touched(writer, step)
        if length and length + len(defines) > PART:
            part, length = part + 1, 0
        length += max(1, len(defines))
        where.update((v, part) for v in defines)
        touched.append((defines, reads))
        part_of.append(part)
    slots: dict[int, int] = {}
    for (_, reads), at in zip(touched, part_of, strict=True):
        for v in reads:
            if v in where and where[v] != at:
                slots.setdefault(v, len(slots))
    out: list[list[str]] = [[] for _ in range(part + 1)]
    seen: set[tuple[int, int]] = set()
    for step, (defines, reads), at in zip(root.steps, touched, part_of, strict=True):
        for r in reads:
            if r in slots and where[r] != at and (r, at) not in seen:
                seen.add((r, at))
                text = f"ld(t[{slots[r]}])"
                kind = writer.type(r)
                out[at].append(f"const {kind} v{r} = {f'truth({text})' if kind == 'vb' else text};")
        out[at] += writer.write(step, set())
        out[at] += [f"st(t[{slots[v]}], {writer.as_float(v)});" for v in defines if v in slots]
    return out, len(slots)


def _literal(number) -> str:
    number = float(number)
    if number != number:
        return "NAN"
    if number in (float("inf"), float("-inf")):
        return "-INFINITY" if number < 0 else "INFINITY"
    if number == 0:
        return "-0.0f" if str(number)[0] == "-" else "0.0f"
    return f"{number:.9g}" + ("f" if "." in f"{number:.9g}" or "e" in f"{number:.9g}" else ".0f")


def emit(lowered: Lowered, places: Layout) -> str:
    """The C++ source of a kernel."""
    writer = Writer(lowered, places)
    parts, handed = _parts(writer, writer.schedule())
    actions, rows = places.actions, sum(n for _, n in places.outputs) + 2
    index = {name: i for i, name in enumerate(places.pointers)}
    params = [
        "float* __restrict s",
        "const long m",
        "const int n",
        "float (*__restrict o)[W]",
        "const float (*__restrict z)[W]",
        "float (*__restrict t)[W]",
    ]
    params += [f"const float (*__restrict a{i})[W]" for i in range(len(actions))]
    params += [f"{_cell(kind)}* __restrict T{i}" for i, (_, _, kind) in enumerate(places.tables)]
    names = ", ".join(
        param.split("*")[-1].removeprefix("__restrict").strip().removesuffix(")[W]").split()[-1] for param in params
    )
    source = [f'#include "{Path(__file__).with_name("prelude.h")}"', TABLES if places.tables else ""]
    for i, part in enumerate(parts):
        source += [f"static __attribute__((noinline)) void part{i}({', '.join(params)}) {{", *part, "}"]
    source += ["static void block(char** p, const long e, const int n, const long m, const long P, const long shift) {"]
    source += [
        f"float o[{rows}][W], t[{max(handed, 1)}][W], z[{max(places.noise, 1)}][W];",
        f"float* s = (float*)p[{index['state',]}] + e;",
    ]
    if places.noise:
        source += [f"take(z, (const float*)p[{index['noise',]}] + e * {places.noise}L, {places.noise}L, n);"]
    for i, (group, count, integers) in enumerate(actions):
        kind = "int64_t" if integers else "float"
        source += [
            f"float a{i}[{count}][W];",
            f"take(a{i}, (const {kind}*)p[{index['action', group]}] + e * {count}L, {count}L, n);",
            f"for (int k = 0; k < {count}; k++) if (any(ne(ld(a{i}[k]), ld(a{i}[k])))) *(int*)p[{index['nan',]}] = 1;",
        ]
    for i, (path, count, kind) in enumerate(places.tables):
        source += [f"{_cell(kind)}* T{i} = ({_cell(kind)}*)p[{index['table', path]}] + e * {count}L;"]
    source += [f"part{i}({names});" for i in range(len(parts))]
    row = 0
    for key, count in places.outputs:
        targets = [index[key]] + ([index["after", *key]] if key in places.restarted else [])
        source += [f"if (p[{k}]) put((float*)p[{k}] + e * {count}L, o + {row}, {count}L, n);" for k in targets]
        row += count
    source += [
        f"uint8_t* ended = (uint8_t*)p[{index['terminated',]}]; uint8_t* over = (uint8_t*)p[{index['truncated',]}];",
        f"vb any_done = or_(truth(ld(o[{row}])), truth(ld(o[{row + 1}])));",
        "for (int l = 0; l < n; l++) {",
        f"  const bool a = o[{row}][l] != 0, b = o[{row + 1}][l] != 0;",
        "  if (ended) ended[e + l] = a;",
        "  if (over) over[e + l] = b;",
        "}",
        f"if (P > 0 && any(any_done)) for (int l = 0; l < n; l++) if (o[{row}][l] != 0 || o[{row + 1}][l] != 0) {{",
        "  const long fresh = (e + l + shift) % P;",
        f"  const float* f = (const float*)p[{index['pool',]}] + fresh * {len(places.fields)}L;",
        f"  for (long k = 0; k < {len(places.fields)}L; k++) s[k * m + l] = f[k];",
    ]
    for i, (path, count, kind) in enumerate(places.tables):
        cell = _cell(kind)
        pool = f"(const {cell}*)p[{index['pool_table', path]}] + fresh * {count}L"
        source += [f"  memcpy(T{i} + l * {count}L, {pool}, {count}L * sizeof({cell}));"]
    sizes = dict(places.outputs)
    for key in places.restarted:
        after, fresh = index["after", *key], index["fresh", *key]
        source += [
            f"  if (p[{after}]) memcpy((float*)p[{after}] + (e + l) * {sizes[key]}L, (const float*)p[{fresh}] + "
            f"fresh * {sizes[key]}L, {sizes[key]} * sizeof(float));"
        ]
    source += ["}", "}", CALL.replace("POINTERS", str(len(places.pointers)))]
    return "\n".join(source)


def _cell(kind: str) -> str:
    return "uint8_t" if kind == "b" else "float"


TABLES = """
template <typename T> static inline vf load(const T* table, long size, vf index, int n) {
  float i[W], x[W]; st(i, index);
  for (int l = 0; l < W; l++) { long k = (long)i[l]; x[l] = l < n && k >= 0 && k < size ? table[l * size + k] : 0; }
  return ld(x);
}
template <typename T> static inline void store(T* table, long size, vf index, vf value, int n) {
  float i[W], x[W]; st(i, index); st(x, value);
  for (int l = 0; l < n; l++) { long k = (long)i[l]; if (k >= 0 && k < size) table[l * size + k] = (T)x[l]; }
}"""
CALL = """
extern "C" int width() { return W; }
extern "C" void step(char** bases, const int64_t* strides, int64_t t, int64_t E, int64_t m, int64_t P, int64_t shift,
                     int threads) {
  char* p[POINTERS];
  for (int i = 0; i < POINTERS; i++) p[i] = bases[i] ? bases[i] + t * strides[i] : nullptr;
  const long blocks = (E + W - 1) / W;
  #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (long b = 0; b < blocks; b++) block(p, b * W, E - b * W < W ? (int)(E - b * W) : W, m, P, shift);
}"""
