"""Reverse mode on a scalar program: from a lowered step to the program of its gradients.

Given the gradients of what a step gives (next state, observations, rewards), the same program is walked backwards and
the derivative of each operation appended to it: sharing and folding come with the program. What the step draws is held
fixed. An arm of a `select` that few environments take is differentiated as lazily as it is computed: its gradients are
masked where they leave the arm, so that schedules find the arm's two passes under one condition, and so that nothing
that happens in an arm not taken (nan, infinities) reaches what all share.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from envs.kernel.ir.derivatives import BRANCHES, FLAT, RULES, Products, find_finite
from envs.kernel.ir.lowered_step import Lowered
from envs.kernel.ir.program import MEMORY, Program
from envs.kernel.ir.schedule import COSTS, Literal, schedule
from envs.kernel.tracing.tape import Refusal

SOURCES = ("observation", "reward")  # outputs that carry gradients; infos don't
WORTH = 40  # cost of an arm from which its gradients are computed lazily
NESTED = 3  # arms within arms that are; deeper, masking on every way out costs more than it saves
TABLE = "gradient of "  # prefix of the table of gradients that lies beside a table of numbers


@dataclass
class Gradient:
    """The gradient program of a step; values are of `lowered.program`, to which it was appended.

    Inputs are those of the step, ("gradient", "state", path, element): of the next state's number, and
    ("gradient", *output, row): of an output's. None stands where nothing depends on a number, or it is not a float's.
    """

    lowered: Lowered
    state: list[int | None]  # of each field before the step
    actions: dict[str, list[int | None]]  # of each group's numbers, in the order of the action
    outputs: list[tuple[tuple, int]]  # outputs whose gradients are read, and their numbers per environment
    tables: dict[str, int]  # table -> the last store into its gradients
    operations: int = 0  # of the gradient program

    @property
    def results(self) -> list[int]:
        """All values that the gradient program gives."""
        numbers = [*self.state, *(v for row in self.actions.values() for v in row)]
        return [v for v in numbers if v is not None] + [v for v in self.tables.values() if v >= 0]


def seeds(lowered: Lowered) -> list[tuple[tuple, int]]:
    """What a step gives that carries gradients: (name of its gradient's input, value), floats only."""
    named = [(("gradient", "state", *key), v) for key, v in zip(lowered.fields, lowered.next, strict=True)]
    for key, array in lowered.outputs.items():
        if key[0] in SOURCES:
            named += [(("gradient", *key, k), v) for k, v in enumerate(array.reshape(-1).tolist())]
    return [(name, v) for name, v in named if lowered.program.kinds[v] == "f"]


def differentiate(lowered: Lowered) -> Gradient:
    """The gradients of a step's state and actions, given those of what it gives. Raises Refusal, naming operations."""
    return _Reverse(lowered).run()


@dataclass
class _Reverse:
    lowered: Lowered
    p: Program = field(init=False)

    def __post_init__(self) -> None:
        self.p = self.lowered.program
        self.named = seeds(self.lowered)
        stores = [last for last, kind in self.lowered.tables.values() if last >= 0 and kind == "f"]
        self.live = self.p.live([v for _, v in self.named] + stores)
        unknown = {self.p.ops[v][0] for v in self.live} - RULES.keys() - FLAT - BRANCHES - MEMORY
        unknown -= {"const", "input", "poison"}
        if unknown:
            raise Refusal(f"the step computes {', '.join(sorted(unknown))}, which have no derivative here")
        self.active = self._find_active()
        read = schedule(self.p, [v for _, v in self.named] + stores).guard
        self.depth = {v: len(literals) for v, literals in read.items()}  # of the arm that a condition is asked in
        self.guard = self._find_guards(stores)
        self.products = Products(self.p, find_finite(self.p, self.live))
        self.shares: dict[int, dict[frozenset[Literal], int]] = {}  # value -> {under what: gradient}
        self.memory = {path: [-1, []] for path in self.lowered.tables}  # gradients: last store, loads since

    # ---- what carries gradients, and under what conditions

    def _find_active(self) -> set[int]:
        """Floats that depend on a float of the state or of an action."""
        p, active = self.p, set()
        tables = {path for path, (_, kind) in self.lowered.tables.items() if kind == "f"}
        for v in self.live:
            op = p.ops[v]
            if p.kinds[v] != "f":
                continue
            if op[0] == "input":
                reached = op[1][0] in ("state", "action")
            elif op[0] in MEMORY:
                reached = op[1] in tables
            else:
                reached = any(a in active for a, _ in self._edges(v))
            if reached:
                active.add(v)
        return active

    def _edges(self, v: int) -> Iterator[tuple[int, Literal | None]]:
        """What a value's gradient is handed to, and the answer under which it is."""
        op = self.p.ops[v]
        if op[0] == "select":
            yield op[2], (op[1], True)
            yield op[3], (op[1], False)
        elif op[0] in RULES:
            yield from ((a, None) for a in op[1:])
        elif op[0] == "store":
            yield op[4], None

    def _find_guards(self, stores: list[int]) -> dict[int, frozenset[Literal]]:
        """{value: the answers under which anything reads it}, of arms that are worth a block of their own."""
        free: frozenset[Literal] = frozenset()
        guard: dict[int, frozenset[Literal]] = {v: free for _, v in self.named}
        guard |= {v: free for v in stores}
        for v in reversed(self.live):
            if v not in self.active or (v not in guard and self.p.ops[v][0] not in MEMORY):
                continue
            if self.p.ops[v][0] in MEMORY or self.p.ops[v][0] == "input":
                guard[v] = free
            for a, literal in self._edges(v):
                if a in self.active:
                    reads = guard[v] | {literal} if literal else guard[v]
                    guard[a] = guard[a] & reads if a in guard else reads
        worth: dict[Literal, int] = {}
        for v, literals in guard.items():
            for literal in literals:
                worth[literal] = worth.get(literal, 0) + COSTS.get(self.p.ops[v][0], 1)
        worthwhile = frozenset(literal for literal, cost in worth.items() if cost >= WORTH)
        return {v: self._outermost(literals & worthwhile) for v, literals in guard.items()}

    def _outermost(self, literals: frozenset[Literal]) -> frozenset[Literal]:
        """Of answers that are asked for one within the other, those that are lazily computed under."""
        if len(literals) <= NESTED:
            return literals
        return frozenset(sorted(literals, key=self._place)[:NESTED])

    def _place(self, literal: Literal) -> tuple:
        """Sorts answers from the outermost to the innermost."""
        return self.depth[literal[0]], literal

    # ---- the walk

    def run(self) -> Gradient:
        p = self.p
        for name, v in self.named:
            if v in self.active:
                self._hand(v, frozenset(), p.input(name, "f"))
        for v in reversed(self.live):
            if v not in self.active:
                continue
            op = p.ops[v]
            if op[0] == "store":
                self._store(op)
                continue
            if v not in self.shares or op[0] == "input":
                continue
            g, mine = self._sum(v), self.guard[v]
            if op[0] == "load":
                self._load(op, g)
            elif op[0] == "select":
                self._hand(op[2], mine | {(op[1], True)}, g)
                self._hand(op[3], mine | {(op[1], False)}, g)
            else:
                for a, share in RULES[op[0]](self.products, g, v, op[1:]):
                    self._hand(a, mine, share)
        return self._gradient()

    def _hand(self, v: int, under: frozenset[Literal], g: int) -> None:
        """Adds a share to a value's gradient, to be masked by what it was computed under and the value is not."""
        if v not in self.active:
            return
        shares, missing = self.shares.setdefault(v, {}), under - self.guard[v]
        shares[missing] = self._plus(shares[missing], g) if missing in shares else g

    def _plus(self, a: int, b: int) -> int:
        """a + b; a difference where one of them is the negative of something."""
        ops = self.p.ops
        if ops[b][0] == "neg":
            return self.p.op("sub", a, ops[b][1])
        return self.p.op("sub", b, ops[a][1]) if ops[a][0] == "neg" else self.p.op("add", a, b)

    def _sum(self, v: int) -> int:
        """A value's whole gradient: shares that leave an arm are masked together, the innermost arm first."""
        shares, zero = self.shares[v], self.products.number(0.0)
        while len(shares) > 1 or frozenset() not in shares:
            literals = max(shares, key=len)
            g, inner = shares.pop(literals), max(literals, key=self._place)
            g = self.p.op("select", inner[0], *((g, zero) if inner[1] else (zero, g)))
            outer = literals - {inner}
            shares[outer] = self._plus(shares[outer], g) if outer in shares else g
        return shares[frozenset()]

    def _load(self, op: tuple, g: int) -> None:
        """A number was read from a table: its gradient is added to the table's, at the same place."""
        path, index = op[1], op[3]
        before = self._read(path, index)
        self._write(path, index, self.p.op("add", before, g))

    def _store(self, op: tuple) -> None:
        """A number was written to a table: it takes its gradient out of the table's."""
        path, index, value = op[1], op[3], op[4]
        g = self._read(path, index)
        self._write(path, index, self.products.number(0.0))
        self._hand(value, frozenset(), g)

    def _read(self, path: str, index: int) -> int:
        last, loads = self.memory[path]
        v = self.p.memory("load", "f", TABLE + path, last, index)
        loads.append(v)
        return v

    def _write(self, path: str, index: int, value: int) -> None:
        last, loads = self.memory[path]
        self.memory[path] = [self.p.memory("store", "f", TABLE + path, last, index, value, *loads), []]

    def _gradient(self) -> Gradient:
        p, actions = self.p, {}
        inputs = {op[1]: v for v, op in enumerate(p.ops) if op[0] == "input"}

        def of(source: tuple) -> int | None:
            v = inputs.get(source)
            return self._sum(v) if v in self.shares else None

        for source in inputs:
            if source[0] == "action":
                actions.setdefault(source[1], {})[source[2]] = of(source)
        state = [of(("state", *key)) for key in self.lowered.fields]
        numbers = {group: [row.get(k) for k in range(max(row) + 1)] for group, row in actions.items()}
        read = {name[1:-1] for name, v in self.named if v in self.active}
        outputs = [(key, int(np.size(a))) for key, a in self.lowered.outputs.items() if key in read]
        tables = {path: self.memory[path][0] for path, (_, kind) in self.lowered.tables.items() if kind == "f"}
        gradient = Gradient(self.lowered, state, numbers, outputs, tables)
        gradient.operations = sum(p.ops[v][0] not in ("const", "input") for v in p.live(gradient.results))
        return gradient
