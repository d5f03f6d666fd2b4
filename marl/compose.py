"""From a command line to objects: compose the configuration with Hydra, check it, build what it describes."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from marl import checkpoint, seeding
from marl.engine import Trainer
from marl.errors import UserError, closest
from marl.schema import check_value, resolve, validate
from marl.task import Task

CONF = Path(__file__).resolve().parent.parent / "conf"
FREE = re.compile(r"^[\w.]*kwargs\.\w")  # keys below scenario_kwargs and the like need no "+" to be added
Job = Callable[[DictConfig, Path], Any]


# ---- compose -------------------------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command line `overrides` stands for, for notebooks and tests.

    With `resume=RUN_DIR` among them it is the one that run was started with, the other overrides on top.

    Raises:
        UserError: an unknown key or group option, or a broken override.
    """
    overrides = _free(overrides)
    run = [o.partition("=")[2] for o in overrides if o.startswith("resume=")]
    if run and run[-1] not in ("", "null"):
        return saved(run[-1], overrides)
    with worded(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def saved(run: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration in a run directory (or beside a checkpoint), with `overrides` on top.

    Raises:
        UserError: no configuration there, or an override that does not fit it.
    """
    path = config_of(run)
    if path is None:
        raise UserError(f"{run}: no run directory with a config.yaml, nor a checkpoint in one")
    cfg = OmegaConf.load(path)
    OmegaConf.set_struct(cfg, True)
    with worded():
        for override in OverridesParser.create().parse_overrides(_free(overrides)):
            key = override.key_or_group
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: no sweeps over a saved run; give one value")
            if key.startswith("hydra.") or key in ("experiment", "debug"):
                raise UserError(f"{override.input_line}: cannot be changed for a saved run; name single keys instead")
            if override.is_delete():
                raise UserError(f"{override.input_line}: nothing can be deleted from a saved run; set it to null")
            value = override.value()
            if (CONF / key).is_dir() and isinstance(value, str):
                value = OmegaConf.to_container(compose([override.input_line])[key], resolve=False)
                with open_dict(cfg):
                    cfg[key] = value
            else:
                added = override.is_add() or override.is_force_add()
                OmegaConf.update(cfg, key, value, merge=True, force_add=added)
    return cfg


def config_of(run: str | Path) -> Path | None:
    """`config.yaml` of a run directory, or of the one that a checkpoint lies in; None where there is none."""
    run = Path(run)
    places = [run] if run.is_dir() else [run.parent, run.parent.parent] if run.is_file() else []
    return next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)


def check(cfg: DictConfig) -> dict[str, Any]:
    """`cfg` resolved to plain Python and validated (`marl.schema`), with every key that has no value named.

    Raises:
        UserError: the first mistake, in one sentence.
    """
    with worded():
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    validate(config)
    device(config["device"])
    return config


# ---- build ---------------------------------------------------------------------------------------------------


def device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, else the CPU. Raises UserError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(name)
    here = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= here:
        has = f"{here} GPUs" if here else "no GPU that torch can use"
        raise UserError(f"device={name}: this machine has {has}; auto and cpu are allowed")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device={name}: this machine has no such device; auto and cpu are allowed")
    return found


def part(node: Mapping[str, Any], **arguments: Any) -> Any:
    """What a node with `_target_` stands for, called with `arguments` as well; errors come as they were raised."""
    try:
        # Arguments by a call of our own: Hydra would turn dataclasses among them into configurations.
        return instantiate({**node, "_partial_": True}, _convert_="all")(**arguments) if arguments else instantiate(
            dict(node), _convert_="all"
        )
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


def build_task(config: Mapping[str, Any]) -> Task:
    """The task of a checked configuration (`check`), on its device, with the weights of `init_from` if given.

    The task's constructor is called with those parts of the tree (`env`, `algo`, `network`, `seed`, …) that its
    signature names.

    Raises:
        UserError: a part that the task needs is null, or whatever the constructors object to.
    """
    import inspect

    node = config["task"]
    wanted = inspect.signature(resolve(node["_target_"], "task._target_"), eval_str=True).parameters
    arguments: dict[str, Any] = {}
    seeding.seed_global(config["seed"])
    for name, parameter in wanted.items():
        value = config.get(name)
        if name not in config or name in node:
            continue
        if value is None and parameter.default is not parameter.empty:
            continue
        if value is None:
            options = ", ".join(sorted(f"{name}={o}" for o in group_options(name)))
            raise UserError(f"{name}=null: the task {config['name']} needs one ({options or 'a value'})")
        has_target = isinstance(value, Mapping) and "_target_" in value
        arguments[name] = part(value) if has_target else value
    if "device" in wanted:
        arguments["device"] = device(config["device"])
    task = part(node, **arguments)
    if config["init_from"] and not config["resume"]:
        load_weights(task, checkpoint.find(config["init_from"]))
    return task
