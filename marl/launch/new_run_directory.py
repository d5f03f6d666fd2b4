"""The directory of a new run, made before Hydra makes it: no two runs share a name."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from marl.core import distributed, lock
from marl.core.errors import UserError
from marl.core.run_directory import make, make_new, remove_empty
from marl.launch.cli import guard


class NewRunDirectory(Callback):
    """Makes the directory of a single run before Hydra does, so that it is known what this process made.

    A name that holds the time is this run's alone: where it is taken, `_2`, `_3` … is added.
    """

    created_folders: list[Path] = []  # by this process, the outermost first

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Set `hydra.run.dir` to a directory that now exists. Ends the process where it cannot be made."""
        with guard():  # Hydra would make a warning of an exception
            path, timed = str(OmegaConf.select(config, "hydra.run.dir")), named_by_time(config)
            path, mistake = distributed.agree(self.choose(path, timed) if distributed.main() else None)
            if mistake:
                raise UserError(mistake)
            config.hydra.run.dir = path.replace("${", r"\${")
            if config.get("paths") is not None:
                config.paths.run_dir = config.hydra.run.dir

    def choose(self, path: str, timed: bool) -> tuple[str, str | None]:
        """The directory and no mistake, or a mistake to tell in all processes."""
        try:
            if timed and distributed.restarted() and (started := begun_here(Path(path).parent)):
                return str(started), None
            NewRunDirectory.created_folders = make_new(path) if timed else make(path)
            return str(NewRunDirectory.created_folders[-1] if timed else path), None
        except UserError as error:
            return path, str(error)

    @classmethod
    def remove_unused(cls) -> None:
        """Remove what this process made, as far as it is empty."""
        remove_empty(cls.created_folders)
        cls.created_folders = []


def named_by_time(config: DictConfig) -> bool:
    """Whether the name of the run's directory holds the time, and so is none that the user chose."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    text = str(node["hydra"]["run"]["dir"])
    return "${now:" in text or (text == "${paths.run_dir}" and "${now:" in str(node["paths"]["run_dir"]))


def begun_here(folder: Path) -> Path | None:
    """The run in `folder` that this torchrun began before it restarted its processes."""
    for path in folder.glob(f"*/{lock.RUN}"):
        if path.read_text(errors="replace").strip() == lock.owner():
            return path.parent
    return None
