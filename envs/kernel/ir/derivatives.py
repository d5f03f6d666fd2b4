"""The derivative of every operation of a scalar program: one rule each, at kinks as torch has it.

A rule is given the incoming gradient g of a value, the value itself and its arguments, and gives each argument's
share. Where several answers are right, torch's is taken: `abs` has slope 0 at 0, equal arguments of `min` and `max`
share (a constant, the limit of a clamp, takes no share), whole-number functions have slope 0. `sqrt` has slope 0 at 0,
as torch's norms have it (torch.sqrt alone says infinity), and so has `atan2` at the origin (torch: nan): bodies at rest
stand there exactly, not almost never. A zero gradient times an infinite derivative is zero.
"""

from collections.abc import Callable

from envs.kernel.ir.program import Program

Share = tuple[int, int]  # (argument, its gradient), both values of the program


class Products:
    """Products of gradients and derivatives in a program, guarded where a derivative may be infinite.

    finite: {value: whether it is finite wherever the step's inputs are}, from `find_finite`.
    """

    def __init__(self, program: Program, finite: dict[int, bool]) -> None:
        self.p, self._finite = program, finite

    def number(self, x: float) -> int:
        """A constant."""
        return self.p.const(x, "f")

    def times(self, g: int, derivative: int) -> int:
        """g * derivative, and 0 where g is 0."""
        return self.p.op("mul" if self._finite.get(derivative, False) else "mul0", g, derivative)

    def where(self, condition: int, g: int) -> int:
        """g where the condition holds, else 0."""
        return self.p.op("select", condition, g, self.number(0.0))

    def inverse(self, x: int) -> int:
        """1 / x: shared by all gradients that are divided by x."""
        return self.p.op("div", self.number(1.0), x)


Rule = Callable[[Products, int, int, tuple[int, ...]], list[Share]]


def _add(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    return [(args[0], g), (args[1], g)]


def _sub(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    return [(args[0], g), (args[1], m.p.op("neg", g))]


def _mul(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    return [(args[0], m.times(g, args[1])), (args[1], m.times(g, args[0]))]


def _mul0(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    a, b = args
    return [(a, m.times(g, b)), (b, m.p.op("mul0", a, g))]


def _div(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    share = m.times(g, m.inverse(args[1]))
    return [(args[0], share), (args[1], m.p.op("neg", m.times(share, v)))]


def _abs(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    zero = m.number(0.0)
    negative = m.where(m.p.op("lt", args[0], zero), m.p.op("neg", g))
    return [(args[0], m.p.op("select", m.p.op("lt", zero, args[0]), g, negative))]


def _sqrt(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    slope = m.p.op("div", m.number(0.5), v)
    return [(args[0], m.where(m.p.op("ne", v, m.number(0.0)), m.times(g, slope)))]


def _pow(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    p, (base, exponent), zero = m.p, args, m.number(0.0)
    slope = p.op("mul", exponent, p.op("pow", base, p.op("sub", exponent, m.number(1.0))))
    slope = p.op("select", p.op("eq", exponent, zero), zero, slope)
    flat = p.op("and", p.op("eq", base, zero), p.op("le", zero, exponent))
    log = p.op("select", flat, zero, p.op("mul", v, p.op("log", base)))
    return [(base, m.times(g, slope)), (exponent, m.times(g, log))]


def _atan2(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    p, (y, x) = m.p, args
    square = p.op("add", p.op("mul", x, x), p.op("mul", y, y))
    share = m.where(p.op("ne", square, m.number(0.0)), m.times(g, m.inverse(square)))
    return [(y, m.times(share, x)), (x, p.op("neg", m.times(share, y)))]


def _fmod(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    whole = m.p.op("trunc", m.p.op("div", *args))
    return [(args[0], g), (args[1], m.p.op("neg", m.times(g, whole)))]


def _extreme(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    p, (a, b) = m.p, args
    least = p.ops[v][0] == "min"
    mine = p.op("le", a, b) if least else p.op("le", b, a)
    theirs = p.op("le", b, a) if least else p.op("le", a, b)
    if p.number(a) is not None or p.number(b) is not None:  # a limit: torch.clamp's slope there is 1
        return [(a, m.where(mine, g)), (b, m.where(theirs, g))]
    shared = p.op("select", p.op("and", mine, theirs), p.op("mul", g, m.number(0.5)), g)
    return [(a, m.where(mine, shared)), (b, m.where(theirs, shared))]


def _sin(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    return [(args[0], m.times(g, m.p.op("cos", args[0])))]


def _cos(m: Products, g: int, v: int, args: tuple) -> list[Share]:
    return [(args[0], m.p.op("neg", m.times(g, m.p.op("sin", args[0]))))]


def _by_value(slope: Callable[[Products, int, int], int]) -> Rule:
    """The rule of a function of one number: slope(m, value, argument)."""
    return lambda m, g, v, args: [(args[0], m.times(g, slope(m, v, args[0])))]


def _square(m: Products, x: int) -> int:
    return m.p.op("mul", x, x)


def _one_plus(m: Products, x: int) -> int:
    return m.p.op("add", m.number(1.0), x)


def _one_minus(m: Products, x: int) -> int:
    return m.p.op("sub", m.number(1.0), x)


def _circle(m: Products, x: int) -> int:
    return m.p.op("sqrt", _one_minus(m, _square(m, x)))


RULES: dict[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "mul0": _mul0,
    "div": _div,
    "abs": _abs,
    "sqrt": _sqrt,
    "pow": _pow,
    "atan2": _atan2,
    "fmod": _fmod,
    "min": _extreme,
    "max": _extreme,
    "sin": _sin,
    "cos": _cos,
    "neg": lambda m, g, v, args: [(args[0], m.p.op("neg", g))],
    "same": lambda m, g, v, args: [(args[0], g)],
    "exp": _by_value(lambda m, v, x: v),
    "expm1": _by_value(lambda m, v, x: _one_plus(m, v)),
    "log": _by_value(lambda m, v, x: m.inverse(x)),
    "log1p": _by_value(lambda m, v, x: m.inverse(_one_plus(m, x))),
    "tan": _by_value(lambda m, v, x: _one_plus(m, _square(m, v))),
    "tanh": _by_value(lambda m, v, x: _one_minus(m, _square(m, v))),
    "atan": _by_value(lambda m, v, x: m.inverse(_one_plus(m, _square(m, x)))),
    "asin": _by_value(lambda m, v, x: m.inverse(_circle(m, x))),
    "acos": _by_value(lambda m, v, x: m.p.op("neg", m.inverse(_circle(m, x)))),
    "sinh": _by_value(lambda m, v, x: m.p.op("cosh", x)),
    "cosh": _by_value(lambda m, v, x: m.p.op("sinh", x)),
}
# Steps and truth values: their slope is 0 wherever they have one.
FLAT = {"floor", "ceil", "trunc", "round", "lt", "le", "eq", "ne", "and", "or", "xor", "not"}
# `select` hands the gradient to the arm that was taken; that arm alone is asked for (envs/kernel/ir/gradient.py), as
# are loads and stores of tables.
BRANCHES = {"select"}


def find_finite(program: Program, live: list[int]) -> dict[int, bool]:
    """{value: whether it is surely finite where the step's inputs are}; overflow is not thought of."""
    finite: dict[int, bool] = {}
    positive: dict[int, bool] = {}  # at least 0
    for v in live:
        name, *args = program.ops[v]
        number = program.number(v)
        if number is not None:
            finite[v], positive[v] = abs(float(number)) < float("inf"), float(number) >= 0
            continue
        if name in ("input", "load", "poison", "store"):
            finite[v], positive[v] = name == "input", False
            continue
        known = all(finite[a] for a in args)
        if name == "div":
            divisor = program.number(args[1])
            known &= divisor is not None and float(divisor) != 0
        elif name == "sqrt":
            known &= positive[args[0]]
        elif name in ("exp", "expm1", "log", "log1p", "tan", "sinh", "cosh", "asin", "acos", "pow", "fmod"):
            known = False
        finite[v] = known
        positive[v] = (
            name in ("abs", "sqrt", "exp")
            or (name == "mul" and args[0] == args[1])
            or (name in ("add", "min", "mul", "div") and all(positive[a] for a in args))
            or (name == "max" and any(positive[a] for a in args))
            or (name == "select" and positive[args[1]] and positive[args[2]])
        )
    return finite
