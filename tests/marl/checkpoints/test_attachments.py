"""Files beside checkpoints: written once, kept while a checkpoint refers to them, one sentence where one is missing."""

import os
from pathlib import Path

import pytest
import torch

from marl.checkpoints import checkpoint_file
from marl.checkpoints.attachments import Attachments, check
from marl.core.errors import UserError


@pytest.fixture
def attachments(tmp_path: Path) -> Attachments:
    opened = Attachments("replay")
    opened.open(tmp_path)
    return opened


def write(attachments: Attachments, number: int) -> dict[str, str]:
    """A file of its own content; {name: digest}."""
    return dict([attachments.write(number, {"group/a": torch.full((3,), number), "none": torch.zeros(0, 2)})])


def save(attachments: Attachments, name: str, files: dict[str, str], keep: int = 1) -> dict:
    """A checkpoint that refers to `files`, as the engine writes one."""
    content = {"iteration": 1, "processes": [{"task": {"files": files}}]}
    checkpoint_file.save(attachments.path(f"checkpoints/{name}.pt"), content, keep)
    return content


def there(attachments: Attachments) -> set[str]:
    return {f"replay/{path.name}" for path in attachments.path("replay").iterdir()}


def test_what_is_written_is_read(attachments) -> None:
    ((name, digest),) = write(attachments, 7).items()
    assert name == f"replay/00000007-0-{digest[:16]}.safetensors" and attachments.has(name)
    held = attachments.read(name, digest)
    assert held["group/a"].tolist() == [7, 7, 7] and held["none"].shape == (0, 2) and set(held) == {"group/a", "none"}


def test_a_task_without_a_directory_says_so() -> None:
    with pytest.raises(UserError, match="replay/.*: a task that keeps files needs a run's directory"):
        write(Attachments("replay"), 0)


def test_a_file_stays_as_long_as_a_checkpoint_refers_to_it(attachments) -> None:
    files = []
    for number in range(5):
        files.append(write(attachments, number))
        save(attachments, "last", files[number], keep=2)
        if number in (0, 1):
            save(attachments, ("best", "iteration_2")[number], files[number])
        attachments.sweep()
    kept = {**files[0], **files[1], **files[3], **files[4]}  # best.pt, iteration_2.pt, last-1.pt, last.pt
    assert there(attachments) == set(kept)
    fresh = Attachments("replay")  # of a process that knows of none of them
    fresh.open(attachments.run_dir)
    fresh.sweep()
    assert there(attachments) == set(kept)
    for each in kept.items():
        fresh.read(*each)
    os.renames(attachments.path("checkpoints/best.pt"), attachments.path("checkpoints/abandoned/best.pt"))
    attachments.path("checkpoints/iteration_2.pt").unlink()
    fresh.sweep()
    assert there(attachments) == set(kept) - set(files[1])


def test_a_checkpoint_just_written_is_not_read_again(attachments, monkeypatch) -> None:
    files = write(attachments, 0)
    path = attachments.path("checkpoints/last.pt")
    attachments.note(path, save(attachments, "last", files, keep=2))
    monkeypatch.setattr(checkpoint_file, "load", lambda path: pytest.fail(f"{path} was read"))
    attachments.sweep()
    attachments.note(path, save(attachments, "last", files, keep=2))  # the one before is last-1.pt now
    attachments.sweep()
    assert there(attachments) == set(files)


def test_files_of_others_stay(attachments) -> None:
    write(attachments, 0)
    folder = attachments.path("replay")
    for name in ("notes.txt", "weights.safetensors", ".other.tmp", "00000001-0-xyz.safetensors"):
        (folder / name).write_text("mine")
    (folder / ".00000003-1-0123456789abcdef.safetensors.4711.tmp").write_text("half of a file, of a killed process")
    attachments.sweep()
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".other.tmp", "00000001-0-xyz.safetensors", "notes.txt", "weights.safetensors")
    ]


def test_a_damaged_checkpoint_keeps_nothing_and_one_out_of_reach_keeps_all(attachments) -> None:
    files = [write(attachments, number) for number in range(2)]
    save(attachments, "last", files[0])
    content = {"iteration": 1, "processes": [{"task": {"files": {}}}]}
    version = checkpoint_file.FORMAT_VERSION
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_file, "FORMAT_VERSION", version + 1)
        checkpoint_file.save(attachments.path("checkpoints/best.pt"), content)
    attachments.sweep()
    assert there(attachments) == {*files[0], *files[1]}
    attachments.path("checkpoints/best.pt").write_bytes(b"nonsense")
    attachments.sweep()
    assert there(attachments) == set(files[0])


@pytest.mark.parametrize("fault", ["missing", "damaged", "foreign"])
def test_a_file_that_is_not_what_was_written_is_named(attachments, fault: str) -> None:
    content = save(attachments, "last", {**write(attachments, 0), **write(attachments, 1)})
    check(content, attachments.run_dir)
    name, digest = list(content["processes"][0]["task"]["files"].items())[1]
    path = attachments.path(name)
    if fault == "missing":
        path.unlink()
    elif fault == "damaged":
        held = bytearray(path.read_bytes())
        held[-1] ^= 1
        path.write_bytes(held)
    else:
        other = next(iter(write(attachments, 2)))
        path.write_bytes(attachments.path(other).read_bytes())
    what = "does not exist" if fault == "missing" else r"is damaged, or another run's \(its digest does not match\)"
    for read in (lambda: check(content, attachments.run_dir), lambda: attachments.read(name, digest)):
        with pytest.raises(UserError, match=f"^{path}: {what}; the checkpoint needs it; resume=FILE goes on"):
            read()


def test_another_number_of_processes_needs_none(attachments) -> None:
    process = {"task": {"files": {"replay/gone": "0"}}}
    check({"processes": [process, process]}, attachments.run_dir)
