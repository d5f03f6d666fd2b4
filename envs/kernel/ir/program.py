"""A scalar program: what one environment computes in a step, as operations on single numbers.

Values are numbered; equal operations on equal values are one value (hash-consing), constants are folded in float32
as the machine would compute them, and only rewrites that are exact in IEEE arithmetic are made. Kinds: "f" float32,
"b" bool, "i" integer held in a float32 (exact up to 2^24, which steps, actions and indices never exceed).
"""

import numpy as np

F32 = np.float32


def _logical(function):
    return lambda *args: function(*[np.asarray(a, dtype=bool) for a in args])


def _minimum(a, b):  # torch's: nan wins
    return np.where(np.isnan(a) | np.isnan(b), F32(np.nan), np.minimum(a, b)).astype(F32)


def _maximum(a, b):
    return np.where(np.isnan(a) | np.isnan(b), F32(np.nan), np.maximum(a, b)).astype(F32)


# name -> (kind of the result, the operation on NumPy arrays). "s": the kind of the last argument.
OPERATIONS = {
    "add": ("s", np.add),
    "sub": ("s", np.subtract),
    "mul": ("s", np.multiply),
    "div": ("f", np.divide),
    "neg": ("s", np.negative),
    "abs": ("s", np.abs),
    "sqrt": ("f", np.sqrt),
    "sin": ("f", np.sin),
    "cos": ("f", np.cos),
    "tan": ("f", np.tan),
    "exp": ("f", np.exp),
    "log": ("f", np.log),
    "log1p": ("f", np.log1p),
    "expm1": ("f", np.expm1),
    "tanh": ("f", np.tanh),
    "atan2": ("f", np.arctan2),
    "asin": ("f", np.arcsin),
    "acos": ("f", np.arccos),
    "atan": ("f", np.arctan),
    "sinh": ("f", np.sinh),
    "cosh": ("f", np.cosh),
    "pow": ("f", np.power),
    "fmod": ("s", np.fmod),
    "floor": ("s", np.floor),
    "ceil": ("s", np.ceil),
    "trunc": ("s", np.trunc),
    "round": ("s", np.rint),
    "min": ("s", _minimum),
    "max": ("s", _maximum),
    "lt": ("b", np.less),
    "le": ("b", np.less_equal),
    "eq": ("b", np.equal),
    "ne": ("b", np.not_equal),
    "and": ("b", _logical(np.logical_and)),
    "or": ("b", _logical(np.logical_or)),
    "same": ("s", lambda a: a),  # the same number under another kind
    "mul0": ("f", lambda a, b: np.where(np.equal(a, 0), F32(0), np.multiply(a, b))),  # a gradient times a derivative
    "xor": ("b", _logical(np.logical_xor)),
    "not": ("b", _logical(np.logical_not)),
    "select": ("s", np.where),
}
COMMUTATIVE = {"add", "mul", "eq", "ne", "and", "or", "xor"}  # min and max aren't: +0 and -0
MEMORY = {"load", "store"}  # of a table; args: (previous store or -1, index, [value], then loads that must come first)


class Program:
    """Operations in the order of their creation; `ops[v]` is (name, argument values…) and `kinds[v]` its kind.

    ("const", bits) a constant; ("input", source) a number that the environment holds or is given;
    ("poison", reason) what no environment can compute alone: harmless until an output needs it.
    """

    def __init__(self) -> None:
        self.ops: list[tuple] = []
        self.kinds: list[str] = []
        self.known: dict[tuple, int] = {}

    def _add(self, kind: str, op: tuple) -> int:
        key = (kind, *op)
        value = self.known.get(key)
        if value is None:
            value = self.known[key] = len(self.ops)
            self.ops.append(op)
            self.kinds.append(kind)
        return value

    def const(self, number, kind: str) -> int:
        """A constant; its key is its bits, so that 0.0 and -0.0 stay apart."""
        if kind == "b":
            return self._add("b", ("const", int(bool(number))))
        return self._add(kind, ("const", int(np.asarray(number, F32).view(np.int32))))

    def input(self, source: tuple, kind: str) -> int:
        """A number that comes from outside, e.g. ("state", slot, field) or ("action", agent, dimension)."""
        return self._add(kind, ("input", source))

    def poison(self, reason: str, kind: str) -> int:
        """A value that must not be needed."""
        return self._add(kind, ("poison", reason))

    def memory(self, name: str, kind: str, *args) -> int:
        """A load or store of a table: never folded or shared."""
        self.ops.append((name, *args))
        self.kinds.append(kind)
        return len(self.ops) - 1

    def number(self, value: int):
        """The constant that a value is (np.float32 or bool), else None."""
        op = self.ops[value]
        if op[0] != "const":
            return None
        return bool(op[1]) if self.kinds[value] == "b" else np.int32(op[1]).view(F32)

    def op(self, name: str, *args: int) -> int:
        """The value of an operation: folded, simplified or shared where that is exact."""
        kind, function = OPERATIONS[name]
        if kind == "s":
            kind = self.kinds[args[-1]]
        numbers = [self.number(a) for a in args]
        if all(n is not None for n in numbers):
            with np.errstate(all="ignore"):
                return self.const(function(*numbers), kind)
        short = self._simplify(name, args, numbers)
        if short is not None:
            return short
        if name in COMMUTATIVE and args[0] > args[1]:
            args = (args[1], args[0])
        return self._add(kind, (name, *args))

    def _simplify(self, name: str, args: tuple, numbers: list) -> int | None:
        """An equal value that is cheaper, or None. Every rule holds for nan, infinities and both zeros."""
        a, b = args[0], args[-1]
        x, y = numbers[0], numbers[-1]
        if name == "add":
            for number, other in ((x, b), (y, a)):
                if number is not None and number == 0 and (np.signbit(number) or self.never_minus_zero(other)):
                    return other
        elif name == "sub":
            if y is not None and y == 0 and (not np.signbit(y) or self.never_minus_zero(a)):
                return a
        elif name == "mul":
            for number, other in ((x, b), (y, a)):
                if number is not None and number == 1:
                    return other
                if number is not None and number == -1:
                    return self.op("neg", other)
        elif name == "div" and y is not None:
            if y == 1:
                return a
            mantissa, _ = np.frexp(y)
            with np.errstate(all="ignore"):
                inverse = F32(1) / y
            if abs(mantissa) == 0.5 and np.isfinite(inverse) and abs(inverse) >= F32(2.0**-126):
                return self.op("mul", a, self.const(inverse, "f"))  # the inverse of a power of two is exact
        elif name == "neg" and self.ops[a][0] == "neg":
            return self.ops[a][1]
        elif name == "abs" and self.ops[a][0] in ("abs", "sqrt"):
            return a if self.ops[a][0] == "abs" else None
        elif name in ("and", "or"):
            if a == b:
                return a
            for number, other in ((x, b), (y, a)):
                if number is not None:
                    return other if number == (name == "and") else self.const(number, "b")
        elif name == "xor":
            for number, other in ((x, b), (y, a)):
                if number is not None:
                    return self.op("not", other) if number else other
        elif name == "not" and self.ops[a][0] == "not":
            return self.ops[a][1]
        elif name == "select":
            if x is not None:
                return args[1] if x else args[2]
            if args[1] == args[2]:
                return args[1]
            if self.ops[a][0] == "not":
                return self.op("select", self.ops[a][1], args[2], args[1])
            if self.ops[args[1]][:2] == ("select", a):  # the same question asked twice
                return self.op("select", a, self.ops[args[1]][2], args[2])
            if self.ops[args[2]][:2] == ("select", a):
                return self.op("select", a, args[1], self.ops[args[2]][3])
            if self.kinds[b] == "b" and numbers[1] is not None and numbers[2] is not None:
                return a if numbers[1] else self.op("not", a)
            if self.kinds[b] == "b" and numbers[1] is not None:
                return self.op("or", a, b) if numbers[1] else self.op("and", self.op("not", a), b)
            if self.kinds[b] == "b" and numbers[2] is not None:
                return self.op("or", self.op("not", a), args[1]) if numbers[2] else self.op("and", a, args[1])
        elif name in ("ne", "eq") and y is not None and y == 0 and self.ops[a][0] == "select":
            _, condition, yes, no = self.ops[a]  # a bool that was made a number and is asked again
            numbers = self.number(yes), self.number(no)
            if numbers == (1, 0):
                return condition if name == "ne" else self.op("not", condition)
        elif name in ("min", "max") and a == b:
            return a
        return None

    def never_minus_zero(self, value: int) -> bool:
        """Whether a value can be shown not to be -0.0: then adding +0.0 leaves it alone."""
        for _ in range(8):
            name, *args = self.ops[value]
            if name == "const":
                number = self.number(value)
                return not (number == 0 and np.signbit(number))
            if name in ("abs", "exp"):
                return True
            if name == "mul" and args[0] == args[1]:
                return True
            if name == "sqrt":
                value = args[0]
            elif name == "add":  # -0 only as the sum of two -0
                if self.never_minus_zero(args[0]):
                    return True
                value = args[1]
            elif name == "select":
                if not self.never_minus_zero(args[1]):
                    return False
                value = args[2]
            else:
                return False
        return False

    def live(self, outputs) -> list[int]:
        """The values that the outputs need, in the order of their creation."""
        needed, stack = set(), [o for o in outputs]
        while stack:
            value = stack.pop()
            if value in needed:
                continue
            needed.add(value)
            stack.extend(arguments(self.ops[value]))
        return sorted(needed)


def arguments(op: tuple) -> tuple:
    """The values that an operation reads."""
    if op[0] in ("const", "input", "poison"):
        return ()
    if op[0] in MEMORY:
        return tuple(a for a in op[2:] if a >= 0)  # op[1] names the table
    return op[1:]


def evaluate(program: Program, outputs, inputs: dict) -> list[np.ndarray]:
    """Runs a program in NumPy on arrays {source: [E]}: the slow, plain meaning of the program, for tests."""
    values: dict[int, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for value in program.live(outputs):
            name, *args = program.ops[value]
            if name == "const":
                values[value] = np.asarray(program.number(value))
            elif name == "input":
                values[value] = np.asarray(inputs[args[0]])
            elif name == "poison":
                raise ValueError(args[0])
            else:
                result = OPERATIONS[name][1](*[values[a] for a in args])
                values[value] = result if program.kinds[value] == "b" else np.asarray(result, F32)
    return [values[o] for o in outputs]
