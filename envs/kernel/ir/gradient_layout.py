"""Where everything lies that a gradient kernel reads and writes."""

from dataclasses import dataclass

from envs.kernel.ir.gradient import TABLE, Gradient
from envs.kernel.ir.layout import Layout


@dataclass
class GradientLayout:
    """The order of pointers that a gradient kernel is called with; plain values only, as it is kept on disk.

    fields, actions, noise: as the step's. outputs: (key, numbers per environment) of those whose gradients come in.
    restarted: of those, the ones that are also given after the auto-reset. tables: (path, elements per environment,
    kind), the step's own and after them those of gradients.
    """

    fields: list[tuple[str, int]]
    tables: list[tuple[str, int, str]]
    actions: list[tuple[str, int, bool]]
    noise: int
    outputs: list[tuple[tuple, int]]
    restarted: list[tuple]

    @property
    def pointers(self) -> list[tuple]:
        """Names of the pointers, in the order of the call.

        ("gradient", "state"): of the next state, replaced by those of the state. ("gradient", key): of an output as it
        was before the auto-reset, ("gradient", "after", key): after it; absent means zero. ("gradient", "action",
        group) is written. ("over",): which environments were restarted, bytes.
        """
        names: list[tuple] = [("state",), ("gradient", "state"), ("noise",), ("over",)]
        names += [("table", path) for path, _, _ in self.tables]
        names += [("action", group) for group, _, _ in self.actions]
        names += [("gradient", "action", group) for group, _, integers in self.actions if not integers]
        names += [("gradient", *key) for key, _ in self.outputs]
        return names + [("gradient", "after", *key) for key in self.restarted]


def gradient_layout(gradient: Gradient, places: Layout) -> GradientLayout:
    """The layout of the gradient of a step with that layout."""
    beside = [(TABLE + path, count, "f") for path, count, _ in places.tables if gradient.tables.get(path, -1) >= 0]
    return GradientLayout(
        places.fields,
        places.tables + beside,
        places.actions,
        places.noise,
        gradient.outputs,
        [key for key, _ in gradient.outputs if key in places.restarted],
    )
