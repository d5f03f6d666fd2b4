"""Writes a gradient program as C++: as the step's kernel, in place on the gradients of the state field by field."""

from envs.kernel.backends.c_writer import PART, Writer
from envs.kernel.backends.cpp import TABLES, cell_of
from envs.kernel.backends.handing import Handing, reads_of
from envs.kernel.ir.gradient import Gradient
from envs.kernel.ir.gradient_layout import GradientLayout
from envs.kernel.ir.schedule import Scope, schedule

UNIT = 6  # functions that are compiled together: compilers of several units run side by side


class GradientWriter(Writer):
    """Statements of a gradient program: s holds gradients of the state, x the state itself, y those of the outputs."""

    def __init__(self, gradient: Gradient, places: GradientLayout) -> None:
        super().__init__(gradient.lowered, places)
        self.gradient = gradient
        self.row: dict[tuple, int] = {}
        start = 0
        for key, count in places.outputs:
            self.row[key], start = start, start + count

    def schedule(self) -> Scope:
        """All of it: gradients of the state, then of actions, each stored as soon as it is known."""
        p, gradient = self.p, self.gradient
        stores = [last for last in gradient.tables.values() if last >= 0]
        plan = schedule(p, gradient.results)
        live = set(plan.live)
        for key, value in zip(self.lowered.fields, gradient.state, strict=True):
            old = p.input(("gradient", "state", *key), "f")
            if value is None:
                continue  # nothing depends on it: `emit_gradient` writes 0
            plan.need(value, plan.root)
            if old in live:
                plan.need(old, plan.root)  # read before it is overwritten
            plan.store(value, self.target("field", self.field[key]))
        for last in stores:
            plan.need(last, plan.root)
        row = 0
        for group, count, integers in self.places.actions:
            for k, value in enumerate(gradient.actions.get(group, [])) if not integers else ():
                if value is not None:
                    plan.store(value, self.target("row", row + k))
            row += 0 if integers else count
        return plan.finish()

    def input(self, source: tuple) -> str:
        if source[0] == "state":
            return f"load(x + {self.field[source[1:]]} * m)"
        if source[:2] == ("gradient", "state"):
            return f"sel(over, K(0.0f), load(s + {self.field[source[2:]]} * m))"
        if source[0] == "gradient":
            return f"load(y[{self.row[source[1:-1]] + source[-1]}])"
        return super().input(source)


class FunctionWriter(GradientWriter):
    """The same as functions of bearable length, which hand values on through memory t."""

    def __init__(self, gradient: Gradient, places: GradientLayout) -> None:
        super().__init__(gradient, places)
        stays = {v for v, op in enumerate(self.p.ops) if op[0] == "input" and op[1][:2] != ("gradient", "state")}
        self.handing = Handing(self.p, self.schedule(), PART, stays)

    def functions(self) -> list[list[str]]:
        """The lines of each."""
        root, found = self.handing.root, []
        for part in self.handing.parts:
            seen: set[int] = set()
            found.append([line for step in part for line in self._lines(step, root, seen, set())])
        return found

    def _lines(self, step: tuple, scope: Scope, seen: set[int], declared: set[int]) -> list[str]:
        """A statement, after what it reads; seen: values whose names can be read here."""
        handing = self.handing
        lines = [line for v in reads_of(self.p, step) for line in self._bring(v, scope, seen)]
        if step[0] != "block":
            lines += self.write(step, declared)
            if step[0] == "define":
                seen.add(step[1])
                if step[1] in handing.slots and step[1] not in handing.late:
                    lines.append(f"keep(t[{handing.slots[step[1]]}], v{step[1]});")
            return lines
        block = step[1]
        outside, inside = handing.declared.get(block, []), set(seen)
        declared = declared | set(outside)
        lines += [f"{self.type(v)} v{v} = {self.nothing(v)};" for v in outside]
        lines.append(f"if ({self.asks(*block.literal)}) {{")
        for s in block.steps:
            lines += self._lines(s, block, inside, declared)
        seen |= inside & declared
        return [*lines, "}", *(f"keep(t[{handing.slots[v]}], v{v});" for v in outside if v in handing.late)]

    def _bring(self, v: int, scope: Scope, seen: set[int]) -> list[str]:
        """The lines that make a value's name readable."""
        if v in seen:
            return []
        seen.add(v)
        lines, kind, text = [], self.type(v), self.expression(v)
        if (v, scope) in self.handing.again:
            lines = [line for a in reads_of(self.p, ("define", v)) for line in self._bring(a, scope, seen)]
        elif v not in self.handing.stays:
            text = f"kept_{kind}(t[{self.handing.slots[v]}])"
        return [*lines, f"const {kind} v{v} = {text};"]


def emit_gradient(gradient: Gradient, places: GradientLayout) -> list[str]:
    """The C++ sources of a gradient kernel's library: `step(char** pointers, E, m, threads)`, long ones in several."""
    writer = FunctionWriter(gradient, places)
    parts, handed = writer.functions(), len(writer.handing.slots)
    index = {name: i for i, name in enumerate(places.pointers)}
    rows = sum(n for _, n, integers in places.actions if not integers)
    inputs = sum(n for _, n in places.outputs)
    params = [
        "float* __restrict s",
        "const float* __restrict x",
        "const long m",
        "const int n",
        "const vb over",
        "float (*__restrict o)[W]",
        "const float (*__restrict z)[W]",
        "float (*__restrict t)[W]",
        "const float (*__restrict y)[W]",
    ]
    params += [f"const float (*__restrict a{i})[W]" for i in range(len(places.actions))]
    params += [f"{cell_of(kind)}* __restrict T{i}" for i, (_, _, kind) in enumerate(places.tables)]
    names = ["s", "x", "m", "n", "over", "o", "z", "t", "y"]
    names += [f"a{i}" for i in range(len(places.actions))] + [f"T{i}" for i in range(len(places.tables))]
    prelude = ['#include "simd.h"', KEPT, TABLES if places.tables else ""]
    heads = [
        f'__attribute__((noinline, visibility("hidden"))) void part{i}({", ".join(params)})' for i in range(len(parts))
    ]
    texts = ["\n".join([head, "{", *part, "}"]) for head, part in zip(heads, parts, strict=True)]
    several = len(parts) > UNIT
    units = ["\n".join([*prelude, *texts[i : i + UNIT]]) for i in range(0, len(parts), UNIT)] if several else []
    source = [*prelude, *(f"{head};" for head in heads if several), *([] if several else texts)]
    source += [
        "static void block(char** p, const long e, const int n, const long m) {",
        f"float o[{max(rows, 1)}][W], t[{max(handed, 1)}][W], z[{max(places.noise, 1)}][W], y[{max(inputs, 1)}][W];",
        "memset(o, 0, sizeof o);",
        f"float* s = (float*)p[{index['gradient', 'state']}] + e;",
        f"const float* x = (const float*)p[{index['state',]}] + e;",
        "float restarted[W] = {0};",
        f"const uint8_t* ended = (const uint8_t*)p[{index['over',]}];",
        "for (int l = 0; ended && l < n; l++) restarted[l] = ended[e + l];",
        "const vb over = truth(load(restarted));",
    ]
    if places.noise:
        source.append(f"take(z, (const float*)p[{index['noise',]}] + e * {places.noise}L, {places.noise}L, n);")
    for i, (group, count, integers) in enumerate(places.actions):
        kind = "int64_t" if integers else "float"
        source += [
            f"float a{i}[{count}][W];",
            f"take(a{i}, (const {kind}*)p[{index['action', group]}] + e * {count}L, {count}L, n);",
        ]
    for i, (path, count, kind) in enumerate(places.tables):
        source.append(f"{cell_of(kind)}* T{i} = ({cell_of(kind)}*)p[{index['table', path]}] + e * {count}L;")
    row = 0
    for key, count in places.outputs:
        source += [
            f"if (p[{index['gradient', *key]}]) take(y + {row}, (const float*)p[{index['gradient', *key]}] + "
            f"e * {count}L, {count}L, n); else memset(y + {row}, 0, {count} * sizeof *y);"
        ]
        if key in places.restarted:
            after = index["gradient", "after", *key]
            source += [
                f"if (p[{after}]) for (int l = 0; l < n; l++) if (restarted[l] == 0)",
                f"  for (long j = 0; j < {count}; j++) "
                f"y[{row} + j][l] += ((const float*)p[{after}])[(e + l) * {count}L + j];",
            ]
        row += count
    source += [f"part{i}({', '.join(names)});" for i in range(len(parts))]
    for key, value in zip(places.fields, gradient.state, strict=True):
        if value is None:  # nothing depends on it
            source.append(f"store(s + {places.fields.index(key)} * m, K(0.0f));")
    row = 0
    for group, count, integers in places.actions:
        if not integers:
            target = index["gradient", "action", group]
            source.append(f"if (p[{target}]) put((float*)p[{target}] + e * {count}L, o + {row}, {count}L, n);")
            row += count
    return ["\n".join([*source, "}", CALL]), *units]


KEPT = """
INLINE void keep(float* p, vf x) { store(p, x); }
INLINE void keep(float* p, vb x) { memcpy(p, &x, sizeof x); }
INLINE vf kept_vf(const float* p) { return load(p); }
INLINE vb kept_vb(const float* p) { vb x; memcpy(&x, p, sizeof x); return x; }"""
CALL = """
extern "C" int width() { return W; }
extern "C" void step(char** p, int64_t E, int64_t m, int threads) {
  const long blocks = (E + W - 1) / W;
  #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (long b = 0; b < blocks; b++) block(p, b * W, E - b * W < W ? (int)(E - b * W) : W, m);
}"""
