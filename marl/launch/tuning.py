"""Tuning with Optuna: what is searched, how, where it is kept; pruning as a callback of the engine."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from marl.callbacks.base import Callback, monitored
from marl.core.errors import Damaged, UserError
from marl.core.files import read_json, set_aside, write_json
from marl.core.lock import running
from marl.core.schema import check_arguments, show
from marl.engine.run_view import RunView
from marl.launch.storage import driver, open_storage, without_password
from marl.report import statistics

ABANDONED_AFTER = 10.0  # seconds after its start from which a trial that no process works on counts as abandoned


@dataclass
class Parameter:
    """One dimension of the search space: a range (of whole numbers where both ends are) or a list of choices.

    Raises:
        UserError: neither, both, or an impossible range.
    """

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: list[Any] | None = None

    def check(self, key: str) -> None:
        """Raise UserError where the range makes no sense; `key` is what it is called."""
        ranged = self.low is not None and self.high is not None
        if ranged == (self.choices is not None):
            raise UserError(f"space.{key}: needs either low and high, or choices")
        if self.choices is not None and not self.choices:
            raise UserError(f"space.{key}.choices=[]: needs at least one value")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise UserError(f"space.{key}: low={self.low} must not exceed high={self.high}")
        if ranged and self.low is not None and self.log and (self.low <= 0 or self.step is not None):
            raise UserError(f"space.{key}: log=true needs low above 0 and no step")
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if self.step is not None and (self.step <= 0 or (whole and self.step % 1)):
            raise UserError(f"space.{key}.step={self.step}: must be above 0, and whole between whole numbers")

    def suggest(self, trial: optuna.Trial, key: str) -> str:
        """A value for `trial`, as one writes it on the command line."""
        if self.choices is not None:  # as text: Optuna's storages keep no lists
            return trial.suggest_categorical(key, [text(choice) for choice in self.choices])
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(key, self.low, self.high, step=int(self.step or 1), log=self.log))
        assert self.low is not None and self.high is not None  # or `check` refused it
        return repr(trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log))


def text(value: Any) -> str:
    """A YAML value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass
class StudyConfig:
    """A study, from conf/study/NAME.yaml: see there for what the keys mean."""

    base: list[str]
    space: dict[str, Any]
    n_trials: Annotated[int, Field(ge=1)] = 50
    direction: Literal["maximize", "minimize"] = "maximize"
    metric: str | None = None
    seeds: Annotated[list[int], Field(min_length=1)] = field(default_factory=lambda: [0])
    finalists: Annotated[int, Field(ge=1)] = 3
    final_seeds: list[int] = field(default_factory=lambda: [50, 51])
    fresh_seeds: Annotated[list[int], Field(min_length=1)] = field(default_factory=lambda: [100, 101, 102])
    sampler: Literal["tpe", "cmaes", "random"] = "tpe"
    startup_trials: Annotated[int, Field(ge=1)] = 10
    pruner: Literal["median", "hyperband", "none"] = "median"
    pruner_trials: Annotated[int, Field(ge=0)] = 5
    pruner_warmup: Annotated[int, Field(ge=1)] = 1

    def make_sampler(self, seed: int | None) -> optuna.samplers.BaseSampler:
        """The sampler; None: other numbers in every process, as several workers need."""
        if self.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=self.startup_trials, seed=seed)
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(n_startup_trials=self.startup_trials, seed=seed)

    def make_pruner(self, iterations: int) -> optuna.pruners.BasePruner:
        """The pruner of trials of so many `iterations` (all seeds together)."""
        if self.pruner == "median":
            return optuna.pruners.MedianPruner(self.pruner_trials, self.pruner_warmup)
        if self.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=self.pruner_warmup, max_resource=iterations)
        return optuna.pruners.NopPruner()


def read_study(path: Path, changes: Mapping[str, Any]) -> tuple[StudyConfig, dict[str, Parameter]]:
    """The study of a file, with `changes` on top, and its space. Raises UserError for what is wrong with it."""
    try:
        node = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study={path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(node, dict):
        raise UserError(f"study={path}: must be a mapping of keys to values, base and space among them")
    node |= changes
    check_arguments(StudyConfig, node, "")
    config, space = StudyConfig(**node), {}
    for key, entry in config.space.items():
        if not isinstance(entry, dict):
            raise UserError(f"space.{key}={show(entry)}: must be a mapping with low and high, or with choices")
        check_arguments(Parameter, entry, f"space.{key}")
        space[key] = Parameter(**entry)
        space[key].check(key)
    used = [*config.seeds, *config.final_seeds]
    if set(used) & set(config.fresh_seeds):
        raise UserError(f"fresh_seeds={config.fresh_seeds}: must have none of seeds and final_seeds {used}")
    return config, space


def identity(name: str, config: StudyConfig, base: Sequence[str], space: Mapping[str, Parameter]) -> dict[str, Any]:
    """What makes scores comparable, as JSON keeps it: the study's trials must all have it in common."""
    content = {"study": name, "base": sorted(base), "space": {key: asdict(value) for key, value in space.items()}}
    content |= {"metric": config.metric, "direction": config.direction, "seeds": config.seeds}
    return json.loads(json.dumps(content))


def refuse_other(known: Mapping[str, Any], current: Mapping[str, Any], place: str | Path) -> None:
    """Raise UserError where what lies in `place` was begun with another `identity` than `current`."""
    for key, was in known.items():
        now = current.get(key)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            keys = [k for k in {**was, **now} if was.get(k) != now.get(k)]
            was, now = ({k: side[k] for k in keys if k in side} for side in (was, now))
        elif key == "base" and now is not None:
            was, now = [o for o in was if o not in now], [o for o in now if o not in was]
        raise UserError(f"{key}={show(now)}: {place} was begun with {show(was)}; give that again, or another out=")


def open_study(place: str, folder: Path, study_identity: Mapping[str, Any], **parts: Any) -> optuna.Study:
    """The study of the identity `study_identity` in the storage `place`, new or continued, whose files are in `folder`.

    Raises:
        UserError: a storage that cannot be used, or one that holds trials of another identity, as `folder` may.
    """
    file = folder / "study.json"
    try:
        refuse_other(read_json(file), study_identity, folder) if file.exists() else None
    except Damaged as error:  # the storage knows it, too
        set_aside(file, str(error))
    try:
        study = optuna.create_study(
            study_name=study_identity["study"],
            storage=open_storage(place),
            direction=study_identity["direction"],
            load_if_exists=True,
            **parts,
        )
    except Exception as error:  # of a driver, a server, a file or what is in it: each library has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OSError):
            reason = error.strerror or reason
        elif "://" not in place:
            reason = "the file is no study's journal"
        elif isinstance(error, ImportError):
            reason = f"needs {driver(error)}"
        shown = without_password(place)
        raise UserError(f"storage={shown}: {reason} (give a path of a journal file, or a database URL)") from error
    refuse_other(study.user_attrs.get("identity", {}), study_identity, place)
    study.set_user_attr("identity", study_identity)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, dict(study_identity))
    return study


class Pruning(Callback):
    """Reports evaluations to a trial and stops the run where the pruner says so.

    Args:
        trial: the trial; None: only the last evaluation is kept.
        metric: what is reported; None: the trainer's `monitor`.
        offset: iterations that earlier seeds of the trial took.

    Attributes:
        value: the last evaluation. pruned: whether the pruner stopped the run.
    """

    def __init__(self, trial: optuna.Trial | None = None, metric: str | None = None, offset: int = 0):
        self.trial, self.metric, self.offset = trial, metric, offset
        self.value, self.pruned = float("nan"), False

    def on_evaluation(self, trainer: RunView, evaluation: dict[str, float]) -> None:
        self.value = monitored(evaluation, self.metric or trainer.monitor, "metric")
        if self.trial is None:
            return
        self.trial.report(self.value, self.offset + trainer.iteration)
        if trainer.iteration < trainer.iterations and self.trial.should_prune():
            self.pruned = True
            trainer.stop(f"pruned: {self.value:.4g} at iteration {trainer.iteration} is behind other trials")


def reclaim(study: optuna.Study, folder: Path) -> list[int]:
    """Put trials that a killed process left behind back into the queue; returns their numbers.

    A trial is abandoned if its folder lies here and no process holds its lock.
    """
    reclaimed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        place = folder / str(trial.number)
        start_time = (trial.datetime_start or datetime.now()).timestamp()
        if time.time() - start_time < ABANDONED_AFTER or not place.exists() or running(place):
            continue
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        study.enqueue_trial(trial.params, skip_if_exists=False)
        reclaimed.append(trial.number)
    return reclaimed


def describe(trial: FrozenTrial) -> list[str]:
    """A trial as a row: number, state, score, iterations it reached, seconds, its values, why it failed."""
    steps = trial.intermediate_values
    value = trial.value if trial.value is not None else (steps[max(steps)] if steps else None)
    seconds = trial.duration.total_seconds() if trial.duration else None
    return [
        str(trial.number),
        trial.state.name.lower(),
        "–" if value is None else f"{value:.4g}",
        str(max(steps)) if steps else "–",
        "–" if seconds is None else f"{seconds:.0f}",
        ", ".join(f"{key}={short(value)}" for key, value in trial.params.items()),
        trial.user_attrs.get("reason", ""),
    ]


COLUMNS = ["trial", "state", "score", "reported up to iteration", "seconds", "values", "why it failed"]


def short(value: Any) -> str:
    """A value to four figures."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the scores' variance each parameter explains (fANOVA); nothing with fewer than 8 complete trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 8 or len({trial.value for trial in complete}) < 2:
        return {}
    return optuna.importance.get_param_importances(study)


def finished(trials: Sequence[FrozenTrial]) -> int:
    """How many trials count towards a study's `n_trials`: complete and pruned ones."""
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def verdict(best: Sequence[float], default: Sequence[float], direction: str) -> str:
    """What the scores of both on fresh seeds say, in one sentence; an interval that holds 0.5 tells nothing apart."""
    x, y = ([np.array(values)] for values in (best, default))
    sides = (x, y) if direction == "maximize" else (y, x)
    chance = float(statistics.probability_of_improvement(*sides))
    low, high = statistics.improvement_interval(*sides)
    if len(best) < 2 or len(default) < 2:  # no interval: chance alone may have put them in this order
        return f"Not told apart from the default (one seed): {best[0]:.4g} against {default[0]:.4g}."
    figures = [f"{float(statistics.iqm(side)):.4g}" for side in (x, y)]
    where = f"IQM {figures[0]} against {figures[1]} on {len(best)} fresh seeds; P(better) {chance:.2f}"
    where += f" [{low:.2f}, {high:.2f}]"
    if low > 0.5:
        return f"Better than the default: {where}."
    return f"{'Not told apart from' if high >= 0.5 else 'Worse than'} the default: {where}."
