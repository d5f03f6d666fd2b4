"""A run's curriculum: which settings the environment has in an iteration, and the factories that build it so."""

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from agents.curriculum.stages import Stages, read
from envs.base import Env
from marl.callbacks.base import expect
from marl.core import distributed
from marl.core.errors import UserError, closest
from marl.core.schema import check_value, show, signature
from marl.core.seeding import derive

Place = tuple[int, ...]  # one index per setting: which of its values holds
SHAPING = ("num_envs", "device", "seed", "groups", "heterogeneous", "workers", "pool_size", "fast")
MOST = 64  # combinations of values: each is built once, cheaply, before the run


class Curriculum:
    """Settings of the environment that change between iterations: stage by stage, never back, or drawn.

    Args:
        node: {"evaluate": "final" | "current", "env": a tree as `agents.curriculum.stages.read` takes it}.
        env: the factory of environments, `functools.partial` of an `Env`.
        seed: of the run; draws are a function of it and of the iteration.

    Attributes:
        stages: what changes.
        index: {key: how far} of what goes stage by stage.
        place: which value of each setting holds now.
        evaluates_current: whether evaluations play the present stage instead of the full task.
        seen: {figure: its latest values in this stage, [value, episodes that it is of] each} of what is waited for.
        horizon: iterations over which figures are averaged where a stage does not say. Episodes that end early are
            often the good ones (or the bad ones), so it takes the time in which all episodes end.

    Raises:
        UserError: another node or factory, or keys that the environment does not have or that may not change.
    """

    def __init__(self, node: Mapping[str, Any], env: Callable[..., Env], seed: int) -> None:
        for key in node:
            if key not in ("env", "evaluate"):
                raise UserError(f"unknown key 'curriculum.{key}'{closest(key, ['env', 'evaluate'])} (allowed are env, "
                                "of which any setting may change, and evaluate)")  # fmt: skip
        self.evaluates_current = {"final": False, "current": True}.get(node.get("evaluate", "final"))
        if self.evaluates_current is None:
            raise UserError(f"curriculum.evaluate={show(node['evaluate'])}: must be final or current")
        self.stages = list(read(node.get("env") or {}, "env"))
        self.env, self.seed = env, seed
        self._check_keys()
        self.index = {each.key: 0 for each in self.stages if not each.drawn}
        self.seen: dict[str, list[list[float | Tensor]]] = {}
        self.horizon = 1
        self.place = self.place_of(0)

    @classmethod
    def of(cls, node: Mapping[str, Any] | None, env: Callable[..., Env], seed: int) -> "Curriculum | None":
        """None where nothing changes."""
        return cls(node, env, seed) if node and (node.get("env") or set(node) - {"evaluate"}) else None

    def _check_keys(self) -> None:
        if not isinstance(self.env, partial):
            raise UserError("curriculum: needs `env` as a functools.partial of an environment, whose keywords change")
        parameters = signature(self.env.func)
        free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        for each in self.stages:
            name, _, below = each.key.removeprefix("env.").partition(".")
            if name in SHAPING:
                reason = "rollouts and networks are built for it; settings of the task may change"
                raise UserError(f"curriculum.{each.key}: must stay as it is, since {reason}")
            if name not in parameters and not free:
                known = [key for key in parameters if key not in SHAPING]
                hint = f"{closest(name, known)} (env has {', '.join(known)})"
                raise UserError(f"unknown key 'curriculum.{each.key}'{hint}")
            if not below and name in parameters and parameters[name].annotation is not inspect.Parameter.empty:
                for value in each.values:
                    check_value(parameters[name].annotation, value, f"curriculum.{each.key}")

    def check_figures(self, names: Collection[str]) -> None:
        """Raise UserError where a setting waits for a figure that evaluations, of `names`, will not have."""
        for each in self.stages:
            if each.figure.startswith("eval/"):
                expect({f"eval/{name}" for name in names}, each.figure, f"curriculum.{each.key}.figure")

    def average_over(self, iterations: int) -> None:
        """Set `horizon`."""
        self.horizon = iterations

    # ---- what holds when

    def place_of(self, iteration: int) -> Place:
        """The indices that hold in an iteration, given how far the stages are."""
        drawn = {
            each.key: derive(self.seed, f"curriculum.{each.key}, iteration {iteration}") % len(each.values)
            for each in self.stages
            if each.drawn
        }
        return tuple((self.index | drawn)[each.key] for each in self.stages)

    def stage_of(self, place: Place) -> Place:
        """The part of a place that does not return once it is left."""
        return tuple(i for i, each in zip(place, self.stages, strict=True) if not each.drawn)

    def advance(self, progress: float, iteration: int) -> bool:
        """Go on to what an iteration plays, in all processes; whether a stage changed.

        By progress (0 to 1) as far as it says; by a figure one stage at a time, which is then waited for again.
        """
        before = dict(self.index)
        for each in self.stages:
            if each.starts:
                self.index[each.key] = max(self.index[each.key], each.by_progress(progress))
            elif each.figure:
                self.index[each.key] += each.reached(self.index[each.key], self._mean(each))
        if any(each.figure for each in self.stages):
            self.index = distributed.agree(self.index)
        changed = self.index != before
        if changed:
            self.seen = {}
        self.place = self.place_of(iteration)
        return changed

    def _mean(self, stages: Stages) -> float:
        """The figure that a setting waits for; NaN while it has not been seen long enough."""
        seen, over = self.seen.get(stages.figure, []), self._over(stages)
        if len(seen) < over:
            return math.nan
        pairs = [(float(value), float(weight)) for value, weight in seen[-over:]]
        counted = [(value, weight) for value, weight in pairs if weight > 0 and not math.isnan(value)]
        total = sum(weight for _, weight in counted)
        return sum(value * weight for value, weight in counted) / total if total else math.nan

    def _over(self, stages: Stages) -> int:
        return stages.over or (1 if stages.figure.startswith("eval/") else self.horizon)

    def note(self, figures: Mapping[str, float | Tensor], evaluated: bool = False) -> None:
        """Take in figures of an iteration, or of an evaluation; UserError where one that is waited for is missing."""
        latest: dict[str, list] = {}
        longest: dict[str, int] = {}
        for each in self.stages:
            if each.figure and each.figure.startswith("eval/") == evaluated:
                name = each.figure.removeprefix("eval/")
                if name not in figures:
                    there = ", ".join(f"eval/{key}" if evaluated else key for key in figures)
                    hint = f"there is no such figure{closest(name, figures)} (there are {there})"
                    raise UserError(f"curriculum.{each.key}.figure={each.figure}: {hint}")
                value = figures[name], 1.0 if evaluated else figures.get("episodes", 1.0)
                latest[each.figure] = [*self.seen.get(each.figure, []), list(value)]
                longest[each.figure] = max(longest.get(each.figure, 1), self._over(each))
        self.seen |= {figure: values[-longest[figure] :] for figure, values in latest.items()}

    def places(self) -> list[Place]:
        """Every place that a run may come to, the first ones first. UserError for more than MOST.

        What goes by progress, and what waits for one figure with the same limits, goes on together.
        """
        scheduled = [each for each in self.stages if each.starts]
        shares = sorted({start for each in scheduled for start in each.starts}) or [0.0]
        rows = [[{each.key: each.by_progress(share) for each in scheduled} for share in shares]]
        together: dict[tuple, list[Stages]] = {}
        for each in self.stages:
            if not each.starts:
                together.setdefault(each.clock, []).append(each)
        for stages in together.values():
            rows.append([{each.key: i for each in stages} for i in range(len(stages[0].values))])
        count = math.prod(map(len, rows))
        if count > MOST:
            raise UserError(f"curriculum: its values make {count} combinations; at most {MOST} are allowed")
        chosen = [{k: i for row in combination for k, i in row.items()} for combination in itertools.product(*rows)]
        return sorted({tuple(index[each.key] for each in self.stages) for index in chosen})

    def upcoming(self) -> list[Place]:
        """The places of this stage, then those of the stages that may come next."""
        options = [self.index]
        ahead = [each for each in self.stages if not each.drawn and self.index[each.key] + 1 < len(each.values)]
        shares = [each.starts[self.index[each.key] + 1] for each in ahead if each.starts]
        soonest = [each.key for each in ahead if each.starts and each.starts[self.index[each.key] + 1] == min(shares)]
        figures: dict[tuple, list[str]] = {}
        for each in ahead:
            if each.figure:
                figures.setdefault(each.clock, []).append(each.key)
        for keys in (soonest, *figures.values()):
            options.append({key: i + (key in keys) for key, i in self.index.items()})
        places: list[Place] = []
        for index in options:
            choices = [range(len(each.values)) if each.drawn else (index[each.key],) for each in self.stages]
            places += [place for place in itertools.product(*choices) if place not in places]
        return places

    # ---- factories

    def values(self, place: Place) -> dict[str, Any]:
        """{key: value} at a place."""
        return {each.key: each.values[i] for each, i in zip(self.stages, place, strict=True)}

    def factory(self, place: Place) -> Callable[..., Env]:
        """What builds the environments of a place."""
        return self._with(self.values(place), replace=True)

    @property
    def full_task(self) -> Callable[..., Env]:
        """What builds the task that is learned: `env` as configured; what it does not say is as in the last stage."""
        return self._with({each.key: each.values[-1] for each in self.stages if not each.drawn}, replace=False)

    def judged(self) -> Callable[..., Env]:
        """What builds the environments of evaluations: the full task, or the present stage of it."""
        if not self.evaluates_current:
            return self.full_task
        return self._with({k: v for k, v in self.values(self.place).items() if k in self.index}, replace=True)

    def _with(self, values: Mapping[str, Any], replace: bool) -> Callable[..., Env]:
        keywords = copy.deepcopy(self.env.keywords)
        for key, value in values.items():
            *folders, name = key.split(".")[1:]
            node = keywords
            for folder in folders:
                node[folder] = node[folder] if node.get(folder) is not None else {}
                node = node[folder]
            if replace or name not in node:
                node[name] = copy.deepcopy(value)
        return partial(self.env.func, *self.env.args, **keywords)

    # ---- what is told and kept

    def figures(self) -> dict[str, float]:
        """{"curriculum/KEY": value}, and its index where it is no number."""
        told = {}
        for (key, value), i in zip(self.values(self.place).items(), self.place, strict=True):
            plain = isinstance(value, int | float)
            told[f"curriculum/{key}"] = float(value if plain else i)
        return told

    def aside(self) -> list[str]:
        """Keys whose last stage is not what the full task has, each with both values."""
        keywords, found = self.full_task.keywords, []
        for each in self.stages:
            node: Any = keywords
            for name in each.key.split(".")[1:]:
                node = node.get(name) if isinstance(node, Mapping) else None
            if not each.drawn and node != each.values[-1]:
                found.append(f"{each.key}={show(node)}, and the last stage has {show(each.values[-1])}")
        return found

    def told(self) -> str:
        """The stage in words: "env.scenario_kwargs.n_obstacles=3, …"."""
        return ", ".join(f"{key}={show(value)}" for key, value in self.values(self.place).items() if key in self.index)

    def state_dict(self) -> dict[str, Any]:
        """How far the stages are, what was seen, and where the latest iteration was."""
        seen = {name: [[float(value), float(weight)] for value, weight in rows] for name, rows in self.seen.items()}
        return {"index": dict(self.index), "seen": seen, "place": list(self.place)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.index, self.seen, self.place = dict(state["index"]), dict(state["seen"]), tuple(state["place"])
