"""A run's directory: no two runs share a name, one process is in it, and a run that never began leaves no trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from marl import checkpoint, distributed, files, lock
from marl.cli import guard
from marl.errors import Damaged, UserError
from marl.moved import update_config

CONFIG = "config.yaml"
WRITTEN = (CONFIG, "metrics.csv", "summary.json", "checkpoints")  # what a run replaces
KEYS = ("task", "trainer", "optimizer", "seed")  # every configuration of a run has these
LOCKS = (lock.RUN, lock.JOB)


# ---- names -----------------------------------------------------------------------------------------------------


class NewRunDirectory(Callback):
    """Makes the directory of a single run before Hydra does, so that it is known what this process made.

    A name that holds the time is this run's alone: where it is taken, `_2`, `_3` … is added.
    """

    made: list[Path] = []  # by this process, the outermost first

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
            if timed and distributed.restarted() and (begun := begun_here(Path(path).parent)):
                return str(begun), None
            NewRunDirectory.made = make_new(path) if timed else make(path)
            return str(NewRunDirectory.made[-1] if timed else path), None
        except UserError as error:
            return path, str(error)

    @classmethod
    def remove_unused(cls) -> None:
        """Remove what this process made, as far as it is empty."""
        remove_empty(cls.made)
        cls.made = []


def named_by_time(config: DictConfig) -> bool:
    """Whether the name of the run's directory holds the time, and so is none that the user chose."""
    node = OmegaConf.to_container(config, resolve=False)
    text = str(node["hydra"]["run"]["dir"])
    return "${now:" in text or (text == "${paths.run_dir}" and "${now:" in str(node["paths"]["run_dir"]))


def begun_here(folder: Path) -> Path | None:
    """The run in `folder` that this torchrun began before it restarted its processes."""
    for path in folder.glob(f"*/{lock.RUN}"):
        if path.read_text(errors="replace").strip() == lock.owner():
            return path.parent
    return None


def make(path: str | Path) -> list[Path]:
    """Make a folder and those above it that are missing; the ones that this call made, the outermost first.

    Raises:
        UserError: it cannot be made.
    """
    if not str(path):
        raise UserError("hydra.run.dir=: must name a folder")
    path, made = Path(path).absolute(), []
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                with suppress(FileExistsError):  # another process was faster; a file in the way is told below
                    folder.mkdir()
                    made.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(0, "there is a file of this name")
    except OSError as error:
        remove_empty(made)
        raise UserError(f"cannot write to the folder {path}: {files.reason(error)}") from error
    return made


def make_new(path: str | Path) -> list[Path]:
    """As `make`, but the last folder is new and this process's: where the name is taken, `_2`, `_3` … is added."""
    path = Path(path).absolute()
    above = make(path.parent)
    for number in count(1):
        place = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            place.mkdir()
            return [*above, place]
        except FileExistsError:
            continue
        except FileNotFoundError:  # a failed start beside this one has removed the folder above
            above += make(path.parent)
        except OSError as error:
            remove_empty(above)
            raise UserError(f"cannot write to the folder {place}: {files.reason(error)}") from error
    raise AssertionError("count() has no end")


def remove_empty(made: list[Path]) -> None:
    """Remove folders that are empty, the innermost (last) first."""
    for folder in reversed(made):
        with suppress(OSError):  # it holds something, of whomever
            folder.rmdir()


# ---- use -------------------------------------------------------------------------------------------------------


class Held:
    """A run's directory while this process holds it. begun: whether training began, so that all in it stays."""

    begun = False


@contextmanager
def exclusive(run_dir: Path, new: bool, needed: bool = True) -> Iterator[Held]:
    """Hold `run_dir` for one run; where an exception comes before `Held.begun`, it is left as it was found.

    Args:
        new: whether a run begins there, which must not replace an earlier one.
        needed: whether this process is the one that writes.

    Raises:
        UserError: another process is training there, files there are not ours, or a new run would replace a run.
    """
    held = Held()
    if not needed:
        yield held
        return
    refuse_foreign(run_dir)
    made, config, found = make(run_dir), run_dir / CONFIG, (run_dir / lock.RUN).exists()
    try:
        with lock.alone(run_dir):
            if new:
                refuse_overwrite(run_dir)
            before = config.read_bytes() if config.is_file() else None
            try:
                yield held
            except BaseException:
                if not held.begun:
                    _put_back(config, before)
                    if not found:
                        (run_dir / lock.RUN).unlink(missing_ok=True)
                raise
    except BaseException:
        if not held.begun:
            remove_empty(made)
        raise


def _put_back(config: Path, before: bytes | None) -> None:
    with suppress(OSError, UserError):  # what went wrong is on its way, and may be the disk
        if before is None:
            config.unlink(missing_ok=True)
        elif config.read_bytes() != before:
            files.write(config, before)


def write_config(run_dir: Path, config: Mapping) -> None:
    """Write `config.yaml`, from which resume, evaluation and export rebuild the run. Raises UserError."""
    files.write(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())


def read_config(path: Path) -> dict:
    """A run's `config.yaml`, with interpolations as they stand.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is no configuration of a run.
    """
    content = files.read_yaml(path)
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise Damaged(f"{path}: is no configuration of a run (it has no {', '.join(map(repr, missing))})")
    return update_config(OmegaConf.to_container(OmegaConf.load(path)))


def refuse_overwrite(run_dir: Path) -> None:
    """Raise UserError where a new run would write over one that got as far as a checkpoint or its end."""
    kept = [*checkpoint.candidates(run_dir), run_dir / "checkpoints" / "best.pt", run_dir / "summary.json"]
    if any(path.exists() for path in kept):
        raise UserError(
            f"hydra.run.dir={run_dir}: holds a run already; resume={run_dir} continues it, and a new run takes another "
            "directory"
        )


def refuse_foreign(folder: Path) -> None:
    """Raise UserError where a run would replace files that no run of ours has written."""
    if any((folder / name).exists() for name in LOCKS):
        return
    there = [folder / name for name in WRITTEN if (folder / name).exists()]
    if not there:
        return
    with suppress(UserError, FileNotFoundError):
        read_config(folder / CONFIG)
        return
    raise UserError(
        f"{there[0]}: is no file of a run of this framework, and would be overwritten; take another folder "
        "(hydra.run.dir=PATH)"
    )
