"""A run's `config.yaml`, from which resume, evaluation and export rebuild the run."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from marl.core import files, run_directory
from marl.core.moved import update_config


def write_config(run_dir: Path, config: Mapping) -> None:
    """Write a run's `config.yaml`. Raises UserError."""
    files.write(run_dir / run_directory.CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())


def read_config(path: Path) -> dict:
    """A run's `config.yaml`, with interpolations as they stand.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is no configuration of a run.
    """
    run_directory.check_config(path)
    return update_config(OmegaConf.to_container(OmegaConf.load(path)))
