"""Writes a gradient program as JavaScript: one environment, float32 after every operation, as the step."""

import re

from envs.kernel.backends.cpp_gradient import FunctionWriter
from envs.kernel.backends.javascript import PRELUDE, JsWriter, translate
from envs.kernel.backends.javascript_names import function
from envs.kernel.ir.gradient import Gradient
from envs.kernel.ir.gradient_layout import GradientLayout


class JsGradientWriter(JsWriter, FunctionWriter):
    """One environment: s holds gradients of the state, x the state itself, y those of the outputs one after another."""

    def input(self, source: tuple) -> str:
        if source[0] == "state":
            return f"x[{self.field[source[1:]]}]"
        if source[:2] == ("gradient", "state"):
            return f"(over ? 0 : s[{self.field[source[2:]]}])"
        if source[0] == "gradient":
            return f"y[{self.row[source[1:-1]] + source[-1]}]"
        return super().input(source)


def _line(line: str) -> str:
    """A statement of the common writer's in JavaScript's words; bools lie in memory as 0 and 1."""
    line = re.sub(r"^keep\((t\[\d+\]), (.*)\);$", r"\1 = +\2;", line)
    line = re.sub(r"= kept_vf\((t\[\d+\])\);$", r"= \1;", line)
    return translate(re.sub(r"= kept_vb\((t\[\d+\])\);$", r"= \1 !== 0;", line))


def emit_js_gradient(gradient: Gradient, places: GradientLayout) -> str:
    """The source of an expression whose value is a function (s, x, a, z, T, y, over, o), in place on s.

    s, x: Float32Arrays of the state's fields, gradients of the next state and the state before the step. a: as the
    step's. z: random numbers. T: tables, those of gradients last. y: gradients of the outputs in the order of
    `places.outputs`. over: whether the environment was restarted. o: a Float32Array, the gradients of the actions, group
    after group. Raises Refusal where an operation has no JavaScript.
    """
    writer = JsGradientWriter(gradient, places)
    tables = "".join(f", T{i}" for i in range(len(places.tables)))
    source = ["(() => {", PRELUDE, f"const t = new Float32Array({max(len(writer.handing.slots), 1)});"]
    parts = writer.functions()
    for i, part in enumerate(parts):
        source += function(f"part{i}", f"s, x, a, z, y, over, o{tables}", [_line(line) for line in part])
    given = "".join(f", T[{i}]" for i in range(len(places.tables)))
    source += ["return (s, x, a, z, T, y, over, o) => {", "  o.fill(0);"]
    source += [f"  part{i}(s, x, a, z, y, over, o{given});" for i in range(len(parts))]
    source += [f"  s[{i}] = 0;" for i, value in enumerate(gradient.state) if value is None]  # nothing depends on it
    return "\n".join([*source, "};", "})()"])
