"""Auto-reset without loops over environments: a pool of freshly reset states, swapped in where one is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from envs.base import EnvError
from envs.rng import Stream
from envs.vmas.carried import CarriedRows, pack, unpack
from envs.vmas.object_contents import attributes
from envs.vmas.one_scenario import OneScenario
from envs.vmas.simulator import Simulator, light_resets
from envs.vmas.simulator_state import (
    Slot,
    StateMap,
    assignments,
    batch_axis,
    counts_environments,
    from_bytes,
    like,
    over,
    to_bytes,
)
from envs.vmas.warm_up import equal, is_clock, shared_values, warm_up

DRAWS = 24  # resets that show which shared values vary; a fair coin stays hidden once in 2^24


class ResetPool:
    """The state of a simulator, with the states of another one, freshly reset, to restart from.

    main, fresh: the two simulators' states. stream, fresh_stream: their random streams. axes: {path: axis of the
    environments, or None}. drawn: paths of what resets draw once for the whole batch. evolving: shared values that
    steps change. passing: scratch that a reset makes disappear. observed: what agents see in the fresh states.

    The second simulator has a different number of environments, P: an axis with E entries in the one and P in the
    other is the environment axis. So a constant that happens to have E entries is never taken for state. Tensors
    without such an axis and plain numbers are shared by all environments. Those of them that a reset draws (a goal
    agent, a mass) are adopted from the pool whenever that is reset, since the whole batch can have one value only.

    Beside a simulator on a GPU the second one stays on the CPU: VMAS's resets ask again and again for an answer, and
    copy single numbers, and a GPU would stand still for each. What it gives is sent over without a wait (`over`).
    """

    def __init__(
        self,
        simulator: Simulator,
        fresh_simulator: Simulator,
        stream: Stream,
        fresh_stream: Stream,
        observe: Callable[[Simulator, list], dict[str, Tensor]],
        audit: Any = None,
    ) -> None:
        self.simulator, self.fresh_simulator = simulator, fresh_simulator
        self.stream, self.fresh_stream = stream, fresh_stream
        self.observe = observe
        self.num_envs, self.size = simulator.num_envs, fresh_simulator.num_envs
        self.main, self._fresh = StateMap(simulator), StateMap(fresh_simulator)
        self._walked, self._bound = True, False  # whether `_fresh` and what `_bind` makes are of the latest reset
        warmed = warm_up(simulator, self.main, stream, audit)
        self.evolving, self._moving, self.passing = warmed.evolving, warmed.moving, warmed.passing
        mine = audit.look(simulator, self.main) if audit else None
        warm_up(fresh_simulator, self.fresh, fresh_stream)
        self.carried = CarriedRows(self.main, self.fresh, self.num_envs, self.size)
        self.scenario = OneScenario(self.main, self.fresh, self.carried)
        self.scenario.agree()
        self.axes: dict[str, int | None] = {}
        for path, slot in self.main.tensors.items():
            other = self.fresh.tensors.get(path)
            try:
                self.axes[path] = other and batch_axis(slot.value.shape, other.value.shape, self.num_envs, self.size)
            except ValueError as error:
                raise EnvError(f"the scenario's tensor {path} can't be reset per environment: {error}.") from error
        for path, axis in self.axes.items():
            if axis is not None and counts_environments(self.fresh.tensors[path].value, axis):
                self.axes[path] = None  # the number of the environment itself (road_traffic keeps one)
        self._counters = {
            p
            for p in self.evolving
            if self.axes.get(p) is None and p not in self.carried.arrays and not self.scenario.is_row(p)
        }
        self.drawn = self._find_drawn()
        if audit:
            self.main.refresh()
            audit.compare(mine, audit.look(simulator, self.main), "building, stepping or resetting another copy of it")

    @property
    def fresh(self) -> StateMap:
        """The pool's state, walked when it is asked for: kernels only read some tensors of it (`read_fresh`)."""
        if not self._walked:
            self._fresh.refresh()
            self._walked = True
        return self._fresh

    def read_fresh(self, path: str) -> Tensor:
        """The pool's tensor of that path, without a walk where its steps are names and numbers."""
        slot = self._fresh.tensors[path]
        if self._walked or not all(isinstance(key, (str, int)) for _, key in slot.steps):  # another key may be new
            return self.fresh.tensors[path].value
        return _follow(self.fresh_simulator, slot.steps)

    def _find_drawn(self) -> set[str]:
        """Paths of shared values that resets change and steps don't: drawn once for the whole batch.

        What is drawn for one landmark is drawn for all of them, though one that seldom changes may not have changed.
        """
        versions = {path: slot.value._version for path, slot in self.fresh.tensors.items()}
        before, drawn, ever = self._shared(), set(), set()
        for turn in range(DRAWS):
            with self.fresh_stream, assignments(self.fresh) as written:
                self.fresh_simulator.reset()
            self.fresh.refresh()
            after = self._shared()
            drawn |= {path for path in before if path in after and not equal(before[path], after[path])}
            written |= {p for p, slot in self.fresh.tensors.items() if slot.value._version != versions.get(p)}
            ever |= written
            if turn == 1 and not (drawn | written & after.keys()) - self.evolving:
                break  # resets write nothing shared: no need to see whether more of them would vary
        kinds = {_kind(path) for path in drawn - self.evolving}
        drawn |= {path for path in ever & before.keys() & after.keys() if _kind(path) in kinds}
        return {path for path in drawn - self.evolving if not is_clock(after.get(path))}

    def _shared(self) -> dict[str, Any]:
        """What all environments of the reset pool share, without the rows that are carried."""
        values = shared_values(self.fresh, self.axes)
        return {p: v for p, v in values.items() if not self.scenario.is_row(p)} if self.carried else values

    def reset_simulator(self) -> dict[str, Tensor]:
        """Reset all environments eagerly; returns their observation, by group."""
        with self.stream:
            observations = self.simulator.reset()
        self.main.refresh()
        self.refresh()
        observation = self.observe(self.simulator, observations)
        everyone = torch.full((self.num_envs,), bool(self.drawn), device=self.simulator.device)
        self.merge(everyone, 0)  # also gives every environment's tensors their own memory
        return {key: self.fresh_rows(key, 0) for key in observation} if self.drawn else observation

    def refresh(self) -> None:
        """Reset the pool: new states to restart from, and new values of what is drawn for the whole batch."""
        self.scenario.hand_over(self._counters)
        with self.fresh_stream, light_resets(self.size):
            observations = self.fresh_simulator.reset()
        self._walked = self._bound = False
        observed = self.observe(self.fresh_simulator, observations)
        self.observed = {key: over(value, self.simulator.device) for key, value in observed.items()}
        if self.drawn:
            self._adopt()

    def _adopt(self) -> None:
        host = self.fresh.host_values()
        self.main.write_host({path: host[path] for path in self.drawn if path in host})
        for path in self.drawn & self.main.tensors.keys() & self.fresh.tensors.keys():
            slot = self.main.tensors[path]
            slot.write(like(slot.value, over(self.fresh.tensors[path].value, slot.value.device)))

    def _bind(self) -> None:
        """Pair every per-environment slot with the pool's rows, extended so that any window of E rows is a view.

        Only `merge` and `fresh_rows` need it: kernels read rows in a circle.
        """
        if self._bound:
            return
        self._rows: list[tuple[Any, Any, Tensor, int]] = []
        self._slow: list[tuple[Slot, Tensor, int]] = []
        for path, slot in self.main.tensors.items():
            axis, other = self.axes.get(path), self.fresh.tensors.get(path)
            if axis is None or other is None:
                continue
            rows = self._extend(over(other.value, slot.value.device), axis)
            if path in self._moving or isinstance(slot.container, tuple):
                self._slow.append((slot, rows, axis))
            else:
                self._rows.append((slot.container, slot.key, rows, axis))
        self._fresh_observation = {key: self._extend(value, 0) for key, value in self.observed.items()}
        self._bound = True

    def _extend(self, rows: Tensor, axis: int) -> Tensor:
        copies = -(-(self.size + self.num_envs - 1) // self.size)
        return torch.cat([rows] * copies, axis).narrow(axis, 0, self.size + self.num_envs - 1)

    def merge(self, done: Tensor, offset: int) -> None:
        """Replace done environments' state by the pool's rows (arange(E) + offset) % P. done: bool [E].

        Slots that held one tensor hold one tensor afterwards.
        """
        self._bind()
        num_envs, masks = self.num_envs, {}
        replaced: dict[int, tuple[Tensor, Tensor]] = {}  # by id; keeps the old tensor alive, so that no id comes twice
        where, get = torch.where, replaced.get
        for container, key, rows, axis in self._rows:
            old = container[key]
            pair = get(id(old))
            if pair is None:
                shape = (old.dim(), axis)
                mask = masks.get(shape)
                if mask is None:
                    masks[shape] = mask = done.view([num_envs if i == axis else 1 for i in range(shape[0])])
                pair = replaced[id(old)] = (old, where(mask, rows.narrow(axis, offset, num_envs), old))
            container[key] = pair[1]
        for slot, rows, axis in self._slow:
            old = self._locate(slot)
            if old is None:
                continue
            mask = done.view([num_envs if i == axis else 1 for i in range(old.dim())])
            if id(old) not in replaced:
                replaced[id(old)] = (old, where(mask, rows.narrow(axis, offset, num_envs), old))
            slot.write(replaced[id(old)][1])
        if self.carried:
            self.main.refresh()
            self.carried.merge(self.main, self.fresh, done, offset)

    def _locate(self, slot: Slot) -> Tensor | None:
        """The tensor of a slot whose container is replaced during steps: follow its path from the root."""
        owner = _follow(self.simulator, slot.steps[:-1])
        slot.container = attributes(owner) if slot.steps[-1][0] == "attribute" else owner
        return slot.value if isinstance(slot.container, (list, tuple)) else slot.container.get(slot.key)

    def fresh_rows(self, key: str, offset: int) -> Tensor:
        """The pool's observation of a group, [E, A, F], in the rows that `merge` takes with the same offset."""
        self._bind()
        return self._fresh_observation[key].narrow(0, offset, self.num_envs)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Within it the simulator may step; afterwards its state and stream are what they were before."""
        main = self.main
        main.refresh()
        tensors = {path: slot.value for path, slot in main.tensors.items()}
        saved = {path: (value, value._version, value.detach().clone()) for path, value in tensors.items()}
        host, stream = main.host_values(), self.stream.state_dict()
        try:
            yield
        finally:
            main.refresh()
            for path, slot in list(main.tensors.items()):
                if path in saved:
                    tensor, version, content = saved[path]
                    if tensor._version != version:
                        tensor.copy_(content)
                    slot.write(tensor)
                elif isinstance(slot.container, dict):
                    slot.container.pop(slot.key, None)  # scratch that was not there before
            main.write_host(host)
            self.stream.load_state_dict(stream)
            main.refresh()

    def snapshot(self) -> dict[str, Tensor]:
        """All of it as tensors: both simulators' states and streams, and the pool's observations."""
        saved = {}
        for name, state in (("state", self.main), ("pool", self.fresh)):
            state.refresh()
            first: dict[int, str] = {}
            shared = {}
            for path, slot in state.tensors.items():
                if path not in self.passing:
                    shared[path] = first.setdefault(id(slot.value), path)
                    if shared[path] == path:
                        saved[f"{name}/{path}"] = slot.value.detach().clone()
            beside = {path: pack(slot) for path, slot in (state.arrays | state.beside).items()}
            beside = {path: packed for path, packed in beside.items() if packed is not None}
            saved[f"{name}_plain"] = to_bytes({"host": state.host_values(), "shared": shared, "beside": beside})
        saved |= {f"pool_observation/{key}": value.clone() for key, value in self.observed.items()}
        saved |= {f"random/{key}": value for key, value in self.stream.state_dict().items()}
        return saved | {f"pool_random/{key}": value for key, value in self.fresh_stream.state_dict().items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go back to a snapshot of an environment with the same settings; EnvError names what doesn't fit."""
        for name, state, device in (
            ("state", self.main, self.simulator.device),
            ("pool", self.fresh, self.fresh_simulator.device),
        ):
            if f"{name}_plain" not in saved:
                raise EnvError(f"this snapshot has no {name}_plain: it is not one of a VMAS environment.")
            state.refresh()
            plain = from_bytes(saved[f"{name}_plain"])
            tensors: dict[str, Tensor] = {}
            for path, first in plain["shared"].items():
                slot = state.tensors.get(path) or state.host.get(path)  # host: None until a step fills it
                value = saved[f"{name}/{first}"]
                if slot is None or (isinstance(slot.value, Tensor) and slot.value.shape != value.shape):
                    here = "nothing" if slot is None else f"{tuple(slot.value.shape)}"
                    raise EnvError(
                        f"this snapshot is of another environment: {path} has shape "
                        f"{tuple(value.shape)} there, and {here} here."
                    )
                if first not in tensors:
                    value = value.to(device)
                    tensors[first] = like(slot.value if isinstance(slot.value, Tensor) else value, value)
                slot.write(tensors[first])
            state.write_host(plain["host"])
            here = state.arrays | state.beside
            for path, packed in plain.get("beside", {}).items():
                if path in here:
                    unpack(here[path], packed)
            state.refresh()
        self.observed = {
            key: saved[f"pool_observation/{key}"].to(self.simulator.device, copy=True) for key in self.observed
        }
        self.stream.load_state_dict(_below("random/", saved))
        self.fresh_stream.load_state_dict(_below("pool_random/", saved))
        self._bound = False


def _follow(root: Any, steps: tuple[tuple[str, Any], ...]) -> Any:
    """Where the steps of a path lead to."""
    for kind, key in steps:
        root = attributes(root)[key] if kind == "attribute" else root[key]
    return root


def _kind(path: str) -> str:
    """A path without which one of a list it is of: "world._landmarks.#.neighbour"."""
    return re.sub(r"\.\d+(?=\.|$)", ".#", path)


def _below(prefix: str, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
