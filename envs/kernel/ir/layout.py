"""Where everything lies that a kernel reads and writes: fields of the state, tables, actions, noise, outputs."""

from dataclasses import dataclass

from envs.kernel.ir.lowered_step import Lowered
from envs.kernel.tracing.trace import TRACED
from envs.spec import EnvSpec, GroupSpec


@dataclass
class Layout:
    """Where everything lies: the order of pointers that a kernel is called with, and of the rows of its outputs."""

    fields: list[tuple[str, int]]
    tables: list[tuple[str, int, str]]  # (path, elements per environment, kind)
    actions: list[tuple[str, int, bool]]  # (group, numbers per environment, integers?)
    noise: int  # numbers per environment
    outputs: list[tuple[tuple, int]]  # (key, numbers per environment), floats
    restarted: list[tuple]  # keys among the outputs that are also given after the auto-reset
    inner: dict[tuple, tuple[int, ...]]  # key -> shape of an output without E
    choices: dict[str, list[int | None]]  # group -> of all its numbers: how many choices; 0: continuous; None: padded

    @property
    def pointers(self) -> list[tuple]:
        """Names of the pointers, in the order of the call."""
        names: list[tuple] = [("state",), ("pool",), ("noise",)]
        names += [("table", path) for path, _, _ in self.tables] + [("pool_table", path) for path, _, _ in self.tables]
        names += [("action", group) for group, _, _ in self.actions]
        names += [key for key, _ in self.outputs]
        for key in self.restarted:
            names += [("after", *key), ("fresh", *key)]
        return [*names, ("terminated",), ("truncated",), ("refused",)]


def layout(lowered: Lowered, spec: EnvSpec) -> Layout:
    """The layout of a step of an environment with this spec."""
    outputs = [(key, array.size) for key, array in lowered.outputs.items() if len(key) > 1]
    tables = []
    for path, (_, kind) in lowered.tables.items():
        shape, _, axis = lowered.shapes[path]
        count = 1
        for d, n in enumerate(shape):
            count *= 1 if d == axis else n
        tables.append((path, count, kind))
    noise = sum(count_of(shape) for _, _, _, shape, _ in lowered.noise)
    return Layout(
        lowered.fields,
        tables,
        [(name, g.n_agents * g.action.size, not g.action.dtype.is_floating_point) for name, g in spec.groups.items()],
        noise,
        outputs,
        [key for key, _ in outputs if key[0] == "observation"],
        {key: array.shape for key, array in lowered.outputs.items()},
        {name: _choices(g) for name, g in spec.groups.items()},
    )


def _choices(group: GroupSpec) -> list[int | None]:
    """Of all numbers of a group's action, agent by agent, how many choices there are; see `Layout`."""
    one: list[int | None] = [0] * group.action.n_continuous + [*group.action.nvec]
    if group.action.mask is None:
        return one * group.n_agents
    return [n if there else None for row in group.action.mask.tolist() for n, there in zip(one, row, strict=True)]


def count_of(shape: tuple) -> int:
    count = 1
    for n in shape:
        count *= n
    return count // TRACED
