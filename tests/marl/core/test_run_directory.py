"""Run directories: unique names, no file of others replaced or removed, and no trace of a run that never began."""

import multiprocessing
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marl.config import compose, saved_config
from marl.core import lock, run_directory
from marl.core.errors import UserError
from marl.core.run_directory import exclusive
from marl.launch.new_run_directory import NewRunDirectory


def hydra_config(run_dir: str, paths: str = "x"):
    return OmegaConf.create({"hydra": {"run": {"dir": run_dir}}, "paths": {"run_dir": paths}})


@pytest.fixture(autouse=True)
def forget(monkeypatch) -> None:
    monkeypatch.setattr(NewRunDirectory, "created_folders", [])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- names


def make_one(path: str) -> str:
    return str(run_directory.make_new(path)[-1])


def test_runs_that_start_in_the_same_second_have_directories_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        paths = pool.map(make_one, [str(tmp_path / "balance" / "2026-01-01_00-00-00")] * 40, chunksize=1)
    assert len(set(paths)) == 40 and all(Path(path).is_dir() for path in paths)
    assert {"2026-01-01_00-00-00", "2026-01-01_00-00-00_2"} <= names(tmp_path / "balance")


def test_a_name_with_the_time_is_new_and_a_chosen_one_is_kept(tmp_path: Path) -> None:
    OmegaConf.register_new_resolver("now", lambda _: "12-00", use_cache=False, replace=True)
    folders = []
    for run_dir, paths in (("${paths.run_dir}", "${now:%H}"), ("${paths.run_dir}", "mine"), (str(tmp_path / "d"), "x")):
        for _ in range(2):
            config = hydra_config(run_dir, f"{tmp_path}/{paths}")
            NewRunDirectory().on_run_start(config)
            assert config.paths.run_dir == config.hydra.run.dir
            folders.append(Path(config.hydra.run.dir).name)
    assert folders == ["12-00", "12-00_2", "mine", "mine", "d", "d"] and {"12-00_2", "mine", "d"} <= names(tmp_path)


def test_torchruns_restart_finds_the_directory_of_its_first_start(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    place = str(tmp_path / "later")
    assert NewRunDirectory().choose(place, True) == (place, None)  # the first start died before it had one
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / lock.RUN).write_text("torchrun none elsewhere 1 0.5\n")
    with exclusive(tmp_path / "first", new=True):
        pass
    assert NewRunDirectory().choose(place, True) == (str(tmp_path / "first"), None)


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "must name a folder"), ("/proc/x", "cannot write to the folder /proc/x"), ("a" * 300, "File name too long"),
     ("file/run", "there is a file of this name|Not a directory"), ("file", "there is a file of this name")],
    ids=lambda text: text[:9],
)  # fmt: skip
def test_an_impossible_directory_is_one_sentence(path, words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as stop:
        NewRunDirectory().on_run_start(hydra_config(path))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    with pytest.raises(UserError, match=words):
        run_directory.make(path)
    assert names(tmp_path) == {"file"}


def test_only_empty_folders_that_were_made_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    NewRunDirectory().on_run_start(hydra_config(str(tmp_path / "mine" / "a" / "b")))
    (tmp_path / "mine" / "a" / "another's").touch()
    NewRunDirectory.remove_unused()
    assert names(tmp_path / "mine" / "a") == {"another's"}
    NewRunDirectory().on_run_start(hydra_config(str(tmp_path / "mine")))
    NewRunDirectory.remove_unused()
    assert (tmp_path / "mine").is_dir()


# ---- use


def fail_in(run_dir: Path, new: bool = True) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(run_dir, new):
        saved_config.write_config(run_dir, {"seed": 1})
        raise ZeroDivisionError


def test_a_run_that_never_began_leaves_what_it_found(tmp_path: Path) -> None:
    fail_in(tmp_path / "deep" / "new")
    assert names(tmp_path) == set()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("a")
    for name in ("empty", "notes"):
        fail_in(tmp_path / name)
    assert names(tmp_path / "empty") == set() and names(tmp_path / "notes") == {"mine.txt"}
    ours = compose.compose(["experiment=threshold"])
    (tmp_path / "begun").mkdir()
    saved_config.write_config(tmp_path / "begun", ours)
    before = (tmp_path / "begun" / "config.yaml").read_bytes()
    fail_in(tmp_path / "begun")
    assert (tmp_path / "begun" / "config.yaml").read_bytes() == before


def test_a_run_that_began_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "a", new=True) as lease:
        saved_config.write_config(tmp_path / "a", {"seed": 1})
        lease.begin()
        raise ZeroDivisionError
    assert names(tmp_path / "a") == {"config.yaml", lock.RUN}


@pytest.mark.parametrize("name", run_directory.WRITTEN)
def test_files_of_others_are_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x: y\n")
    for new in (True, False):
        with pytest.raises(UserError, match=f"{name}: is no file of a run"), exclusive(tmp_path, new):
            pytest.fail("it got in")
    assert names(tmp_path) == {name} and (tmp_path / name).read_text() == "x: y\n"


@pytest.mark.parametrize("name", ["checkpoints/last-1.pt", "checkpoints/best.pt", "summary.json"])
def test_an_earlier_run_is_not_replaced(name: str, tmp_path: Path) -> None:
    saved_config.write_config(tmp_path, compose.compose(["experiment=threshold"]))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds a run already; resume="), exclusive(tmp_path, new=True):
        pytest.fail("it got in")
    with exclusive(tmp_path, new=False) as lease:
        lease.begin()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (bytes(100), "is empty .NUL bytes alone."), (b"[1, 2]", "holds a list"),
     (b"task: {", "cannot be read as"), (b"just text", "holds a str"),
     (b"a: 1", "is no configuration of a run .it has no 'task'"),
     (b"\xff\xfe\x00", "cannot be read as YAML"), (b"{" * 400, "cannot be read as YAML")],
    ids=range(8),
)  # fmt: skip
def test_a_damaged_configuration_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    for read in (compose.saved, lambda run: compose.compose([f"resume={run}"])):
        with pytest.raises(UserError, match=f"config.yaml: {words}") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)
