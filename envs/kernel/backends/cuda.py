"""Writes a lowered step as one CUDA kernel: a thread per environment, outputs stored as soon as they are known.

The same statements as on the CPU, in scalars: state lies field by field, so that neighbouring threads read
neighbouring numbers. Compile with -fmad=false, so that products and sums round as the simulator's do.
"""

from envs.kernel.backends.c_writer import Writer
from envs.kernel.ir.layout import Layout
from envs.kernel.ir.lowered_step import Lowered

PRELUDE = """
typedef float vf;
typedef bool vb;
typedef long long i64;
struct Two { float* a; float* b; };  // an output before and after the auto-reset; either may be absent
#define F __device__ __forceinline__
F vf K(float x) { return x; }
F vb B(bool x) { return x; }
F vf load(const float* p) { return *p; }
F void store(float* p, vf x) { *p = x; }
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
F vf div_(vf a, vf b) { return a / b; }
F vf mul0(vf a, vf b) { return a == 0.0f ? 0.0f : a * b; }
F vf neg_(vf a) { return -a; }
F vf abs_(vf a) { return fabsf(a); }
F vf min_(vf a, vf b) { return a < b || a != a ? a : b; }
F vf max_(vf a, vf b) { return b < a || a != a ? a : b; }
F vf sqrt_(vf a) { return sqrtf(a); }
F vf floor_(vf a) { return floorf(a); }
F vf ceil_(vf a) { return ceilf(a); }
F vf trunc_(vf a) { return truncf(a); }
F vf round_(vf a) { return rintf(a); }
F vf fmod_(vf a, vf b) { return fmodf(a, b); }
F vf sin_(vf a) { return sinf(a); }
F vf cos_(vf a) { return cosf(a); }
F vf tan_(vf a) { return tanf(a); }
F vf exp_(vf a) { return expf(a); }
F vf log_(vf a) { return logf(a); }
F vf log1p_(vf a) { return log1pf(a); }
F vf expm1_(vf a) { return expm1f(a); }
F vf tanh_(vf a) { return tanhf(a); }
F vf asin_(vf a) { return asinf(a); }
F vf acos_(vf a) { return acosf(a); }
F vf atan_(vf a) { return atanf(a); }
F vf sinh_(vf a) { return sinhf(a); }
F vf cosh_(vf a) { return coshf(a); }
F vf atan2_(vf a, vf b) { return atan2f(a, b); }
F vf pow_(vf a, vf b) { return powf(a, b); }
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

    def write(self, step: tuple, declared: set[int]) -> list[str]:
        return [line.replace(", n);", ");") for line in super().write(step, declared)]


def emit_cuda(lowered: Lowered, places: Layout) -> str:
    """The CUDA source: `step(char** bases, strides, t, E, m, P, shift)` as on the CPU, over a grid of threads."""
    writer = CudaWriter(lowered, places)
    index = {name: i for i, name in enumerate(places.pointers)}

    def pointer(name: tuple, kind: str, count: int) -> str:
        i = index[name]
        return f"bases[{i}] ? ({kind}*)(bases[{i}] + t * strides[{i}]) + e * {count}LL : nullptr"

    source = [
        PRELUDE,
        'extern "C" __global__ void step(char** bases, const i64* strides, i64 t, i64 E, i64 m, i64 P, i64 shift) {',
        "const i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x;",
        "if (e >= E) return;",
        f"float* s = (float*)bases[{index['state',]}] + e;",
        "float done[2];",
    ]
    if places.noise:
        source.append(f"const float* z = {pointer(('noise',), 'const float', places.noise)};")
    for i, (group, count, integers) in enumerate(places.actions):
        kind = "const i64" if integers else "const float"
        source.append(f"{kind}* a{i} = {pointer(('action', group), kind, count)};")
        if not integers:
            check = f"if (a{i}[k] != a{i}[k]) *(int*)bases[{index['nan',]}] = 1;"
            source.append(f"for (int k = 0; k < {count}; k++) {check}")
    for i, (path, count, kind) in enumerate(places.tables):
        cell = "unsigned char" if kind == "b" else "float"
        source.append(f"{cell}* T{i} = {pointer(('table', path), cell, count)};")
    for k, (key, count) in enumerate(places.outputs):
        after = pointer(("after", *key), "float", count) if key in places.restarted else "nullptr"
        source += [f"float* q{k} = {pointer(key, 'float', count)};", f"float* r{k} = {after};"]
    for step in writer.schedule().steps:
        source += writer.write(step, set())
    source += [
        *(
            f"if (bases[{index[name,]}]) ((unsigned char*)(bases[{index[name,]}] + t * strides[{index[name,]}]))[e] = "
            f"done[{i}] != 0;"
            for i, name in enumerate(("terminated", "truncated"))
        ),
        "if (P == 0 || (done[0] == 0 && done[1] == 0)) return;",
        "const i64 fresh = (e + shift) % P;",
        f"const float* f = (const float*)bases[{index['pool',]}] + fresh * {len(places.fields)}LL;",
        f"for (int k = 0; k < {len(places.fields)}; k++) s[k * m] = f[k];",
    ]
    for i, (path, count, kind) in enumerate(places.tables):
        cell = "unsigned char" if kind == "b" else "float"
        pool = f"((const {cell}*)bases[{index['pool_table', path]}] + fresh * {count}LL)"
        source.append(f"for (int k = 0; k < {count}; k++) T{i}[k] = {pool}[k];")
    for k, (key, count) in enumerate(places.outputs):
        if key in places.restarted:
            pool = f"((const float*)bases[{index['fresh', *key]}] + fresh * {count}LL)"
            source.append(f"if (r{k}) for (int j = 0; j < {count}; j++) r{k}[j] = {pool}[j];")
    return "\n".join([*source, "}"])
