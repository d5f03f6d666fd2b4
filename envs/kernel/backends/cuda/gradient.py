"""Writes a gradient program as one CUDA kernel: a thread per environment, the same statements as on the CPU.

State and its gradients lie field by field. Compile with --fmad=false, as the step. Long programs are functions that hand
values on in the thread's own memory. Where everything lies comes by value with the launch.
"""

import re

from envs.kernel.backends.cpp import cell_of
from envs.kernel.backends.cpp_gradient import FunctionWriter
from envs.kernel.backends.cuda.source import BLOCK, PRELUDE, ROOTS, CudaWriter
from envs.kernel.ir.gradient import Gradient
from envs.kernel.ir.gradient_layout import GradientLayout

NAME = "environment_gradient"
BOUNDS = f"__launch_bounds__({BLOCK}, 3)"  # 168 registers: with the step's 128 simple_spread's spills 72 bytes
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
    """The CUDA source: `environment_gradient(Where, E, m)` over a grid of threads; `WHERE` says what comes in."""
    writer = CudaGradientWriter(gradient, places)
    parts, handed = writer.functions(), len(writer.handing.slots)
    index = {name: i for i, name in enumerate(places.pointers)}

    def pointer(name: tuple, kind: str, count: int) -> str:
        return f"w.base[{index[name]}] ? ({kind}*)w.base[{index[name]}] + e * {count}LL : nullptr"

    declared = {
        "s": f"float* s = (float*)w.base[{index['gradient', 'state']}] + e;",
        "x": f"const float* x = (const float*)w.base[{index['state',]}] + e;",
        "z": f"const float* z = {pointer(('noise',), 'const float', places.noise)};",
    }
    for k, (group, count, integers) in enumerate(places.actions):
        kind = "const i64" if integers else "const float"
        declared[f"a{k}"] = f"{kind}* a{k} = {pointer(('action', group), kind, count)};"
        if not integers:
            declared[f"g{k}"] = f"float* g{k} = {pointer(('gradient', 'action', group), 'float', count)};"
    for k, (path, count, kind) in enumerate(places.tables):
        declared[f"T{k}"] = f"{cell_of(kind)}* T{k} = {pointer(('table', path), cell_of(kind), count)};"
    for k, (key, count) in enumerate(places.outputs):
        after = pointer(("gradient", "after", *key), "const float", count) if key in places.restarted else "nullptr"
        declared[f"y{k}"] = f"const float* y{k} = {pointer(('gradient', *key), 'const float', count)};"
        declared[f"u{k}"] = f"const float* u{k} = {after};"

    def body(lines: list[str]) -> list[str]:
        """Lines, after what they name."""
        named = set(re.findall(r"\b[sxz]\b|\b[agTyu]\d+\b", "\n".join(lines)))
        return [text for name, text in declared.items() if name in named] + lines

    source = [
        f"#define MATHS {'CALLED' if len(parts) > 1 else 'F'}",
        f"#define ROOTS {'CALLED' if sum(len(lines) for lines in parts) > ROOTS else 'F'}",
    ]
    source += [PRELUDE, KEPT, WHERE.replace("POINTERS", str(len(places.pointers)))]
    inlined = "__noinline__" if len(parts) > 1 else "__forceinline__"
    for i, lines in enumerate(parts):
        source += [f"static __device__ {inlined} void part{i}({PARAMETERS}) {{", *body(lines), "}"]
    source += [
        f'extern "C" __global__ void {BOUNDS} {NAME}(const __grid_constant__ Where w, i64 E, i64 m) {{',
        "const i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x;",
        "if (e >= E) return;",
        f"float t[{max(handed, 1)}];",
        f"const bool over = w.base[{index['over',]}] && w.base[{index['over',]}][e] != 0;",
        *(f"part{i}(w, e, m, over, t);" for i in range(len(parts))),
    ]
    # what nothing depends on
    zeros = [f"s[{i} * m] = 0.0f;" for i, value in enumerate(gradient.state) if value is None]
    for k, (group, count, integers) in enumerate(places.actions):
        known = gradient.actions.get(group, [])
        for j in range(count if not integers else 0):
            if j >= len(known) or known[j] is None:
                zeros.append(f"if (g{k}) g{k}[{j}] = 0.0f;")
    return "\n".join([*source, *body(zeros), "}"])


# Where everything lies: bases by `GradientLayout.pointers`, null where something is absent.
WHERE = """
struct Where { char* base[POINTERS]; };"""
PARAMETERS = "const Where& w, const i64 e, const i64 m, const bool over, float* t"
