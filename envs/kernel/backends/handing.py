"""What values cross from one function or lazy block of a program to another, and how: kept, computed again or declared.

A step backwards reads what the step forwards computed, mostly under the same conditions and long after. Such a value is
stored where it is computed and loaded where it is read, both within their blocks: a block that no environment of the
vector enters costs nothing. Declaring all of them before their blocks, as a step does with the few that it has, would
zero, store and load each at every call. Inputs are read again; so is what little work gives again in a block that is
entered less often than the value was computed.
"""

from dataclasses import dataclass, field

from envs.kernel.ir.program import MEMORY, Program, arguments
from envs.kernel.ir.schedule import COSTS, Literal, Scope

AGAIN = 8  # operations that a block computes again at most, to have a value that would be stored more often than read
CHEAP = 1  # cost of an operation that may be one of them


def reads_of(program: Program, step: tuple) -> list[int]:
    """What a statement reads; a block reads its condition, its statements read for themselves."""
    if step[0] == "block":
        values = (step[1].literal[0],)
    elif step[0] == "store":
        values = (step[1],)
    else:
        op = program.ops[step[1]]
        values = op[3:5] if op[0] == "store" else op[3:4] if op[0] == "load" else arguments(op)
    return [v for v in values if program.ops[v][0] != "const"]


def length_of(step: tuple) -> int:
    """Statements of a step, those of its blocks included."""
    return 1 + sum(length_of(s) for s in step[1].steps) if step[0] == "block" else 1


@dataclass(eq=False)
class Handing:
    """How each value of a schedule reaches its readers, for functions of about `part` statements of the root.

    stays: whether an input can be read again at any time. slots: value -> its place in memory. declared: block -> values
    declared before it, as what lies outside reads them. late: of those, the ones stored after the block and not in it.
    again: (value, block) that computes it again.
    """

    program: Program
    root: Scope
    part: int
    stays: set[int]
    parts: list[list[tuple]] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    declared: dict[Scope, list[int]] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)
    again: set[tuple[int, Scope]] = field(default_factory=set)
    _home: dict[int, tuple[Scope, int]] = field(default_factory=dict)
    _literals: dict[Scope, frozenset[Literal]] = field(default_factory=dict)
    _declared_in: dict[int, Scope] = field(default_factory=dict)  # value -> the scope that declares it

    def __post_init__(self) -> None:
        uses: dict[tuple[int, Scope, int], None] = {}
        length = 0
        for step in self.root.steps:
            size = length_of(step)
            if not self.parts or length + size > self.part and length:
                self.parts.append([])
                length = 0
            length += size
            self.parts[-1].append(step)
            self._walk(step, self.root, len(self.parts) - 1, uses)
        self._declare(uses)
        self._keep([use for use in uses if not self._seen(*use) and use[0] not in self.stays])

    def _walk(self, step: tuple, scope: Scope, part: int, uses: dict) -> None:
        self._literals.setdefault(scope, frozenset(s.literal for s in scope.path if s.literal))
        for v in reads_of(self.program, step):
            uses.setdefault((v, scope, part))
        if step[0] == "define":
            self._home[step[1]] = scope, part
        elif step[0] == "block":
            for inner in step[1].steps:
                self._walk(inner, step[1], part, uses)

    def _seen(self, v: int, scope: Scope, part: int) -> bool:
        """Whether a value's name can be read there."""
        home, its_part = self._home[v]
        return part == its_part and self._declared_in.get(v, home) in scope.path

    def _holds(self, v: int, scope: Scope) -> bool:
        """Whether what a value's place in memory holds there is of this call."""
        return v in self.late or self._literals[self._home[v][0]] <= self._literals[scope]

    def _declare(self, uses: dict) -> None:
        """Declares values outside of the blocks that define them where something is read under fewer conditions."""
        for v, scope, part in uses:
            home, its_part = self._home[v]
            if v in self.stays or home in scope.path or self._literals[home] <= self._literals[scope]:
                continue
            common = [a for a, b in zip(home.path, scope.path, strict=False) if a is b]
            if part != its_part:
                common, self.late = common[:1], self.late | {v}
            before = self._declared_in.get(v)
            if before is None or len(common) < len(before.path):
                self._declared_in[v] = common[-1]
        for v, scope in self._declared_in.items():
            self.declared.setdefault(self._home[v][0].path[len(scope.path)], []).append(v)

    def _keep(self, far: list[tuple[int, Scope, int]]) -> None:
        """Gives each value that is read out of sight a place in memory, or has it computed again."""
        optional = []
        for v, scope, part in far:
            rarer = self._literals[self._home[v][0]] < self._literals[scope]
            if rarer and self._is_cheap(v):
                optional.append((v, scope, part))
            else:
                self.slots.setdefault(v, len(self.slots))
        for v, scope, part in sorted(optional, key=lambda use: use[0]):
            cone = None if v in self.slots else self._cone(v, scope, part)
            if cone is None:
                self.slots.setdefault(v, len(self.slots))
            else:
                self.again |= {(a, scope) for a in cone}

    def _is_cheap(self, v: int) -> bool:
        name = self.program.ops[v][0]
        return name not in MEMORY and name != "input" and COSTS.get(name, 1) <= CHEAP

    def _cone(self, v: int, scope: Scope, part: int) -> set[int] | None:
        """What computes a value from what is at hand in a block; None if that is too much."""
        cone, stack = set(), [v]
        while stack:
            a = stack.pop()
            if a in cone:
                continue
            if not self._is_cheap(a) or len(cone) == AGAIN:
                return None
            cone.add(a)
            for b in arguments(self.program.ops[a]):
                at_hand = (
                    self.program.ops[b][0] == "const"
                    or b in self.stays
                    or (b, scope) in self.again
                    or self._seen(b, scope, part)
                    or (b in self.slots and self._holds(b, scope))
                )
                if not at_hand:
                    stack.append(b)
        return cone
