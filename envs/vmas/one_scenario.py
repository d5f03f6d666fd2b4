"""What simulator and reset pool have in common: they are two numbers of environments of one scenario."""

from __future__ import annotations

import math
from typing import Any

from envs.vmas.carried import CarriedRows
from envs.vmas.simulator_state import StateMap, like
from envs.vmas.warm_up import equal


class OneScenario:
    """Keeps the values that are the scenario's, and no single environment's, the same in both.

    main: the state of the simulator with `num_envs` environments; fresh: of the reset pool's with `pool_size`.
    """

    def __init__(self, main: StateMap, fresh: StateMap, carried: CarriedRows) -> None:
        self.main, self.fresh, self.carried = main, fresh, carried
        self.num_envs, self.pool_size = carried.num_envs, carried.pool_size

    def is_row(self, path: str) -> bool:
        """Whether a path is, or lies in, a list with a row per environment."""
        return any(path == name or path.startswith(f"{name}.") for name in self.carried.lists)

    def agree(self) -> None:
        """What the scenario drew when it was made is the simulator's in both; what follows from the size is not."""
        mine, theirs = self.main.host_values(), self.fresh.host_values()
        for path in mine.keys() & theirs.keys():
            if mine[path] != theirs[path] and not self.is_row(path) and not self.follows_size(path):
                self.fresh.write_host({path: mine[path]})
        self.share(set(self.main.tensors) | set(self.main.arrays))

    def follows_size(self, path: str) -> bool:
        """Whether a plain value differs between simulator and reset pool because their numbers of environments do."""
        a, b = (state.host[path].value if path in state.host else None for state in (self.main, self.fresh))
        return follows(a, b, self.num_envs, self.pool_size)

    def share(self, paths: set[str]) -> None:
        """The reset pool's tensors and arrays without an environment axis become the simulator's, of those paths."""
        for path in paths & self.main.tensors.keys() & self.fresh.tensors.keys():
            mine, theirs = self.main.tensors[path].value, self.fresh.tensors[path]
            if mine.shape == theirs.value.shape and not self.is_row(path):
                mine = mine.to(theirs.value.device)
                if not equal(mine, theirs.value):
                    theirs.write(like(theirs.value, mine))
        for path in paths & self.main.arrays.keys() & self.fresh.arrays.keys():
            mine, theirs = self.main.arrays[path].value, self.fresh.arrays[path]
            if mine.shape == theirs.value.shape and mine.dtype.kind in "biufc":
                theirs.write(mine.copy())

    def hand_over(self, counters: set[str]) -> None:
        """Counters of the scenario are one: the reset pool's are the simulator's when it is reset."""
        if counters:
            self.main.refresh()
            self.fresh.refresh()
            host = self.main.host_values()
            self.fresh.write_host({p: host[p] for p in counters & host.keys() if not self.follows_size(p)})
            self.share(counters)


def follows(a: Any, b: Any, num_envs: int, size: int) -> bool:
    """Whether a : b is num_envs : size or its inverse, of numbers or of sequences' lengths."""
    if isinstance(a, (list, tuple, str, dict)) and isinstance(b, (list, tuple, str, dict)):
        if len(a) != len(b) or isinstance(a, (str, dict)):
            return len(a) != len(b)
        return all(x == y or follows(x, y, num_envs, size) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b) or not isinstance(a, (int, float)) or isinstance(a, bool):
        return False
    return math.isclose(a * size, b * num_envs, rel_tol=1e-6) or math.isclose(a * num_envs, b * size, rel_tol=1e-6)
