"""Writes a lowered step as C++: one function over blocks of W environments, in place on state kept field by field.

Depth-first order keeps few values alive; a value is stored as soon as it is known. Programs beyond `PART` statements
are split into functions that hand values on through memory, since compilers take more than linear time per function.
"""

from dataclasses import dataclass
from pathlib import Path

from envs.kernel.program import arguments
from envs.kernel.trace import Lowered

PART = 1500
NAMES = {"and": "and_", "or": "or_", "xor": "xor_", "not": "not_", "div": "div_", "min": "min_", "max": "max_",
         "select": "sel", "neg": "neg_", "abs": "abs_", "sqrt": "sqrt_", "floor": "floor_", "ceil": "ceil_",
         "trunc": "trunc_", "round": "round_", "fmod": "fmod_", "same": ""}  # fmt: skip
FUNCTIONS = {"sin", "cos", "tan", "exp", "log", "log1p", "expm1", "tanh", "atan2", "asin", "acos", "atan", "sinh", "cosh",
             "pow"}  # fmt: skip


@dataclass
class Layout:
    """Where everything lies: the order of pointers that a kernel is called with, and of the rows of its outputs."""

    fields: list[tuple[str, int]]
    tables: list[tuple[str, int, str]]  # (path, elements per environment, kind)
    actions: list[tuple[str, int, bool]]  # (group, numbers per environment, integers?)
    noise: int  # numbers per environment
    outputs: list[tuple[tuple, int]]  # (key, numbers per environment), floats
    restarted: list[tuple]  # keys among the outputs that are also given after the auto-reset

    @property
    def pointers(self) -> list[tuple]:
        """Names of the pointers, in the order of the call."""
        names: list[tuple] = [("state",), ("pool",), ("noise",)]
        names += [("table", path) for path, _, _ in self.tables] + [("pool_table", path) for path, _, _ in self.tables]
        names += [("action", group) for group, _, _ in self.actions]
        names += [key for key, _ in self.outputs]
        for key in self.restarted:
            names += [("after", *key), ("fresh", *key)]
        return [*names, ("terminated",), ("truncated",)]


def layout(lowered: Lowered, actions: dict[str, tuple[int, bool]]) -> Layout:
    """The layout of a step. actions: {group: (A * D, integers?)}."""
    outputs = [(key, array.size) for key, array in lowered.outputs.items() if len(key) > 1]
    sizes = {path: shape[0] for path, shape in lowered.shapes.items()}
    tables = []
    for path, (_, kind) in lowered.tables.items():
        shape, _, axis = lowered.shapes[path]
        count = 1
        for d, n in enumerate(shape):
            count *= 1 if d == axis else n
        tables.append((path, count, kind))
    del sizes
    noise = sum(_count(shape) for _, _, _, shape, _ in lowered.noise)
    return Layout(lowered.fields, tables, [(g, n, i) for g, (n, i) in actions.items()], noise, outputs,
                  [key for key, _ in outputs if key[0] == "observation"])  # fmt: skip


def _count(shape: tuple) -> int:
    from envs.kernel.trace import TRACED

    count = 1
    for n in shape:
        count *= n
    return count // TRACED


class _Emitter:
    """Statements in depth-first order, with what each defines and reads."""

    def __init__(self, lowered: Lowered, places: Layout) -> None:
        self.lowered, self.places, self.p = lowered, places, lowered.program
        self.statements: list[tuple[int, tuple, str]] = []  # (value defined or -1, values read, text)
        self.done: set[int] = set()
        self.field = {key: i for i, key in enumerate(places.fields)}
        self.table = {path: i for i, (path, _, _) in enumerate(places.tables)}
        self.offset, start = {}, 0
        for i, (_, _, _, shape, _) in enumerate(lowered.noise):
            self.offset[i], start = start, start + _count(shape)

    def type(self, value: int) -> str:
        return "vb" if self.p.kinds[value] == "b" else "vf"

    def ref(self, value: int) -> str:
        """A value as an operand."""
        op = self.p.ops[value]
        if op[0] != "const":
            return f"v{value}"
        number = self.p.number(value)
        if self.p.kinds[value] == "b":
            return f"B({int(number)})"
        return f"K({_literal(number)})"

    def need(self, value: int) -> None:
        """Emits a value and what it needs, deepest first."""
        stack = [(value, False)]
        while stack:
            v, ready = stack.pop()
            if v in self.done or self.p.ops[v][0] == "const":
                continue
            if ready:
                self.done.add(v)
                self.statements.append(self._statement(v))
            else:
                stack.append((v, True))
                stack.extend((a, False) for a in reversed(arguments(self.p.ops[v])) if a not in self.done)

    def _statement(self, v: int) -> tuple[int, tuple, str]:
        op, kind = self.p.ops[v], self.type(v)
        reads = tuple(a for a in arguments(op) if self.p.ops[a][0] != "const")
        if op[0] == "input":
            return v, (), f"const {kind} v{v} = {self._input(op[1], kind)};"
        if op[0] == "load":
            reads = () if self.p.ops[op[3]][0] == "const" else (op[3],)
            name, index = f"T{self.table[op[1]]}", op[3]
            get = f"load({name}, {self._size(op[1])}L, {self.ref(index)}, n)"
            return v, reads, f"const {kind} v{v} = {'truth' if kind == 'vb' else ''}({get});"
        if op[0] == "store":
            name, index, new = f"T{self.table[op[1]]}", op[3], op[4]
            new_ref = f"num({self.ref(new)})" if self.p.kinds[new] == "b" else self.ref(new)
            text = f"store({name}, {self._size(op[1])}L, {self.ref(index)}, {new_ref}, n);"
            return -1, tuple(a for a in (index, new) if self.p.ops[a][0] != "const"), text
        name = NAMES.get(op[0], f"{op[0]}_" if op[0] in FUNCTIONS else op[0])
        return v, reads, f"const {kind} v{v} = {name}({', '.join(self.ref(a) for a in op[1:])});"

    def _size(self, path: str) -> int:
        return next(n for p, n, _ in self.places.tables if p == path)

    def _input(self, source: tuple, kind: str) -> str:
        if source[0] == "state":
            text = f"ld(s + {self.field[source[1:]]} * m)"
        elif source[0] == "action":
            group = [g for g, _, _ in self.places.actions].index(source[1])
            text = f"ld(a{group}[{source[2]}])"
        else:
            text = f"ld(z[{self.offset[source[1]] + source[2]}])"
        return f"truth({text})" if kind == "vb" else text

    def store(self, value: int, target: str) -> None:
        """Emits a value and stores it at once."""
        self.need(value)
        reads = () if self.p.ops[value][0] == "const" else (value,)
        text = f"num({self.ref(value)})" if self.p.kinds[value] == "b" else self.ref(value)
        self.statements.append((-1, reads, f"st({target}, {text});"))

    def run(self) -> None:
        """All statements of a step: state, then outputs."""
        p = self.p
        loads = {op[1][1:]: v for v, op in enumerate(p.ops) if op[0] == "input" and op[1][0] == "state"}
        outputs = [*self.lowered.next, *(int(v) for a in self.lowered.outputs.values() for v in a.reshape(-1)),
                   *(last for last, _ in self.lowered.tables.values() if last >= 0)]  # fmt: skip
        live = set(p.live(outputs))
        for key, value in zip(self.lowered.fields, self.lowered.next, strict=True):
            old = loads.get(key, -1)
            if value == old:
                continue  # never changes
            self.need(value)
            if old in live:
                self.need(old)  # read before it is overwritten
            self.store(value, f"s + {self.field[key]} * m")
        for last, _ in self.lowered.tables.values():
            if last >= 0:
                self.need(last)
        row = 0
        for key, _ in self.places.outputs:
            for value in self.lowered.outputs[key].reshape(-1).tolist():
                self.store(value, f"o[{row}]")
                row += 1
        for key in ("terminated",), ("truncated",):
            self.store(int(self.lowered.outputs[key].reshape(-1)[0]), f"o[{row}]")
            row += 1

    def parts(self) -> tuple[list[list[str]], int]:
        """Statements in functions of at most PART, and how many values are handed on between them."""
        where = {v: i // PART for i, (v, _, _) in enumerate(self.statements) if v >= 0}
        slots: dict[int, int] = {}
        for i, (_, reads, _) in enumerate(self.statements):
            for v in reads:
                if where[v] != i // PART:
                    slots.setdefault(v, len(slots))
        out: list[list[str]] = []
        seen: set[int] = set()
        for i, (v, reads, text) in enumerate(self.statements):
            if i % PART == 0:
                out.append([])
                seen = set()
            for r in reads:
                if where[r] != i // PART and r not in seen:
                    seen.add(r)
                    get = f"ld(t[{slots[r]}])"
                    out[-1].append(f"const {self.type(r)} v{r} = {f'truth({get})' if self.type(r) == 'vb' else get};")
            out[-1].append(text)
            if v in slots:
                out[-1].append(f"st(t[{slots[v]}], {f'num(v{v})' if self.type(v) == 'vb' else f'v{v}'});")
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
    emitter = _Emitter(lowered, places)
    emitter.run()
    parts, handed = emitter.parts()
    actions, rows = places.actions, sum(n for _, n in places.outputs) + 2
    index = {name: i for i, name in enumerate(places.pointers)}
    params = ["float* __restrict s", "const long m", "const int n", "float (*__restrict o)[W]",
              "const float (*__restrict z)[W]", "float (*__restrict t)[W]"]  # fmt: skip
    params += [f"const float (*__restrict a{i})[W]" for i in range(len(actions))]
    params += [f"{_cell(kind)}* __restrict T{i}" for i, (_, _, kind) in enumerate(places.tables)]
    names = ", ".join(param.split("*")[-1].removeprefix("__restrict").strip().removesuffix(")[W]").split()[-1]
                      for param in params)  # fmt: skip
    source = [f'#include "{Path(__file__).with_name("prelude.h")}"', TABLES if places.tables else ""]
    for i, part in enumerate(parts):
        source += [f"static __attribute__((noinline)) void part{i}({', '.join(params)}) {{", *part, "}"]
    source += ["static void block(char** p, const long e, const int n, const long m, const long P, const long shift) {"]
    source += [f"float o[{rows}][W], t[{max(handed, 1)}][W], z[{max(places.noise, 1)}][W];",
               f"float* s = (float*)p[{index['state',]}] + e;"]  # fmt: skip
    if places.noise:
        source += [f"take(z, (const float*)p[{index['noise',]}] + e * {places.noise}L, {places.noise}L, n);"]
    for i, (group, count, integers) in enumerate(actions):
        kind = "int64_t" if integers else "float"
        source += [f"float a{i}[{count}][W];",
                   f"take(a{i}, (const {kind}*)p[{index['action', group]}] + e * {count}L, {count}L, n);"]  # fmt: skip
    for i, (path, count, kind) in enumerate(places.tables):
        source += [f"{_cell(kind)}* T{i} = ({_cell(kind)}*)p[{index['table', path]}] + e * {count}L;"]
    source += [f"part{i}({names});" for i in range(len(parts))]
    row = 0
    for key, count in places.outputs:
        targets = [index[key]] + ([index["after", *key]] if key in places.restarted else [])
        source += [f"if (p[{k}]) put((float*)p[{k}] + e * {count}L, o + {row}, {count}L, n);" for k in targets]
        row += count
    source += [f"uint8_t* ended = (uint8_t*)p[{index['terminated',]}]; uint8_t* over = (uint8_t*)p[{index['truncated',]}];",
               f"vb any_done = or_(truth(ld(o[{row}])), truth(ld(o[{row + 1}])));",
               "for (int l = 0; l < n; l++) {",
               f"  const bool a = o[{row}][l] != 0, b = o[{row + 1}][l] != 0;",
               "  if (ended) ended[e + l] = a;", "  if (over) over[e + l] = b;", "}",
               f"if (P > 0 && any(any_done)) for (int l = 0; l < n; l++) if (o[{row}][l] != 0 || o[{row + 1}][l] != 0) {{",
               "  const long fresh = (e + l + shift) % P;",
               f"  const float* f = (const float*)p[{index['pool',]}] + fresh * {len(places.fields)}L;",
               f"  for (long k = 0; k < {len(places.fields)}L; k++) s[k * m + l] = f[k];"]  # fmt: skip
    for i, (path, count, kind) in enumerate(places.tables):
        cell = _cell(kind)
        pool = f"(const {cell}*)p[{index['pool_table', path]}] + fresh * {count}L"
        source += [f"  memcpy(T{i} + l * {count}L, {pool}, {count}L * sizeof({cell}));"]
    sizes = dict(places.outputs)
    for key in places.restarted:
        after, fresh = index["after", *key], index["fresh", *key]
        source += [f"  if (p[{after}]) memcpy((float*)p[{after}] + (e + l) * {sizes[key]}L, (const float*)p[{fresh}] + "
                   f"fresh * {sizes[key]}L, {sizes[key]} * sizeof(float));"]  # fmt: skip
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
