"""A run whose directory is removed or moved keeps what it has and says so; it claims no results that are not there."""

import shutil
from pathlib import Path

import pytest

from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from marl.loggers.loggers import CSVLogger
from tests.marl.runs import rows, run


class Then(Callback):
    """Does something to the run's directory after an iteration."""

    def __init__(self, iteration: int, act):
        self.iteration, self.act = iteration, act

    def on_iteration(self, trainer, record):
        if trainer.iteration == self.iteration:
            self.act()


def remove(place: Path) -> None:
    """As `rm -rf` does; TensorBoard's thread may put its file back meanwhile."""
    while place.exists():
        shutil.rmtree(place, ignore_errors=True)


def interrupted(place: Path, act, at: int = 3, **settings) -> str:
    """Six iterations with `act` after one of them; the sentence that the run ends with."""
    place.mkdir()
    with pytest.raises(UserError) as error:
        run(place, callbacks=[Then(at, act)], **settings)
    return str(error.value)


@pytest.mark.parametrize(("at", "every"), [(3, 1), (3, 0), (6, 1)])
def test_a_removed_directory_is_made_again_and_goes_on(at: int, every: int, tmp_path: Path) -> None:
    place = tmp_path / "run"
    message = interrupted(place, lambda: remove(place), at, checkpoint_every=every, evaluate_every=0)
    assert f"{place}: was removed while the run trained" in message and f"resume={place} continues" in message
    content = checkpoint_file.load(place / "checkpoints" / "last.pt")
    assert content["iteration"] == (at if every else at + 1)  # noticed by the checkpoint, or by the next row
    assert [int(row["iteration"]) for row in rows(place)] == list(range(1, content["iteration"] + 1))
    run(place, resume=content, evaluate_every=0)
    whole, _ = run(tmp_path / "whole", evaluate_every=0)
    assert rows(place) == rows(tmp_path / "whole") and (place / "summary.json").exists() and whole["best"]


def test_a_moved_directory_gets_the_checkpoint_and_goes_on_there(tmp_path: Path) -> None:
    place, new = tmp_path / "run", tmp_path / "elsewhere"
    message = interrupted(place, lambda: place.rename(new), evaluate_every=0)
    assert "was moved while the run trained (iteration 3)" in message and f"resume={new} continues" in message
    assert not place.exists()
    content = checkpoint_file.load(new / "checkpoints" / "last.pt")
    assert content["iteration"] == 3 and [row["iteration"] for row in rows(new)] == ["1", "2", "3"]
    run(new, resume=content, evaluate_every=0)
    run(tmp_path / "whole", evaluate_every=0)
    assert rows(new) == rows(tmp_path / "whole")


def test_a_name_that_somebody_took_meanwhile_is_theirs(tmp_path: Path) -> None:
    place = tmp_path / "run"

    def replace() -> None:
        remove(place)
        place.mkdir()
        (place / "config.yaml").write_text("x: y\n")

    message = interrupted(place, replace)
    assert f"resume={place}_2 continues" in message and (place / "config.yaml").read_text() == "x: y\n"
    assert (tmp_path / "run_2" / "checkpoints" / "last.pt").exists() and len(rows(tmp_path / "run_2")) >= 3


def test_a_directory_whose_files_were_removed_is_noticed(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.yaml").write_text("x: y\n")

    def empty() -> None:
        shutil.rmtree(place / "checkpoints")
        for path in place.iterdir():
            path.unlink()

    with pytest.raises(UserError, match="was removed while the run trained"):
        run(place, callbacks=[Then(3, empty)])
    assert len(rows(place)) == 3


def test_a_table_that_was_removed_is_written_again(tmp_path: Path) -> None:
    run(tmp_path, callbacks=[Then(3, (tmp_path / "metrics.csv").unlink)])
    assert [int(row["iteration"]) for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a,b\n1,2\n", b"iteration\nabc\n", b"iteration\n1,2\n"])
def test_a_table_of_something_else_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match="metrics.csv: is no table of a run's metrics"):
        CSVLogger().open(tmp_path, {}, 3, 3)
    assert (tmp_path / "metrics.csv").read_bytes() == content
