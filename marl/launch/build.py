"""From a checked configuration to objects: each is built once, and the process set up for them."""

import inspect
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from marl.checkpoints.checkpoint_file import description
from marl.checkpoints.transfer import begin_from, load_policy
from marl.config.compose import check, saved
from marl.config.conf_tree import group_options
from marl.core import device, distributed, run_directory, seeding
from marl.core.errors import UserError
from marl.core.imports import resolve
from marl.core.kinds import build as part
from marl.core.zoo import index as zoo
from marl.engine.trainer import Trainer
from marl.native import threads as helper_threads
from marl.task import Task


def configure_process(
    threads: int | None = None, helpers: int | None = None, deterministic: bool = False, tf32: bool = False
) -> None:
    """Set what is the whole process's; results depend on it, so it comes before anything is computed.

    Args:
        threads: CPU threads for torch; None: as they are.
        helpers: threads of our own that may take a share of an MLP's rows; None: as many as are useful.
        deterministic: refuse algorithms whose result depends on timing.
        tf32: let a GPU multiply matrices with mantissas of 10 bits.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    helper_threads.allow(helpers)
    seeding.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def build_task(config: Mapping[str, Any], trains: bool = True) -> Task:
    """The task of a checked configuration (`check`), on its device, with the weights of `init_from` if given.

    Its constructor is called with those keys of the tree (`env`, `algo`, `network`, `seed`, …) that it names.

    trains: False = to be judged and played only; passed to constructors that take it, because training needs more.

    Raises:
        UserError: a part that the task needs is null, or whatever the constructors object to.
    """
    config = distributed.share(config)
    zoo.of_run((config.get("zoo") or {}).get("url"))
    begins_from = run_directory.find(config["init_from"]) if config["init_from"] and not config["resume"] else None
    node = config["task"]
    constructor = resolve(node["_target_"], "task._target_")
    seeding.seed_global(config["seed"])
    arguments: dict[str, Any] = {}
    parameters = inspect.signature(constructor).parameters
    if not trains and "trains" in parameters:
        arguments["trains"] = False
    for name, parameter in parameters.items():
        if name not in config or name in node:
            continue
        value = config[name]
        if value is None and parameter.default is not None:
            options = ", ".join(group_options(name))
            hint = f"; choose one of {options}" if options else ""
            raise UserError(f"{name}=null: {constructor.__name__} needs a value{hint}")
        if value is not None:
            arguments[name] = part(value) if isinstance(value, Mapping) and "_target_" in value else value
    if "device" in arguments:
        arguments["device"] = where = device.pick(arguments["device"])
        if where.type == "cuda" and where.index is not None:
            torch.cuda.set_device(where)  # graphs are captured, and events recorded, on the current one
    device.keep_freed_memory()
    task = part(node, **arguments)
    if begins_from:
        begin_from(task, str(begins_from), config.get("strict", True), config.get("init_map"))
    return task


def rebuild(run: str | Path, overrides: Sequence[str] = (), weights: bool = True) -> tuple[dict[str, Any], Task]:
    """The checked configuration and the task of a run directory or checkpoint, with its `weights` or fresh ones.

    `run` may be a policy of the zoo, too (`zoo/NAME`, or its file). Weights are taken as they are, and a curriculum's
    are judged by the full task.

    The run's number of threads is set too: sums in the same order are bitwise identical.

    Raises:
        UserError: no run there, overrides that don't apply to it, or weights that don't fit what they made of it.
    """
    run = zoo.located(run)
    cfg = saved(run, [*overrides, "++strict=true", "++init_map=null", "++curriculum.evaluate=final"])
    policy = weights and description(run) is not None
    cfg.resume, cfg.init_from = None, str(run) if weights and not policy else None
    config = check(cfg)
    build_trainer(config)
    task = build_task(config, trains=False)
    if policy:
        load_policy(task, run)
    return config, task


def build_trainer(config: Mapping[str, Any]) -> Trainer:
    """The engine with the settings of `config["trainer"]`; sets the process up as these say."""
    trainer = part(config["trainer"])
    tf32 = trainer.update_config.precision == "tf32"
    configure_process(trainer.threads, trainer.helpers, trainer.deterministic, tf32)
    return trainer


def build_setup(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rest of what `Trainer.fit` takes: optimiser, schedule, callbacks, loggers, seed, the configuration."""
    return {
        "optimizer": part(config["optimizer"]),
        "schedule": part(config["scheduler"]),
        "callbacks": [part(node) for node in (config.get("callbacks") or {}).values() if node],
        "loggers": [part(node) for node in (config.get("logger") or {}).values() if node],
        "seed": config["seed"],
        "config": dict(config),
        "command": shlex.join(sys.argv),
    }
