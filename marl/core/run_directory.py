"""A run's directory: where its files lie; one process alone is in it, and a run that never began leaves no trace."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from marl.core import files, lock
from marl.core.errors import Damaged, UserError
from marl.core.zoo import index as zoo

CONFIG = "config.yaml"
WRITTEN = (CONFIG, "metrics.csv", "summary.json", "checkpoints")  # what a run replaces
KEYS = ("task", "trainer", "optimizer", "seed")  # every configuration of a run has these
LOCKS = (lock.RUN, lock.JOB)
LAST, KEPT = re.compile(r"last(?:-(\d+))?\.pt"), re.compile(r"iteration_(\d+)\.pt")


# ---- files -----------------------------------------------------------------------------------------------------


def find(run: str | Path, which: str = "last") -> Path:
    """The checkpoint meant by `run`: a file itself, or `<which>.pt` of a run directory or of its checkpoints/.

    `zoo/NAME` stands for a policy of the zoo (`marl.core.zoo.index`).

    Raises:
        UserError: there is none.
    """
    run = zoo.located(run)
    path = run if run.is_file() else run / "checkpoints" / f"{which}.pt"
    if not path.is_file() and (run / f"{which}.pt").is_file():
        path = run / f"{which}.pt"
    if not path.is_file():
        raise UserError(f"no checkpoint at {run}: expected a file, or a run directory with {path}")
    return path


def latest(folder: str | Path = "outputs") -> Path:
    """The run in `folder` (NAME/DATE_TIME in it) that wrote a checkpoint last. Raises UserError where there is none."""
    written = {path.parent.parent: path.stat().st_mtime for path in Path(folder).glob("*/*/checkpoints/last.pt")}
    if not written:
        raise UserError(f"no run in {folder}/ yet: python scripts/train.py makes one")
    return max(written, key=written.__getitem__)


def candidates(run_dir: str | Path) -> list[Path]:
    """What a run can be resumed from: last.pt, the ones before it, then those kept every n, the newest first."""
    folder = Path(run_dir) / "checkpoints"
    last = [(int(m[1] or 0), path) for path in folder.glob("last*.pt") if (m := LAST.fullmatch(path.name))]
    numbered = [(iteration_of(path), path) for path in folder.glob("iteration_*.pt") if iteration_of(path)]
    return [path for _, path in [*sorted(last), *sorted(numbered, reverse=True)]]


def iteration_of(path: Path) -> int:
    """Of a checkpoint kept every n, what its name says; of others 0."""
    match = KEPT.fullmatch(path.name)
    return int(match[1]) if match else 0


def config_of(run: str | Path) -> Path | None:
    """`config.yaml` of a run directory, or of the one that a checkpoint or `checkpoints` lies in; None without one."""
    run = Path(run)
    places = [run.parent, run.parent.parent] if run.is_file() else [run, *([run.parent] if _holds(run) else [])]
    return next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)


def _holds(folder: Path) -> bool:
    return folder.resolve().name == "checkpoints"


def home_of(run: str | Path) -> Path:
    """Where to put what is made from a run directory, a checkpoint or another file: the run's, else the file's own.

    Of `zoo/NAME` a folder of that name in outputs/.
    """
    if name := zoo.named(run):
        return zoo.OUT / name
    config = config_of(run)
    return config.parent if config else Path(run).parent


def beside(run: str | Path, path: Path) -> Path:
    """Where to put what is said of the checkpoint `path`, which `find(run)` gave: its folder, or the zoo's home."""
    return home_of(run) if zoo.named(run) else path.parent


# ---- folders ---------------------------------------------------------------------------------------------------


def make(path: str | Path) -> list[Path]:
    """Make a folder and those above it that are missing; the ones that this call made, the outermost first.

    Raises:
        UserError: it cannot be made.
    """
    if not str(path):
        raise UserError("hydra.run.dir=: must name a folder")
    path, new_folders = Path(path).absolute(), []
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                with suppress(FileExistsError):  # another process was faster; a file in the way is told below
                    folder.mkdir()
                    new_folders.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(0, "there is a file of this name")
    except OSError as error:
        remove_empty(new_folders)
        raise UserError(f"cannot write to the folder {path}: {files.reason(error)}") from error
    return new_folders


def make_new(path: str | Path) -> list[Path]:
    """As `make`, but the last folder is new and this process's: where the name is taken, `_2`, `_3` … is added."""
    path = Path(path).absolute()
    new_folders = make(path.parent)
    for number in count(1):
        place = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            place.mkdir()
            return [*new_folders, place]
        except FileExistsError:
            continue
        except FileNotFoundError:  # a failed start beside this one has removed the folder above
            new_folders += make(path.parent)
        except OSError as error:
            remove_empty(new_folders)
            raise UserError(f"cannot write to the folder {place}: {files.reason(error)}") from error
    raise AssertionError("count() has no end")


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that are empty, the innermost (last) first."""
    for folder in reversed(folders):
        with suppress(OSError):  # it holds something, of whomever
            folder.rmdir()


# ---- use -------------------------------------------------------------------------------------------------------


class DirectoryLease:
    """A run's directory while this process has it; once training has begun, all that lies there stays."""

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        """Training begins."""
        self.begun = True


@contextmanager
def exclusive(run_dir: Path, new: bool, needed: bool = True) -> Iterator[DirectoryLease]:
    """Hold `run_dir` for one run; where an exception comes before `DirectoryLease.begin`, it is left as it was found.

    Args:
        new: whether a run begins there, which must not replace an earlier one.
        needed: whether this process is the one that writes.

    Raises:
        UserError: another process is training there, files there are not ours, or a new run would replace a run.
    """
    lease = DirectoryLease()
    if not needed:
        yield lease
        return
    refuse_foreign(run_dir)
    new_folders, config, had_lock = make(run_dir), run_dir / CONFIG, (run_dir / lock.RUN).exists()
    try:
        with lock.exclusive_run_lock(run_dir):
            if new:
                refuse_overwrite(run_dir)
            before = config.read_bytes() if config.is_file() else None
            try:
                yield lease
            except BaseException:
                if not lease.begun:
                    _put_back(config, before)
                    if not had_lock:
                        (run_dir / lock.RUN).unlink(missing_ok=True)
                raise
    except BaseException:
        if not lease.begun:
            remove_empty(new_folders)
        raise


def _put_back(config: Path, before: bytes | None) -> None:
    with suppress(OSError, UserError):  # what went wrong is on its way, and may be the disk
        if before is None:
            config.unlink(missing_ok=True)
        elif config.read_bytes() != before:
            files.write(config, before)


def check_config(path: Path) -> None:
    """Raise FileNotFoundError where there is no such file, and Damaged where it is no configuration of a run."""
    content = files.read_yaml(path)
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise Damaged(f"{path}: is no configuration of a run (it has no {', '.join(map(repr, missing))})")


def refuse_overwrite(run_dir: Path) -> None:
    """Raise UserError where a new run would write over one that got as far as a checkpoint or its end."""
    results = [*candidates(run_dir), run_dir / "checkpoints" / "best.pt", run_dir / "summary.json"]
    if any(path.exists() for path in results):
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
        check_config(folder / CONFIG)
        return
    raise UserError(
        f"{there[0]}: is no file of a run of this framework, and would be overwritten; take another folder "
        "(hydra.run.dir=PATH)"
    )
