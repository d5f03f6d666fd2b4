"""From a command line to objects: compose the configuration with Hydra, check it, build what it describes."""

import argparse
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from marl import checkpoint, device, distributed, seeding, terminal
from marl.cli import RESUME, SAME_COMMAND, flags_first, guard
from marl.engine import Trainer
from marl.errors import UserError, closest
from marl.imports import find_user_modules, resolve
from marl.kinds import build as part
from marl.kinds import validate
from marl.moved import update_config
from marl.overrides import CONF, before, chosen, drop_keywords, group_options, named, nearest, tidy, value_of
from marl.run_directory import NewRunDirectory, read_config
from marl.task import Task
from marl.transfer import begin_from, load_weights  # noqa: F401 - the latter for users of this module

COMPOSING = (HydraException, OmegaConfBaseException)
Job = Callable[[DictConfig, Path], Any]


# ---- compose -------------------------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command line `overrides` stands for, for notebooks and tests.

    With `resume=RUN_DIR` among them it is the one that run was started with, the other overrides on top.

    Raises:
        UserError: an unknown key or group option, or a broken override.
    """
    with worded(lambda: True):
        overrides = tidy(overrides)
    run = value_of(overrides, "resume")
    if run is not None:
        return saved(run, overrides)
    with worded(lambda: True), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides, return_hydra_config=True)
        _settle(cfg, overrides)
    cfg.experiment = cfg.hydra.runtime.choices.get("experiment")
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Where `overrides` name another scenario, drop the keywords of the one before; to be called inside of Hydra."""
    if named(overrides):
        drop_keywords(cfg, hydra.compose("config", before(overrides)), overrides)


def saved(run: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration in a run directory (or beside a checkpoint), with `overrides` on top.

    A group option replaces the whole group. The run's own `experiment=` and directory may be repeated.

    Raises:
        UserError: no configuration there, or an override that does not fit it.
    """
    path = checkpoint.config_of(run)
    if path is None and Path(run).suffix == ".pt" and Path(run).is_file():  # one that lies alone: it tells, too
        path, cfg = Path(run), OmegaConf.create(checkpoint.load(run)["config"])
    elif path is None:
        held = "holds no configuration" if Path(run).is_file() else "no run directory with a config.yaml"
        raise UserError(f"{run}: {held}; give a run directory or a checkpoint (.pt)")
    else:
        cfg = OmegaConf.create(read_config(path))
    OmegaConf.set_struct(cfg, True)
    with worded(lambda: True):
        overrides, earlier = tidy(overrides), cfg.copy()
        parsed = OverridesParser.create().parse_overrides(overrides)
        choices = [f"experiment={cfg.experiment}"] if cfg.experiment else []
        choices += [o.input_line for o in parsed if chosen(o) and o.key_or_group not in ("experiment", "debug")]
        composed = compose(choices) if any(map(chosen, parsed)) else None
        for override in parsed:
            key, text = override.key_or_group, override.input_line
            if override.is_sweep_override():
                raise UserError(f"{text}: a saved run cannot be swept over; give one value")
            value = override.value()
            if key in ("experiment", "hydra.run.dir"):
                own = cfg.experiment if key == "experiment" else path.parent.resolve()
                if (value if key == "experiment" else Path(value).resolve()) != own:
                    raise UserError(f"{text}: this run has {key}={own}, which stays; change single keys instead")
            elif key.startswith("hydra.") or key == "debug" or override.is_delete():
                raise UserError(f"{text}: does not apply to a saved run; change single keys instead")
            elif chosen(override):
                cfg[key] = OmegaConf.to_container(composed[key], resolve=False)
            else:
                added = override.is_add() or override.is_force_add()
                OmegaConf.update(cfg, key, value, merge=True, force_add=added)
        if not any(o.key_or_group == "env" for o in parsed):
            drop_keywords(cfg, earlier, overrides)
    return cfg


def check(cfg: DictConfig) -> dict[str, Any]:
    """`cfg` resolved to plain Python and validated (`marl.kinds`), with every key that has no value named.

    Raises:
        UserError: the first mistake, in one sentence.
    """
    with worded():
        config = update_config(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    validate(config)
    device.pick(config["device"])
    return config


# ---- build ---------------------------------------------------------------------------------------------------


def build_task(config: Mapping[str, Any]) -> Task:
    """The task of a checked configuration (`check`), on its device, with the weights of `init_from` if given.

    Its constructor is called with those keys of the tree (`env`, `algo`, `network`, `seed`, …) that it names.

    Raises:
        UserError: a part that the task needs is null, or whatever the constructors object to.
    """
    config = distributed.share(config)
    node = config["task"]
    constructor = resolve(node["_target_"], "task._target_")
    seeding.seed_global(config["seed"])
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
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
        arguments["device"] = device.pick(arguments["device"])
    device.keep_freed_memory()
    task = part(node, **arguments)
    if config["init_from"] and not config["resume"]:
        begin_from(task, config["init_from"], config.get("strict", True))
    return task


def rebuild(run: str | Path, overrides: Sequence[str] = (), weights: bool = True) -> tuple[dict[str, Any], Task]:
    """The checked configuration and the task of a run directory or checkpoint, with its `weights` or fresh ones.

    The run's number of threads is set too: sums in the same order give the same bits.

    Raises:
        UserError: no run there, overrides that don't apply to it, or weights that don't fit what they made of it.
    """
    cfg = saved(run, [*overrides, "++strict=true"])
    cfg.resume, cfg.init_from = None, str(run) if weights else None
    config = check(cfg)
    build_trainer(config)
    return config, build_task(config)


def build_trainer(config: Mapping[str, Any]) -> Trainer:
    """The engine with the settings of `config["trainer"]`; sets torch's number of threads."""
    return part(config["trainer"])


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


# ---- the command line ------------------------------------------------------------------------------------------


def run(job: Job, *errors: type[Exception]) -> None:
    """A script: compose from `sys.argv` (`-m` sweeps), call `job(cfg, run_dir)`, which returns the metric.

    `resume=RUN_DIR` continues in that directory, with the configuration that it holds. Mistakes of the user
    (UserError, Hydra's own complaints, and `errors`) end with one line on stderr and exit code 2.
    """
    find_user_modules()
    sweeping = bool({"-m", "--multirun"} & set(sys.argv))
    composing = True  # until the job begins
    with guard(*errors, again=SAME_COMMAND if sweeping else RESUME), worded(lambda: composing):
        arguments = sys.argv[1:] = flags_first(tidy(sys.argv[1:]))
        distributed.start()
        if value_of(arguments, "resume") is not None:
            if sweeping:
                raise UserError("resume=…: continues one run; it cannot be part of a sweep")
            parser = argparse.ArgumentParser(add_help=False)
            parser.add_argument("-cd", "--config-dir")  # of no use here: the run's configuration is whole
            cfg = compose(parser.parse_known_args(arguments)[1])
            composing = False
            home = checkpoint.config_of(cfg.resume)
            if home is None:
                told = "lies in no run directory that could go on; init_from=FILE starts a new run from its weights"
                raise UserError(f"resume={cfg.resume}: {told}")
            job(cfg, home.parent.resolve())
            distributed.stop()
            return

        from marl import multirun  # which builds on this module

        @wraps(job)
        def inside_hydra(cfg: DictConfig) -> Any:
            nonlocal composing
            composing = False
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            cfg.experiment = HydraConfig.get().runtime.choices.get("experiment")
            _settle(cfg, HydraConfig.get().overrides.task)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return multirun.work(job, cfg, run_dir, errors)
            try:
                with guard(*errors, again=RESUME), worded():  # here: Hydra would print a line of its own and exit 1
                    return job(cfg, run_dir)
            except SystemExit:
                NewRunDirectory.remove_unused()
                raise

        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would otherwise print, for the guard to word
        start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(inside_hydra)
        with terminal.fitted() if {"-h", "--help"} & set(arguments) else nullcontext():
            multirun.run(arguments, start) if sweeping else start()
        distributed.stop()


@contextmanager
def worded(composing: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn complaints of Hydra and OmegaConf into UserErrors.

    While `composing()` all that they raise is one: Hydra checks little of a command line, and ends with ValueErrors,
    TypeErrors and failed assertions of its own where an override is of a wrong kind.
    """
    try:
        yield
    except COMPOSING as error:
        raise UserError(sentence(error)) from error
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError) or not composing():
            raise
        why = sentence(error) or type(error).__name__
        raise UserError(f"cannot compose a configuration from {shlex.join(sys.argv[1:])}: {why}") from error


def sentence(error: Exception) -> str:
    """What Hydra or OmegaConf complains about, in one sentence with the closest names."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").partition("/")
        if group == "hydra":
            kind, _, name = option.rpartition("/")
            known = error.options or ()
            more = "; others need pip install -e '.[sweep]'" if kind == "launcher" and "joblib" not in known else ""
            return f"hydra/{kind}={name}: no such option{closest(name, known) or more} (there are {', '.join(known)})"
        return nearest(group, option)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, with quotes around special characters"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: a value is required; give {cause.full_key}=…"
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
            names = [str(key) for key in cause.parent_node if str(key)[0] != "_" and key != "hydra"]
            if not names and str(cause.full_key).startswith("hydra.launcher."):
                return f"unknown key '{cause.full_key}': this launcher has none; hydra/launcher=joblib has n_jobs"
            if cause.parent_node._get_parent() is None:
                names += [path.name for path in CONF.iterdir() if path.is_dir() and path.name not in names]
            hint = closest(cause.key, names) or f"; '+{cause.full_key}=…' adds a key"
            return f"unknown key '{cause.full_key}'{hint} (there are {', '.join(names)})"
    there = re.search(r"Could not append to config. An item is already at '([^']+)'", str(causes[-1]) + str(error))
    if there:
        return f"+{there[1]}=…: this key is there already; write {there[1]}=… without the '+'"
    text = ": ".join(dict.fromkeys(str(cause).strip().splitlines()[0] for cause in causes if str(cause).strip()))
    return f"{text}; -m runs one job per value, key=[a,b] is a list" if text.startswith("Ambiguous value") else text
