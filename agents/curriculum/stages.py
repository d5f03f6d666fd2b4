"""The values that one setting takes in turn, read from a configuration: by progress, by a figure, or drawn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from marl.core.errors import UserError, closest
from marl.core.schema import check_value, show

FORMS = (
    "{0: 1, 0.5: 3} (the value from each share of the run on), "
    "{figure: episode_return, above: [0.6, 0.8], values: [1, 3, 5]} or {draw: [2, 3, 5]}"
)
BY_FIGURE = ("figure", "above", "below", "values", "over")


@dataclass(frozen=True)
class Stages:
    """One setting's values. Which of the last three is given says what chooses among them.

    key: dotted, "env.scenario_kwargs.n_obstacles". values: in their order.
    starts: shares of the run, 0 to 1, from which each value holds; the first is 0.
    figure: a figure of iterations ("episode_return") or evaluations ("eval/episode_return"). The next value comes when
        it is at least (or, with `falling`, at most) the next of `limits`, which are one fewer than the values. Of
        iterations it is the mean over the latest `over` of the stage, each counting as its episodes that ended; None:
        as many as `Curriculum.horizon` says.
    Neither: one value is drawn for each iteration, all being equally likely.
    """

    key: str
    values: tuple[Any, ...]
    starts: tuple[float, ...] = ()
    figure: str = ""
    limits: tuple[float, ...] = ()
    falling: bool = False
    over: int | None = None

    @property
    def drawn(self) -> bool:
        """Whether chance chooses."""
        return not self.starts and not self.figure

    @property
    def clock(self) -> tuple:
        """What it goes by: settings with the same one change together. Each draw is its own."""
        return self.figure, self.limits, self.falling, self.over, self.drawn and self.key

    def by_progress(self, progress: float) -> int:
        """The index of the value that holds at `progress`, 0 to 1."""
        return sum(progress >= start for start in self.starts) - 1

    def reached(self, index: int, value: float) -> bool:
        """Whether the figure's `value` ends the stage `index`; never where it is NaN, or at the last."""
        if index >= len(self.limits):
            return False
        return value <= self.limits[index] if self.falling else value >= self.limits[index]


def read(node: Mapping[str, Any], prefix: str) -> Iterator[Stages]:
    """The settings that a tree `{scenario_kwargs: {n_obstacles: {0: 1, 0.5: 3}}, …}` changes; `prefix` names it.

    Raises:
        UserError: what is no such tree, with the key and what is allowed.
    """
    for name, value in node.items():
        key = f"{prefix}.{name}"
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"curriculum.{key}={show(value)}: must be {FORMS}")
        if all(_number(share) is not None for share in value):
            yield _scheduled(key, value)
        elif "draw" in value:
            _only(key, value, ("draw",))
            yield Stages(key, _listed(f"{key}.draw", value["draw"]))
        elif {"figure", "values"} & set(value):
            yield _by_figure(key, value)
        else:
            yield from read(value, key)


def _scheduled(key: str, value: Mapping[Any, Any]) -> Stages:
    shares = {_number(share): each for share, each in value.items()}
    order = sorted(shares)
    if order[0] != 0 or order[-1] > 1 or len(order) < len(value):
        raise UserError(
            f"curriculum.{key}={show(dict(value))}: its keys must be shares of the run from 0 to 1, each once and "
            "0 among them"
        )
    return Stages(key, tuple(shares[share] for share in order), starts=tuple(order))


def _by_figure(key: str, value: Mapping[str, Any]) -> Stages:
    _only(key, value, BY_FIGURE)
    given = [name for name in ("above", "below") if name in value]
    if not isinstance(value.get("figure"), str) or len(given) != 1:
        needs = "needs figure, values, and one of above and below"
        raise UserError(f"curriculum.{key}={show(dict(value))}: {needs}")
    values = _listed(f"{key}.values", value.get("values"))
    limits = [_number(limit) for limit in _listed(f"{key}.{given[0]}", value[given[0]])]
    if None in limits or len(limits) != len(values) - 1:
        raise UserError(
            f"curriculum.{key}.{given[0]}={show(value[given[0]])}: must be {len(values) - 1} numbers, one fewer than "
            "the values"
        )
    over = value.get("over")
    check_value(Annotated[int, Field(ge=1)] | None, over, f"curriculum.{key}.over")
    return Stages(key, values, figure=value["figure"], limits=tuple(limits), falling=given == ["below"], over=over)


def _listed(key: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 1:
        raise UserError(f"curriculum.{key}={show(value)}: must be a list")
    return tuple(value)


def _only(key: str, value: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in value:
        if name not in allowed:
            raise UserError(
                f"unknown key 'curriculum.{key}.{name}'{closest(name, allowed)} (allowed are {', '.join(allowed)})"
            )


def _number(value: Any) -> float | None:
    """A number, also one that a configuration holds as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
