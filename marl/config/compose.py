"""From a command line to a configuration: composed with Hydra, or a saved one changed, and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from marl.checkpoints import checkpoint_file
from marl.config.conf_tree import CONF
from marl.config.hydra_errors import translate_hydra_errors
from marl.config.overrides import before, chosen, drop_keywords, named, same_task, take_task, tidy, value_of
from marl.config.preset_settings import left_out
from marl.config.saved_config import read_config
from marl.core import device, run_directory
from marl.core.errors import UserError
from marl.core.imports import require_checkout
from marl.core.kinds import validate
from marl.core.moved import update_config
from marl.core.zoo import index as zoo

HERE = {"url": None}  # the zoo of a configuration in a file of unknown origin: none may choose whom to ask


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command line `overrides` stands for, for notebooks and tests.

    With `resume=RUN_DIR` among them it is the one that run was started with, the other overrides on top.

    Raises:
        UserError: an unknown key or group option, or a broken override.
    """
    require_checkout()
    with translate_hydra_errors(lambda: True):
        overrides = tidy(overrides)
    run = value_of(overrides, "resume")
    if run is not None:
        return saved(run, overrides)
    with translate_hydra_errors(lambda: True), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides, return_hydra_config=True)
        settle(cfg, overrides)
    cfg.experiment = cfg.hydra.runtime.choices.get("experiment")
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Drop what means nothing to what `overrides` choose; to be called inside of Hydra.

    Where they name another scenario: the keywords of the one before. Where they choose another algorithm than a preset:
    the preset's settings that this one has not. Where they choose another environment than a preset: the preset's
    keyword arguments and time limit, which are of its own.
    """
    preset, env = value_of(overrides, "experiment"), value_of(overrides, "env")
    if preset is not None and env is not None and cfg.env is not None:
        own = hydra.compose("config", [f"env={env}"]).env
        if not same_task(own, hydra.compose("config", [f"experiment={preset}"]).env):
            take_task(cfg.env, own, overrides)
    if preset is not None and value_of(overrides, "algo") is not None:
        own = hydra.compose("config", [f"experiment={preset}"]).algo
        with open_dict(cfg):
            for name in left_out(cfg.algo, own, overrides):
                del cfg.algo[name]
    if named(overrides):
        drop_keywords(cfg, hydra.compose("config", before(overrides)), overrides)


def saved(run: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration in a run directory, beside or in a checkpoint, or in a policy of the zoo; `overrides` on top.

    A group option replaces the whole group. The run's own `experiment=` and directory may be repeated.

    Raises:
        UserError: no configuration there, or an override that does not fit it.
    """
    run = zoo.located(run)
    path = run_directory.config_of(run)
    metadata = checkpoint_file.description(run) if path is None and run.is_file() else None
    if metadata and isinstance(metadata.get("config"), dict):  # a policy of the zoo
        path, cfg = run, OmegaConf.create({**update_config(metadata["config"]), "zoo": HERE})
    elif path is None and Path(run).suffix == ".pt" and Path(run).is_file():  # one that lies alone: it tells, too
        path, cfg = Path(run), OmegaConf.create({**checkpoint_file.load(run)["config"], "zoo": HERE})
    elif path is None:
        reason = "holds no configuration" if Path(run).is_file() else "no run directory with a config.yaml"
        raise UserError(f"{run}: {reason}; give a run directory or a checkpoint (.pt)")
    else:
        cfg = OmegaConf.create(read_config(path))
        if "zoo" in cfg and "${" in str(OmegaConf.to_container(cfg.zoo, resolve=False)):
            raise UserError(f"{path}: zoo.url may hold no interpolation, since it says whom to ask")
    OmegaConf.set_struct(cfg, True)
    with translate_hydra_errors(lambda: True):
        overrides, earlier = tidy(overrides), cfg.copy()
        parsed = OverridesParser.create().parse_overrides(overrides)
        choices = [f"experiment={cfg.experiment}"] if cfg.experiment else []
        choices += [str(o.input_line) for o in parsed if chosen(o) and o.key_or_group not in ("experiment", "debug")]
        composed = compose(choices) if any(map(chosen, parsed)) else None
        for override in parsed:
            key, text = override.key_or_group, override.input_line
            if override.is_sweep_override():
                raise UserError(f"{text}: a saved run cannot be swept over; give one value")
            value = override.value()
            if key in ("experiment", "hydra.run.dir"):
                current = cfg.experiment if key == "experiment" else path.parent.resolve()
                if (value if key == "experiment" else Path(str(value)).resolve()) != current:
                    raise UserError(f"{text}: this run has {key}={current}, which stays; change single keys instead")
            elif key.startswith("hydra.") or key == "debug" or override.is_delete():
                raise UserError(f"{text}: does not apply to a saved run; change single keys instead")
            elif composed is not None and chosen(override):
                cfg[key] = OmegaConf.to_container(composed[key], resolve=False)
            else:
                added = override.is_add() or override.is_force_add()
                OmegaConf.update(cfg, key, value, merge=True, force_add=added)
        if not any(o.key_or_group == "env" for o in parsed):
            drop_keywords(cfg, earlier, overrides)
    return cfg


def check(cfg: DictConfig) -> dict[str, Any]:
    """`cfg` resolved to plain Python and validated (`marl.core.kinds`), with every key that has no value named.

    Raises:
        UserError: the first mistake, in one sentence.
    """
    with translate_hydra_errors():
        config = update_config(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    validate(config)
    device.pick(config["device"])
    return config
