"""Writes a gradient program as one CUDA kernel: a thread per environment, the same statements as on the CPU.

State and its gradients lie field by field. Compile with -fmad=false, as the step. Long programs are functions that hand
values on in the thread's own memory.
"""

from envs.kernel.backends.cpp import cell_of
from envs.kernel.backends.cpp_gradient import FunctionWriter
from envs.kernel.backends.cuda.source import PRELUDE, CudaWriter
from envs.kernel.ir.gradient import Gradient
from envs.kernel.ir.gradient_layout import GradientLayout

KEPT = """
F void keep(float& place, vf x) { place = x; }
F vf kept_vf(float x) { return x; }
F vb kept_vb(float x) { return x != 0.0f; }
// The gradient of an output before the auto-reset and after it; either may be absent.
F vf coming(const float* before, const float* after, vb over, int j) {
  const float x = before ? before[j] : 0.0f;
  return after && !over ? x + after[j] : x;
}
"""


class CudaGradientWriter(CudaWriter, FunctionWriter):
    """One thread is one environment: incoming gradients are read where they are needed."""

    lanes = ""

    def target(self, what: str, i: int) -> str:
        if what == "field":
            return f"s + {i} * m"
        for k, (_, count, integers) in enumerate(self.places.actions):
            if not integers and i < count:
                return f"at(g{k}, nullptr, {i})"
            i -= 0 if integers else count
        raise ValueError(f"there are {-i} numbers of actions too few")

    def input(self, source: tuple) -> str:
        if source[0] == "gradient" and source[1] != "state":
            k = next(k for k, (key, _) in enumerate(self.places.outputs) if key == source[1:-1])
            return f"coming(y{k}, u{k}, over, {source[-1]})"
        return super().input(source)


def emit_cuda_gradient(gradient: Gradient, places: GradientLayout) -> str:
    """The CUDA source: `gradient(char** p, E, m)` over a grid of threads; p as `places.pointers` has it, null absent."""
    writer = CudaGradientWriter(gradient, places)
    parts, handed = writer.functions(), len(writer.handing.slots)
    index = {name: i for i, name in enumerate(places.pointers)}

    def pointer(name: tuple, kind: str, count: int) -> str:
        return f"p[{index[name]}] ? ({kind}*)p[{index[name]}] + e * {count}LL : nullptr"

    named = {
        "s": ("float", f"(float*)p[{index['gradient', 'state']}] + e"),
        "x": ("const float", f"(const float*)p[{index['state',]}] + e"),
        "z": ("const float", pointer(("noise",), "const float", places.noise)),
    }
    for k, (group, count, integers) in enumerate(places.actions):
        kind = "const i64" if integers else "const float"
        named[f"a{k}"] = kind, pointer(("action", group), kind, count)
        if not integers:
            named[f"g{k}"] = "float", pointer(("gradient", "action", group), "float", count)
    for k, (path, count, kind) in enumerate(places.tables):
        named[f"T{k}"] = cell_of(kind), pointer(("table", path), cell_of(kind), count)
    for k, (key, count) in enumerate(places.outputs):
        named[f"y{k}"] = "const float", pointer(("gradient", *key), "const float", count)
        after = pointer(("gradient", "after", *key), "const float", count) if key in places.restarted else "nullptr"
        named[f"u{k}"] = "const float", after
    params = ["const i64 m", "const bool over", "float* t", *(f"{kind}* {name}" for name, (kind, _) in named.items())]
    source = ["#define MATHS F", "#define ROOTS F", "typedef unsigned char uint8_t;", PRELUDE, KEPT]
    inlined = "__noinline__" if len(parts) > 1 else "__forceinline__"
    for i, part in enumerate(parts):
        source += [f"static __device__ {inlined} void part{i}({', '.join(params)}) {{", *part, "}"]
    source += [
        'extern "C" __global__ void gradient(char** p, i64 E, i64 m) {',
        "const i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x;",
        "if (e >= E) return;",
        f"float t[{max(handed, 1)}];",
        f"const bool over = p[{index['over',]}] && p[{index['over',]}][e] != 0;",
        *(f"{kind}* {name} = {text};" for name, (kind, text) in named.items()),
        *(f"part{i}(m, over, t, {', '.join(named)});" for i in range(len(parts))),
    ]
    for i, value in enumerate(gradient.state):
        if value is None:  # nothing depends on it
            source.append(f"s[{i} * m] = 0.0f;")
    for k, (group, count, integers) in enumerate(places.actions):
        known = gradient.actions.get(group, [])
        for j in range(count if not integers else 0):
            if j >= len(known) or known[j] is None:
                source.append(f"if (g{k}) g{k}[{j}] = 0.0f;")
    return "\n".join([*source, "}"])
