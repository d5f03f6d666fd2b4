"""Writes a lowered step as one CUDA kernel: a thread per environment, outputs stored as soon as they are known.

The same statements as on the CPU, in scalars: state lies field by field, so that neighbouring threads read
neighbouring numbers. Compile with --fmad=false, so that products and sums round as the simulator's do. Where everything
lies comes by value with the launch: nothing is uploaded, and a captured graph keeps it. Long programs are functions
that are not inlined and hand values on in local memory, since ptxas takes more than linear time.
"""

import re

from envs.kernel.backends.c_writer import Writer, parts_of, refusals
from envs.kernel.backends.cpp import cell_of
from envs.kernel.ir.layout import Layout
from envs.kernel.ir.lowered_step import Lowered

PART = 1500  # statements of a function: longer ones take ptxas longer, shorter ones hand more on in memory
ROOTS = 6000  # statements from which quotients and square roots are called too: a few instructions each, but many
BLOCK = 128  # threads of a block
# Four blocks at least on a processor, which leaves each thread 128 registers. Without a number ptxas rounds registers
# down to what lets one more block on, and spills a few for it; with 1 it gives short programs all 255.
BOUNDS = f"__launch_bounds__({BLOCK}, 4)"

PRELUDE = """
#ifndef INFINITY  // NVRTC has no headers
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fc00000)
#endif
typedef float vf;
typedef bool vb;
typedef unsigned char uint8_t;
typedef long long i64;
struct Two { float* a; float* b; };  // an output before and after the auto-reset; either may be absent
#define F static __device__ __forceinline__
#define CALLED static __device__ __noinline__
F vf K(float x) { return x; }
F vb B(bool x) { return x; }
F vf load(const float* p) { return *p; }
F vf load(float handed) { return handed; }
F void store(float* p, vf x) { *p = x; }
F void store(float& handed, vf x) { handed = x; }
F Two at(float* a, float* b, int j) { return Two{a ? a + j : nullptr, b ? b + j : nullptr}; }
F void store(Two p, vf x) { if (p.a) *p.a = x; if (p.b) *p.b = x; }
F vb lt(vf a, vf b) { return a < b; }
F vb le(vf a, vf b) { return a <= b; }
F vb eq(vf a, vf b) { return a == b; }
F vb ne(vf a, vf b) { return a != b; }
F vf sel(vb c, vf a, vf b) { return c ? a : b; }
F vb sel(vb c, vb a, vb b) { return c ? a : b; }
F vb not_(vb a) { return !a; }
F vb and_(vb a, vb b) { return a & b; }
F vb or_(vb a, vb b) { return a | b; }
F vb xor_(vb a, vb b) { return a != b; }
F vf num(vb a) { return a ? 1.0f : 0.0f; }
F vb truth(vf a) { return a != 0.0f; }
F vf add(vf a, vf b) { return a + b; }
F vf sub(vf a, vf b) { return a - b; }
F vf mul(vf a, vf b) { return a * b; }
ROOTS vf div_(vf a, vf b) { return a / b; }
F vf mul0(vf a, vf b) { return a == 0.0f ? 0.0f : a * b; }
F vf neg_(vf a) { return -a; }
F vf abs_(vf a) { return fabsf(a); }
F vf min_(vf a, vf b) { return a < b || a != a ? a : b; }
F vf max_(vf a, vf b) { return b < a || a != a ? a : b; }
ROOTS vf sqrt_(vf a) { return sqrtf(a); }
F vf floor_(vf a) { return floorf(a); }
F vf ceil_(vf a) { return ceilf(a); }
F vf trunc_(vf a) { return truncf(a); }
F vf round_(vf a) { return rintf(a); }
MATHS vf fmod_(vf a, vf b) { return fmodf(a, b); }
MATHS vf sin_(vf a) { return sinf(a); }
MATHS vf cos_(vf a) { return cosf(a); }
MATHS vf tan_(vf a) { return tanf(a); }
MATHS vf exp_(vf a) { return expf(a); }
MATHS vf log_(vf a) { return logf(a); }
MATHS vf log1p_(vf a) { return log1pf(a); }
MATHS vf expm1_(vf a) { return expm1f(a); }
MATHS vf tanh_(vf a) { return tanhf(a); }
MATHS vf asin_(vf a) { return asinf(a); }
MATHS vf acos_(vf a) { return acosf(a); }
MATHS vf atan_(vf a) { return atanf(a); }
MATHS vf sinh_(vf a) { return sinhf(a); }
MATHS vf cosh_(vf a) { return coshf(a); }
MATHS vf atan2_(vf a, vf b) { return atan2f(a, b); }
MATHS vf pow_(vf a, vf b) { return powf(a, b); }
template <typename T> F vf load(const T* table, i64 size, vf i) {
  i64 k = (i64)i;
  return k >= 0 && k < size ? table[k] : 0;
}
template <typename T> F void store(T* table, i64 size, vf i, vf x) {
  i64 k = (i64)i;
  if (k >= 0 && k < size) table[k] = (T)x;
}
"""


class CudaWriter(Writer):
    """One thread is one environment: rows of outputs are stores to memory, tables need no lane count."""

    lanes = ""

    def target(self, what: str, i: int) -> str:
        if what == "field":
            return f"s + {i} * m"
        for k, (_, count) in enumerate(self.places.outputs):
            if i < count:
                return f"at(q{k}, r{k}, {i})"
            i -= count
        return f"&done[{i}]"

    def input(self, source: tuple) -> str:
        if source[0] == "action":
            return f"(float)a{self.groups.index(source[1])}[{source[2]}]"
        if source[0] == "noise":
            return f"z[{self.offset[source[1]] + source[2]}]"
        return super().input(source)

    def asks(self, condition: int, answer: bool) -> str:
        return self.ref(condition) if answer else f"!{self.ref(condition)}"


def emit_cuda(lowered: Lowered, places: Layout, part: int = PART) -> str:
    """The CUDA source: `environment_step(Where, shifts, now, E, m, P, shift)` over a grid of threads; `WHERE` says what comes in.

    part: statements of a function.
    """
    writer = CudaWriter(lowered, places)
    index = {name: i for i, name in enumerate(places.pointers)}

    def pointer(name: tuple, kind: str, count: int) -> str:
        i = index[name]
        return f"w.base[{i}] ? ({kind}*)(w.base[{i}] + now * w.stride[{i}]) + e * {count}LL : nullptr"

    declared = {"s": f"float* s = (float*)w.base[{index['state',]}] + e;"}
    if places.noise:
        declared["z"] = f"const float* z = {pointer(('noise',), 'const float', places.noise)};"
    for i, (group, count, integers) in enumerate(places.actions):
        kind = "const i64" if integers else "const float"
        declared[f"a{i}"] = f"{kind}* a{i} = {pointer(('action', group), kind, count)};"
    for i, (path, count, kind) in enumerate(places.tables):
        declared[f"T{i}"] = f"{cell_of(kind)}* T{i} = {pointer(('table', path), cell_of(kind), count)};"
    for k, (key, count) in enumerate(places.outputs):
        after = pointer(("after", *key), "float", count) if key in places.restarted else "nullptr"
        declared[f"q{k}"] = f"float* q{k} = {pointer(key, 'float', count)};"
        declared[f"r{k}"] = f"float* r{k} = {after};"

    def body(lines: list[str]) -> list[str]:
        """Lines, after what they name."""
        named = set(re.findall(r"\b[sz]\b|\b[aTqr]\d+\b", "\n".join(lines)))
        return [text for name, text in declared.items() if name in named] + lines

    parts, handed = parts_of(writer, writer.schedule(), part)
    length = sum(len(lines) for lines in parts)
    source = [
        f"#define MATHS {'CALLED' if len(parts) > 1 else 'F'}",
        f"#define ROOTS {'CALLED' if length > ROOTS else 'F'}",
    ]
    source += [PRELUDE, WHERE.replace("POINTERS", str(len(places.pointers)))]
    inlined = "__noinline__" if len(parts) > 1 else "__forceinline__"
    for i, lines in enumerate(parts):
        source += [f"static __device__ {inlined} void part{i}({PARAMETERS}) {{", *body(lines), "}"]
    source += [
        f'extern "C" __global__ void {BOUNDS} environment_step(const __grid_constant__ Where w, '
        "const i64* shifts, i64 now, i64 E, i64 m, i64 P, i64 shift) {",
        "const i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x;",
        "if (e >= E) return;",
        f"float done[2], t[{max(handed, 1)}];",
    ]
    for i in range(len(places.actions)):
        source += body(refusals(places, i, f"(float)a{i}[k]", f"*(int*)w.base[{index['refused',]}]", some=""))
    source += [f"part{i}(w, now, e, m, t, done);" for i in range(len(parts))]
    source += [
        f"if (w.base[{index[name,]}]) ((unsigned char*)(w.base[{index[name,]}] + now * w.stride[{index[name,]}]))[e] = "
        f"done[{i}] != 0;"
        for i, name in enumerate(("terminated", "truncated"))
    ]
    source += [
        "if (P == 0 || (done[0] == 0 && done[1] == 0)) return;",
        "const i64 first = shifts ? shifts[now] : shift;  // where environment 0 restarts from, and in which pool",
        "const i64 fresh = first / P * P + (e + first % P) % P;",
        f"const float* f = (const float*)w.base[{index['pool',]}] + fresh * {len(places.fields)}LL;",
    ]
    copies = [f"for (int k = 0; k < {len(places.fields)}; k++) s[k * m] = f[k];"]
    for i, (path, count, kind) in enumerate(places.tables):
        pool = f"((const {cell_of(kind)}*)w.base[{index['pool_table', path]}] + fresh * {count}LL)"
        copies.append(f"for (int k = 0; k < {count}; k++) T{i}[k] = {pool}[k];")
    for k, (key, count) in enumerate(places.outputs):
        if key in places.restarted:
            pool = f"((const float*)w.base[{index['fresh', *key]}] + fresh * {count}LL)"
            copies.append(f"if (r{k}) for (int j = 0; j < {count}; j++) r{k}[j] = {pool}[j];")
    return "\n".join([*source, *body(copies), "}"])


# Where everything lies: bases by `Layout.pointers` and bytes from one step of a rollout to the next, null where
# something is absent. shifts: [T], the row that environment 0 restarts from, in memory so that a graph can be replayed
# with other rows; null: `shift` says it. Pools lie side by side, P rows each; the others restart from the same one.
WHERE = """
struct Where { char* base[POINTERS]; i64 stride[POINTERS]; };"""
PARAMETERS = "const Where& w, const i64 now, const i64 e, const i64 m, float* t, float* done"
