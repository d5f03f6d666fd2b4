"""An off-policy run goes on bitwise from its checkpoints; its replay buffer's files come and go with them."""

import shutil
from pathlib import Path

import pytest
import torch

from agents.policies.policy import Policy
from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file, resume
from marl.checkpoints.attachments import referred
from marl.config import compose
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import build
from tests.marl.runs import StopAfter, rows
from tests.trials.kills import SAME, same

SMALL = [
    "algo=masac",
    "env=vmas/balance",
    "env.num_envs=4",
    "env.max_steps=7",
    "env.fast=off",
    "algo.rollout_steps=10",
    "algo.updates=3",
    "algo.minibatch_size=16",
    "algo.buffer_frames=160",
    "network.hidden=[8]",
    "task.eval_episodes=2",
    "trainer.progress=off",
    "trainer.checkpoint_every=1",
    "trainer.evaluate_every=0",
    "logger=csv",
    "callbacks=null",
]
PRIORITISED = ["algo.priority=0.7", "algo.priority_beta=0.5"]
MEMORY = ["network=gru", "network.hidden=8", "algo.chunk_length=5", "algo.burn_in=2"]
MEMORIES = [
    ["algo=qmix", "env.continuous_actions=false", "algo.n_step=2", "algo.target_every=5", "algo.tau=1"],
    ["algo=masac"],
    ["algo=matd3", "algo.memory=zeros", "network@critic_network=mlp"],
    ["algo=isac", "algo.buffer_on=disk"],
]
DELAYED = ["algo=matd3", "algo.target_every=5", "algo.tau=1", "algo.explore_schedule=linear"]


def run(folder: Path, *overrides: str, callbacks=(), iterations: int = 8, again: str | None = None) -> Path:
    """Trains as scripts/train.py does; `again`: the checkpoint or directory that it goes on from."""
    config = compose.check(compose.compose([*SMALL, f"frames={40 * iterations}", *overrides]))
    config["resume"] = again
    trainer = build.build_trainer(config)
    content = resume.resumed(config, folder)
    config["resume"] = None
    task, setup = build.build_task(config), build.build_setup(config)
    setup["callbacks"] += callbacks
    trainer.fit(task, folder, resume=content, **setup)
    return folder


def stopped(folder: Path, after: int, *overrides: str, **settings) -> Path:
    """As a process killed after this iteration leaves it."""
    with pytest.raises(KeyboardInterrupt):
        run(folder, *overrides, callbacks=[StopAfter(after)], **settings)
    return folder


def files_of(folder: Path) -> set[str]:
    return {f"replay/{path.name}" for path in (folder / "replay").iterdir()}


def needed(folder: Path) -> set[str]:
    """What the checkpoints of a run refer to, as they say."""
    paths = [*(folder / "checkpoints").glob("*.pt"), *(folder / "checkpoints").glob("abandoned/*.pt")]
    return {name for path in paths for name in referred(checkpoint_file.load(path))}


def differences(one: Path, other: Path) -> list[str]:
    a, b = (checkpoint_file.load(folder / "checkpoints" / "last.pt") for folder in (one, other))
    return [key for key in SAME if not same(a[key], b[key])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of eight iterations whose buffer holds four rollouts."""
    return run(tmp_path_factory.mktemp("whole"), "trainer.keep_every=3")


@pytest.mark.parametrize("after", [1, 3, 4, 6])
def test_a_resumed_run_ends_in_the_same_bits(whole: Path, after: int, tmp_path: Path) -> None:
    stopped(tmp_path, after, "trainer.keep_every=3")
    run(tmp_path, "trainer.keep_every=3", again=str(tmp_path))
    assert differences(whole, tmp_path) == [] and rows(whole) == rows(tmp_path)
    assert files_of(tmp_path) == needed(tmp_path) and files_of(whole) == needed(whole)


def test_targets_delayed_actors_and_exploration_go_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *DELAYED)
    cut = run(stopped(tmp_path / "cut", 3, *DELAYED), *DELAYED, again=str(tmp_path / "cut"))
    assert differences(whole, cut) == [] and rows(whole) == rows(cut)
    assert checkpoint_file.load(cut / "checkpoints" / "last.pt")["processes"][0]["task"]["updates"] == 24


@pytest.mark.parametrize("kind", ["masac", "matd3", "qmix"])
def test_a_prioritised_run_goes_on_and_is_replayed_bitwise(kind: str, tmp_path: Path) -> None:
    settings = [f"algo={kind}", *PRIORITISED, *(["env.continuous_actions=false"] if kind == "qmix" else [])]

    class Captured(Callback):
        def on_end(self, trainer):
            replayed = trainer.updater.captured.replayed
            assert replayed.why == "" and sum(graph.runs for graph in replayed.graphs.values()) > 0

    whole = run(tmp_path / "whole", *settings, callbacks=[Captured()])
    assert [float(row["priority_beta"]) for row in (rows(whole)[0], rows(whole)[-1])] == [0.5, 1.0]
    weights = checkpoint_file.load(whole / "checkpoints" / "last.pt")["processes"][0]["task"]["priorities"]["weights"]
    assert len(weights) == 160 and len(weights.unique()) > 20
    cut = stopped(tmp_path / "cut", 5, *settings)
    run(cut, *settings, again=str(cut), callbacks=[Captured()])
    assert differences(whole, cut) == [] and rows(whole) == rows(cut)
    eager = run(tmp_path / "eager", *settings, "trainer.capture=false")
    assert differences(whole, eager) == ["callbacks"]


def test_a_buffer_on_disk_changes_nothing_and_may_move_when_a_run_goes_on(whole: Path, tmp_path: Path) -> None:
    disk = run(tmp_path / "disk", "trainer.keep_every=3", "algo.buffer_on=disk")
    assert differences(whole, disk) == [] and rows(whole) == rows(disk)
    assert files_of(disk) == needed(disk)
    assert {path.name for path in disk.iterdir()} == {path.name for path in whole.iterdir()}  # no file stays
    for first, then in (("disk", "disk"), ("disk", "device"), ("device", "disk")):
        cut = stopped(tmp_path / f"{first}_{then}", 4, "trainer.keep_every=3", f"algo.buffer_on={first}")
        run(cut, "trainer.keep_every=3", f"algo.buffer_on={then}", again=str(cut))
        assert differences(whole, cut) == [] and rows(whole) == rows(cut)


@pytest.mark.parametrize("settings", MEMORIES)
def test_what_networks_remembered_goes_on(settings: list[str], tmp_path: Path) -> None:
    settings = [*MEMORY, *settings]
    whole = run(tmp_path / "whole", *settings)
    cut = stopped(tmp_path / "cut", 6, *settings)
    run(cut, *settings, again=str(cut))
    assert differences(whole, cut) == [] and rows(whole) == rows(cut)
    task = checkpoint_file.load(cut / "checkpoints" / "last.pt")["processes"][0]["task"]
    assert task["rollout"]["memory"]["actor"]["agents"].any()


def test_files_are_written_once_and_go_when_nothing_refers_to_them(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    class Watch(Callback):
        def on_iteration(self, trainer, record):
            if (tmp_path / "checkpoints").is_dir():
                assert files_of(tmp_path) == needed(tmp_path)
            for path in (tmp_path / "replay").glob("*"):
                about = path.stat()
                identity = about.st_ino, about.st_mtime_ns
                assert seen.setdefault(path.name, identity) == identity

    run(tmp_path, "trainer.checkpoint_every=2", "trainer.keep_last=1", callbacks=[Watch()], iterations=12)
    assert len(files_of(tmp_path)) == 4 and len(seen) > 8  # of the last four rollouts of twelve
    assert files_of(tmp_path) == needed(tmp_path)


def test_a_kept_checkpoint_goes_on(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "moved")  # what refers to files of the run does so wherever it lies
    folder = tmp_path / "moved"
    file = folder / "checkpoints" / "iteration_3.pt"
    assert len(referred(checkpoint_file.load(file))) == 3
    run(folder, "trainer.keep_every=3", again=str(file))
    assert differences(whole, folder) == [] and rows(whole) == rows(folder)
    assert (folder / "checkpoints" / "abandoned" / "iteration_6.pt").is_file() and files_of(folder) == needed(folder)


@pytest.mark.parametrize("fault", ["missing", "damaged", "foreign"])
def test_a_file_that_is_gone_or_damaged_is_one_sentence(whole: Path, fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    file = folder / "checkpoints" / "iteration_3.pt"
    names = sorted(referred(checkpoint_file.load(file)))
    path = folder / names[1]
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if fault == "damaged" else (folder / names[0]).read_bytes())
    before = {each: each.read_bytes() for each in (folder / "checkpoints").rglob("*") if each.is_file()}
    with pytest.raises(UserError, match=f"^{path}: (does not exist|is damaged, or another run's)"):
        run(folder, again=str(file))
    assert {each: each.read_bytes() for each in (folder / "checkpoints").rglob("*") if each.is_file()} == before
    run(folder, "trainer.keep_every=3", again=str(folder), iterations=9)  # last.pt needs none of those


def test_weights_are_read_without_the_buffer(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "replay")
    assert Policy.load(run_directory.find(folder, "last")).state_dict()
    config = compose.check(compose.compose([*SMALL, f"init_from={folder}"]))
    task = build.build_task(config)  # as evaluate.py, export.py and a new run do
    weights = checkpoint_file.load(folder / "checkpoints" / "last.pt")["loss"]
    assert all(torch.equal(value, weights[name]) for name, value in task.loss.state_dict().items())
    assert task.buffer.frames == 0


def test_what_a_killed_process_left_goes_at_the_next_start(whole: Path, tmp_path: Path) -> None:
    stopped(tmp_path, 4)
    left = tmp_path / "replay" / "00000099-0-0123456789abcdef.safetensors"
    half = tmp_path / "replay" / ".00000004-0-0123456789abcdef.safetensors.123.tmp"
    mine = tmp_path / "replay" / "notes.md"
    for path in (left, half, mine):
        path.write_bytes(b"x")

    class Look(Callback):
        def on_start(self, trainer):
            assert not left.exists() and not half.exists() and mine.exists() and files_of(tmp_path) > needed(tmp_path)

    run(tmp_path, again=str(tmp_path), callbacks=[Look()])
    assert files_of(tmp_path) == needed(tmp_path) | {"replay/notes.md"}


@pytest.mark.parametrize("where", ["reward", "final observation", "weights"])
def test_a_number_that_is_not_finite_goes_back_with_the_buffer(where: str, tmp_path: Path, capsys) -> None:
    """A run that goes back, with learning rates that are the same but for a rounding, ends like one that never did."""

    class Poison(Callback):
        def on_iteration(self, trainer, record):
            if trainer.iteration == 5:
                self.gather, trainer.task.gather = trainer.task.gather, lambda i: self.poisoned(trainer.task, i)

        def poisoned(self, task, iteration):
            task.gather = self.gather
            task.gather(iteration)
            if where == "weights":
                next(task.loss.q_critics.parameters()).data.fill_(float("nan"))
            elif where == "reward":
                task.rollout.reward["agents"][2, 1] = float("nan")
            else:
                task.rollout.next["agents"][6, 1] = float("inf")

    settings = ["trainer.non_finite=restore", f"trainer.restore_factor={1 - 2**-53}"]
    run(tmp_path / "ill", *settings, callbacks=[Poison()])
    output = capsys.readouterr().out
    said = {"reward": "reward of agent_0 is nan in environment 1, step 2", "weights": "", "final observation": where}
    assert "back to iteration 5" in output and said[where] in output
    run(tmp_path / "well", *settings)
    a, b = (checkpoint_file.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("ill", "well"))
    assert (a["restores"], b["restores"]) == (1, 0)
    assert all(same(a[key], b[key]) for key in ("loss", "processes", "evaluation", "best"))
    assert files_of(tmp_path / "ill") == needed(tmp_path / "ill")


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_directory_lost_meanwhile_gets_the_whole_buffer(how: str, tmp_path: Path) -> None:
    place, new = tmp_path / "run", tmp_path / "elsewhere"
    place.mkdir()

    class Lose(Callback):
        def on_iteration(self, trainer, record):
            if trainer.iteration == 6:
                shutil.rmtree(place) if how == "removed" else place.rename(new)

    with pytest.raises(UserError, match=f"was {how} while the run trained"):
        run(place, callbacks=[Lose()])
    found = place if how == "removed" else new
    assert place.exists() == (how == "removed")
    run(found, again=str(found))
    whole = run(tmp_path / "whole")
    assert differences(whole, found) == []


def test_another_number_of_processes_begins_with_an_empty_buffer(whole: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / "checkpoints" / "last.pt"
    content = checkpoint_file.load(path)
    content["processes"] = content["processes"] * 2
    checkpoint_file.save(path, {key: value for key, value in content.items() if key != "format_version"})
    shutil.rmtree(folder / "replay")  # nothing of it is read
    run(folder, "algo.prefill=80", again=str(folder), iterations=10)
    assert "the replay buffer begins empty; no update before it holds 80 (algo.prefill)" in capsys.readouterr().out
    task = checkpoint_file.load(path)["processes"][0]["task"]
    assert task["updates"] == 24 + 3 and len(task["files"]) == 2  # one iteration without updates, one with
