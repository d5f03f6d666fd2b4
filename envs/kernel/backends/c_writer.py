"""Turns a program's schedule into the statements of a C-like language, whole or in functions of bearable length."""

from envs.kernel.ir.layout import Layout, count_of
from envs.kernel.ir.lowered_step import Lowered
from envs.kernel.ir.program import arguments
from envs.kernel.ir.schedule import Scope, schedule

PART = 1500
NAMES = {
    "and": "and_",
    "or": "or_",
    "xor": "xor_",
    "not": "not_",
    "div": "div_",
    "min": "min_",
    "max": "max_",
    "select": "sel",
    "neg": "neg_",
    "abs": "abs_",
    "sqrt": "sqrt_",
    "floor": "floor_",
    "ceil": "ceil_",
    "trunc": "trunc_",
    "round": "round_",
    "fmod": "fmod_",
    "same": "",
}
FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "exp",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "atan2",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "pow",
}


def refusals(places: Layout, i: int, number: str, flag: str, some: str = "any") -> list[str]:
    """Statements that set `flag` where a number of group i's action is refused: no number, or none of its choices.

    number: the expression of its number k, as a float. some: what tells whether a condition holds in any environment.
    """
    choices = places.choices[places.actions[i][0]]
    statements = []
    for n in dict.fromkeys(n for n in choices if n is not None):
        here = [k for k, each in enumerate(choices) if each == n]
        step = here[1] - here[0] if len(here) > 1 else 1
        runs = [here] if here == [*range(here[0], here[-1] + 1, step)] else [[k] for k in here]
        outside = f"or_(not_(and_(le(K(0.0f), {number}), lt({number}, K({n}.0f)))), ne({number}, floor_({number})))"
        refused = outside if n else f"ne({number}, {number})"
        for run in runs:
            loop = f"for (int k = {run[0]}; k <= {run[-1]}; k += {step})"
            statements.append(f"{loop} if ({some}({refused})) {flag} = 1;")
    return statements


class Writer:
    """Turns scheduled steps into statements. Subclasses speak another dialect of C."""

    lanes = ", n"  # what loads and stores of tables take beside: how many environments a block holds

    def __init__(self, lowered: Lowered, places: Layout) -> None:
        self.lowered, self.places, self.p = lowered, places, lowered.program
        self.field = {key: i for i, key in enumerate(places.fields)}
        self.table = {path: i for i, (path, _, _) in enumerate(places.tables)}
        self.groups = [group for group, _, _ in places.actions]
        self.offset, start = {}, 0
        for i, (_, _, _, shape, _) in enumerate(lowered.noise):
            self.offset[i], start = start, start + count_of(shape)

    def schedule(self) -> Scope:
        """All steps of an environment's step: state, then outputs, each stored as soon as it is known."""
        p, lowered = self.p, self.lowered
        loads = {op[1][1:]: v for v, op in enumerate(p.ops) if op[0] == "input" and op[1][0] == "state"}
        stores = [last for last, _ in lowered.tables.values() if last >= 0]
        ended = [int(lowered.outputs[key].reshape(-1)[0]) for key in (("terminated",), ("truncated",))]
        rows = [v for key, _ in self.places.outputs for v in lowered.outputs[key].reshape(-1).tolist()] + ended
        plan = schedule(p, [*lowered.next, *rows, *stores])
        live = set(plan.live)
        for key, value in zip(lowered.fields, lowered.next, strict=True):
            old = loads.get(key, -1)
            if value == old:
                continue  # never changes
            plan.need(value, plan.root)
            if old in live:
                plan.need(old, plan.root)  # read before it is overwritten
            plan.store(value, self.target("field", self.field[key]))
        for last in stores:
            plan.need(last, plan.root)
        for row, value in enumerate(rows):
            plan.store(value, self.target("row", row))
        return plan.finish()

    def target(self, what: str, i: int) -> str:
        """Where a field of the state or a row of the outputs lies."""
        return f"s + {i} * m" if what == "field" else f"o[{i}]"

    def type(self, value: int) -> str:
        return "vb" if self.p.kinds[value] == "b" else "vf"

    def ref(self, value: int) -> str:
        """A value as an operand."""
        if self.p.ops[value][0] != "const":
            return f"v{value}"
        number = self.p.number(value)
        return f"B({int(number)})" if self.p.kinds[value] == "b" else f"K({_literal(number)})"

    def as_float(self, value: int) -> str:
        return f"num({self.ref(value)})" if self.p.kinds[value] == "b" else self.ref(value)

    def expression(self, v: int) -> str:
        """What defines a value."""
        op, kind = self.p.ops[v], self.type(v)
        if op[0] == "input":
            text = self.input(op[1])
            return f"truth({text})" if kind == "vb" else text
        if op[0] == "load":
            text = f"load(T{self.table[op[1]]}, {self.size(op[1])}L, {self.ref(op[3])}{self.lanes})"
            return f"truth({text})" if kind == "vb" else text
        name = NAMES.get(op[0], f"{op[0]}_" if op[0] in FUNCTIONS else op[0])
        return f"{name}({', '.join(self.ref(a) for a in op[1:])})"

    def size(self, path: str) -> int:
        return next(n for p, n, _ in self.places.tables if p == path)

    def input(self, source: tuple) -> str:
        """A number from outside."""
        if source[0] == "state":
            return f"load(s + {self.field[source[1:]]} * m)"
        if source[0] == "action":
            return f"load(a{self.groups.index(source[1])}[{source[2]}])"
        return f"load(z[{self.offset[source[1]] + source[2]}])"

    def write(self, step: tuple, declared: set[int]) -> list[str]:
        """The lines of a step; `declared` values are assigned, others are defined."""
        if step[0] == "define":
            v = step[1]
            define = "" if v in declared else f"const {self.type(v)} "
            return [f"{define}v{v} = {self.expression(v)};"]
        if step[0] == "store":
            return [f"store({step[2]}, {self.as_float(step[1])});"]
        if step[0] == "table":
            op = self.p.ops[step[1]]
            name, size = f"T{self.table[op[1]]}", self.size(op[1])
            return [f"store({name}, {size}L, {self.ref(op[3])}, {self.as_float(op[4])}{self.lanes});"]
        block = step[1]
        condition, answer = block.literal
        lines = [f"{self.type(v)} v{v} = {self.nothing(v)};" for v in block.hoisted]
        lines.append(f"if ({self.asks(condition, answer)}) {{")
        inner = declared | set(block.hoisted)
        for s in block.steps:
            lines += self.write(s, inner)
        return [*lines, "}"]

    def nothing(self, value: int) -> str:
        return "B(0)" if self.p.kinds[value] == "b" else "K(0.0f)"

    def asks(self, condition: int, answer: bool) -> str:
        return f"any({self.ref(condition)})" if answer else f"any(not_({self.ref(condition)}))"


def _touched(writer: Writer, step: tuple) -> tuple[list[int], list[int]]:
    """(values that a step defines, values that it reads), blocks included."""
    if step[0] == "store":
        return [], [step[1]]
    if step[0] in ("define", "table"):
        op = writer.p.ops[step[1]]
        reads = [op[3], op[4]] if op[0] == "store" else [op[3]] if op[0] == "load" else list(arguments(op))
        return ([step[1]] if step[0] == "define" else []), reads
    defines, reads = [], [step[1].literal[0]]
    for s in step[1].steps:
        d, r = _touched(writer, s)
        defines, reads = defines + d, reads + r
    return defines, reads


def parts_of(writer: Writer, root: Scope, most: int = PART) -> tuple[list[list[str]], int]:
    """Functions of about `most` statements, and how many values are handed on between them."""
    where: dict[int, int] = {}
    touched, part_of, part, length = [], [], 0, 0
    for step in root.steps:
        defines, reads = _touched(writer, step)
        if length and length + len(defines) > most:
            part, length = part + 1, 0
        length += max(1, len(defines))
        where.update((v, part) for v in defines)
        touched.append((defines, reads))
        part_of.append(part)
    slots: dict[int, int] = {}
    for (_, reads), at in zip(touched, part_of, strict=True):
        for v in reads:
            if v in where and where[v] != at:
                slots.setdefault(v, len(slots))
    out: list[list[str]] = [[] for _ in range(part + 1)]
    seen: set[tuple[int, int]] = set()
    for step, (defines, reads), at in zip(root.steps, touched, part_of, strict=True):
        for r in reads:
            if r in slots and where[r] != at and (r, at) not in seen:
                seen.add((r, at))
                text = f"load(t[{slots[r]}])"
                kind = writer.type(r)
                out[at].append(f"const {kind} v{r} = {f'truth({text})' if kind == 'vb' else text};")
        out[at] += writer.write(step, set())
        out[at] += [f"store(t[{slots[v]}], {writer.as_float(v)});" for v in defines if v in slots]
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
