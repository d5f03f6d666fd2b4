"""Writes a lowered step as C++: one function over blocks of W environments, in place on state kept field by field.

Depth-first order keeps few values alive; a value is stored as soon as it is known. Programs beyond `writer.PART`
statements are split into functions that hand values on through memory, since compilers take more than linear time.
"""

from envs.kernel.backends.c_writer import Writer, parts_of, refusals
from envs.kernel.ir.layout import Layout
from envs.kernel.ir.lowered_step import Lowered


def emit(lowered: Lowered, places: Layout) -> str:
    """The C++ source of a kernel."""
    writer = Writer(lowered, places)
    parts, handed = parts_of(writer, writer.schedule())
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
    params += [f"{cell_of(kind)}* __restrict T{i}" for i, (_, _, kind) in enumerate(places.tables)]
    names = ", ".join(
        param.split("*")[-1].removeprefix("__restrict").strip().removesuffix(")[W]").split()[-1] for param in params
    )
    source = ['#include "simd.h"', TABLES if places.tables else ""]
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
            *refusals(places, i, f"load(a{i}[k])", f"*(int*)p[{index['refused',]}]"),
        ]
    for i, (path, count, kind) in enumerate(places.tables):
        source += [f"{cell_of(kind)}* T{i} = ({cell_of(kind)}*)p[{index['table', path]}] + e * {count}L;"]
    source += [f"part{i}({names});" for i in range(len(parts))]
    row = 0
    for key, count in places.outputs:
        targets = [index[key]] + ([index["after", *key]] if key in places.restarted else [])
        source += [f"if (p[{k}]) put((float*)p[{k}] + e * {count}L, o + {row}, {count}L, n);" for k in targets]
        row += count
    source += [
        f"uint8_t* ended = (uint8_t*)p[{index['terminated',]}]; uint8_t* over = (uint8_t*)p[{index['truncated',]}];",
        f"vb any_done = or_(truth(load(o[{row}])), truth(load(o[{row + 1}])));",
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
        cell = cell_of(kind)
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


def cell_of(kind: str) -> str:
    return "uint8_t" if kind == "b" else "float"


TABLES = """
template <typename T> static inline vf load(const T* table, long size, vf index, int n) {
  float i[W], x[W]; store(i, index);
  for (int l = 0; l < W; l++) { long k = (long)i[l]; x[l] = l < n && k >= 0 && k < size ? table[l * size + k] : 0; }
  return load(x);
}
template <typename T> static inline void store(T* table, long size, vf index, vf value, int n) {
  float i[W], x[W]; store(i, index); store(x, value);
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
