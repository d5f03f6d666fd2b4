"""Everything that decides a run's next step, as one dictionary: taken for a checkpoint, put back on resume."""

from collections.abc import Mapping, Sequence
from typing import Any

from marl import distributed, divergence, resume, seeding, summary


def capture(trainer: Any) -> dict[str, Any]:
    """Modules, optimiser, schedule, scaler, every process's task and streams, counters, configuration, versions."""
    own = {"task": trainer.task.state_dict(), "random": seeding.global_state()}
    weights = {"loss": trainer.task.loss.state_dict()}
    if trainer.averaging is not None:  # "loss" is what was evaluated, and what everyone but a resumed run wants
        with trainer.averaged():
            averaged = {name: value.clone() for name, value in weights["loss"].items()}
        weights = {"loss": averaged, "raw": trainer.task.loss.state_dict(), "average": trainer.averaging.state_dict()}
    return {
        **weights,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "processes": distributed.gather(own),
        "callbacks": {name: callback.state_dict() for name, callback in _named(trainer.callbacks).items()},
        "iteration": trainer.iteration,
        "iterations": trainer.iterations,
        "budget": {trainer.task.unit: trainer.units},
        "restores": trainer.restores,
        "lowered": trainer.lowered,
        "stop_reason": trainer.stop_reason,
        "best": trainer.best,
        "evaluation": trainer.evaluation,
        "seconds": dict(trainer.seconds),
        "config": trainer.config,
        "versions": summary.versions(),
    }


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back what `capture` took. Another number of processes starts new episodes, from new streams."""
    longer = trainer.iterations != state["iterations"]
    groups = trainer.schedule.replay(state["schedule"]) if longer else None
    trainer.task.loss.load_state_dict(state.get("raw", state["loss"]))
    if trainer.averaging is not None and "average" in state:
        trainer.averaging.load_state_dict(state["average"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if groups is None:
        trainer.schedule.load_state_dict(state["schedule"])
    else:
        for group, settings in zip(trainer.optimizer.param_groups, groups, strict=True):
            group.update(settings)
        divergence.lower_rates(trainer.optimizer, trainer.schedule.scheduler, state.get("lowered", 1.0))
    trainer.scaler.load_state_dict(state["scaler"])
    if len(state["processes"]) == distributed.world():
        own = state["processes"][distributed.rank()]
        trainer.task.load_state_dict(own["task"])
        seeding.restore_global_state(own["random"])
    else:
        trainer.task.rejoin(state["iteration"], state["processes"][0]["task"])
    named, saved = _named(trainer.callbacks), state["callbacks"]
    if isinstance(saved, list):  # of a checkpoint that kept them by their places
        saved = dict(zip(named, saved, strict=False))
    for name in named.keys() & saved.keys():  # one may be new
        named[name].load_state_dict(saved[name])
    trainer.iteration, trainer.best, trainer.evaluation = state["iteration"], state["best"], state["evaluation"]
    trainer.restores, trainer.lowered = state["restores"], state.get("lowered", 1.0)
    changed = resume.differences(state["config"], trainer.config)
    if not longer and not any(key.startswith("callbacks") for key in changed):
        trainer.stop_reason = state["stop_reason"]
    if trainer.iteration >= trainer.iterations and distributed.main():
        decides = f"trainer.max_iterations={trainer.max_iterations}" if trainer.max_iterations else "its budget"
        print(f"nothing left to do: iteration {trainer.iteration} of {trainer.iterations}, by {decides}", flush=True)
    trainer.seconds.update(state["seconds"])
    trainer.logged = dict(trainer.seconds)


def _named(callbacks: Sequence[Any]) -> dict[str, Any]:
    """{name of the class, with a number from the second of its kind on: callback}."""
    named: dict[str, Any] = {}
    for callback in callbacks:
        kind = type(callback)
        name, number = f"{kind.__module__}.{kind.__qualname__}", 1
        while (key := name if number == 1 else f"{name} {number}") in named:
            number += 1
        named[key] = callback
    return named
