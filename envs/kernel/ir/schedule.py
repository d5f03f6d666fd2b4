"""The order in which a program is written out: depth first, and lazily where only some environments need a value.

Where `select(c, a, b)` is the only reader of a costly `a`, and c is false in all environments of a block, `a` need not
be computed: bodies that are far apart exert no force. So each value gets a *guard*, the conditions under which anybody
reads it, and values with the same guard are put into one `if (any(condition))`. This is exact whatever the program.

What a block needs of outside is written before it. Some of that is lazy itself, under conditions that the block does
not ask: gradients have many such values, which two arms within other arms read. They get blocks of their own there.
"""

import sys
from dataclasses import dataclass, field

from envs.kernel.ir.program import MEMORY, Program, arguments

COSTS = {
    "div": 10,
    "sqrt": 12,
    "exp": 25,
    "log1p": 25,
    "log": 30,
    "sin": 30,
    "cos": 30,
    "tan": 40,
    "atan2": 40,
    "pow": 60,
    "fmod": 30,
    "tanh": 40,
    "expm1": 30,
    "asin": 40,
    "acos": 40,
    "atan": 40,
    "input": 0,
    "const": 0,
}
WORTH = 60  # cost below which a branch is dearer than what it saves

Literal = tuple[int, bool]  # (condition, the answer under which the value is read)


@dataclass(eq=False)
class Scope:
    """A sequence of statements that runs if any environment answers `literal`; the root has none.

    steps: ("define", value), ("store", value, target), ("table", store) or ("block", Scope).
    hoisted: values defined inside that are read outside, declared before the block.
    """

    parent: "Scope | None" = None
    literal: Literal | None = None
    steps: list[tuple] = field(default_factory=list)
    hoisted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path: list[Scope] = [*(self.parent.path if self.parent else []), self]  # from the root to here


class Schedule:
    """Puts the values of a program in order. `store` in the order of the outputs, then `finish`."""

    def __init__(self, program: Program, outputs: list[int]) -> None:
        self.p, self.root = program, Scope()
        self.home: dict[int, Scope] = {}  # value -> the scope that defines it
        self.used: dict[int, list[Scope]] = {}
        self.begun: set[int] = set()  # values whose writing has begun and is not done
        self.live = program.live(outputs)
        self.guard = self._guards(set(outputs))
        self.selects: dict[int, list[int]] = {}
        for v in self.live:
            if program.ops[v][0] == "select":
                self.selects.setdefault(program.ops[v][1], []).append(v)

    def _guards(self, outputs: set[int]) -> dict[int, frozenset[Literal]]:
        ops, guard = self.p.ops, {}
        for v in reversed(self.live):
            mine = frozenset() if v in outputs or ops[v][0] in MEMORY else guard.get(v, frozenset())
            guard[v] = mine
            op = ops[v]
            for i, a in enumerate(arguments(op)):
                reads = mine
                if op[0] == "select" and i and op[2] != op[3] and op[1] not in (op[2], op[3]):
                    reads = mine | {(op[1], i == 1)}
                guard[a] = reads if a not in guard else guard[a] & reads
        free = frozenset()
        for v in self.live:
            if ops[v][0] in ("input", "const") or ops[v][0] in MEMORY:
                guard[v] = free
        worth: dict[Literal, int] = {}
        for v in self.live:
            for literal in guard[v]:
                worth[literal] = worth.get(literal, 0) + COSTS.get(ops[v][0], 1)
        worthwhile = {literal for literal, cost in worth.items() if cost >= WORTH}
        cache: dict[frozenset, frozenset] = {}
        for v in self.live:
            old = guard[v]
            if old:
                new = cache.get(old)
                if new is None:
                    new = cache[old] = old & worthwhile
                guard[v] = new
        return guard

    def _scope(self, value: int, scope: Scope) -> Scope:
        """The innermost scope around `scope` in which a value is at home."""
        allowed, best = self.guard[value], None
        for s in scope.path:
            if s.literal is not None and s.literal not in allowed:
                break
            best = s
        return best

    def need(self, value: int, scope: Scope) -> None:
        """Writes a value and what it needs, unless that is done."""
        if value in self.home or self.p.ops[value][0] == "const":
            return
        self.begun.add(value)
        self._write(value, scope)
        self.begun.discard(value)

    def _write(self, value: int, scope: Scope) -> None:
        op = self.p.ops[value]
        scope = self._scope(value, scope)
        if op[0] == "select":
            self.need(op[1], scope)
            for arm, answer in ((op[2], True), (op[3], False)):
                literal = (op[1], answer)
                if arm not in self.home and literal in self.guard.get(arm, ()):
                    self._open(value, literal, scope)
        for a in arguments(op):
            self.need(a, scope)
        if value in self.home:
            return
        self.home[value] = scope
        for a in arguments(op):
            self.used.setdefault(a, []).append(scope)
        scope.steps.append(("table" if op[0] == "store" else "define", value))

    def _open(self, select: int, literal: Literal, scope: Scope) -> None:
        """Opens a block for what is read only under `literal`: the arms of `select` and of those that can join."""
        arms = [self._arm(select, literal)]
        for other in self.selects[literal[0]]:
            arm = self._arm(other, literal)
            if other != select and arm not in self.home and literal in self.guard.get(arm, ()):
                if self.guard[other] >= self.guard[select] and self._independent(arm, literal[0]):
                    arms.append(arm)
        self._fill(arms, literal, scope)

    def _fill(self, values: list[int], literal: Literal, scope: Scope) -> None:
        """A block for values that are read only under `literal`, after what they need of outside."""
        self._need_all([v for value in values for v in self._outside(value, literal)], scope)
        block = Scope(scope, literal)
        self.used.setdefault(literal[0], []).append(scope)
        self._need_all(values, block)
        if block.steps:
            scope.steps.append(("block", block))

    def _need_all(self, values: list[int], scope: Scope) -> None:
        """Writes values in order; in blocks of their own what is costly and read only under further answers."""
        asked = frozenset(s.literal for s in scope.path if s.literal)
        for value in values:
            literal = self._askable(value, asked)
            together = [v for v in values if literal and v not in self.home and literal in self.guard.get(v, ())]
            if self._cost(together, literal) < WORTH:
                self.need(value, scope)
                continue
            self.need(literal[0], scope)
            self._fill(together, literal, scope)

    def _cost(self, values: list[int], literal: Literal | None) -> int:
        """Of what values need and is yet to be written under an answer; no more than `WORTH` is counted."""
        stack, seen, cost = list(values), set(), 0
        while stack and cost < WORTH:
            v = stack.pop()
            if v not in seen and v not in self.home and literal in self.guard.get(v, ()):
                seen.add(v)
                cost += COSTS.get(self.p.ops[v][0], 1)
                stack.extend(arguments(self.p.ops[v]))
        return cost

    def _askable(self, value: int, asked: frozenset[Literal]) -> Literal | None:
        """An answer under which alone a value is read, and that can be asked for under those in `asked`."""
        if value in self.home or self.guard.get(value, asked) <= asked:
            return None
        askable = [literal for literal in self.guard[value] - asked if self.guard.get(literal[0], asked) <= asked]
        return next((literal for literal in sorted(askable) if self._can_be_known(literal[0])), None)

    def _can_be_known(self, condition: int) -> bool:
        """Whether nothing that a condition needs is being written: its own arms' needs must not ask for it."""
        stack, seen = [condition], set()
        while stack:
            v = stack.pop()
            if v in self.begun:
                return False
            if v not in seen and v not in self.home:
                seen.add(v)
                stack.extend(arguments(self.p.ops[v]))
        return True

    def _arm(self, select: int, literal: Literal) -> int:
        return self.p.ops[select][2 if literal[1] else 3]

    def _independent(self, value: int, condition: int) -> bool:
        """Whether nothing unwritten that a value needs is itself a select by that condition."""
        stack, seen = [value], set()
        while stack:
            v = stack.pop()
            if v in seen or v in self.home:
                continue
            seen.add(v)
            if self.p.ops[v][:2] == ("select", condition):
                return False
            stack.extend(arguments(self.p.ops[v]))
        return True

    def _outside(self, value: int, literal: Literal) -> list[int]:
        """What an arm needs that is not read under `literal` alone, in order."""
        stack, seen, outside = [value], set(), []
        while stack:
            v = stack.pop()
            if v in seen or v in self.home or self.p.ops[v][0] == "const":
                continue
            seen.add(v)
            if literal in self.guard[v]:
                stack.extend(arguments(self.p.ops[v]))
            else:
                outside.append(v)
        return sorted(outside)

    def store(self, value: int, target: str) -> None:
        """Writes a value and stores it at once."""
        self.need(value, self.root)
        self.used.setdefault(value, []).append(self.root)
        self.root.steps.append(("store", value, target))

    def finish(self) -> Scope:
        """The root, with everything read outside of the block that defines it hoisted."""
        for value, scope in self.home.items():
            mine = scope.path
            depth = len(mine)
            for user in self.used.get(value, ()):
                path = user.path
                common = 0
                while common < min(depth, len(path)) and path[common] is mine[common]:
                    common += 1
                depth = common
            if depth < len(mine):
                mine[depth].hoisted.append(value)
        return self.root


def schedule(program: Program, outputs: list[int]) -> Schedule:
    """A new schedule; deep programs recurse deeply."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1_000_000))
    return Schedule(program, outputs)
