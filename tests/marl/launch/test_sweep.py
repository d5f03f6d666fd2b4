"""The bookkeeping of sweeps: what is skipped, what is begun again, what is told of failures; all read from files."""

import csv
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marl.core.errors import Stopped, UserError
from marl.core.files import write_json
from marl.launch import multirun, sweep, sweep_jobs

JOBS = [["algo=a", "seed=0"], ["algo=a", "seed=1"], ["algo=a", "seed=2"]]


@pytest.fixture
def ours(tmp_path: Path) -> sweep.Sweep:
    ours = sweep.Sweep(tmp_path / "s", JOBS, ["algo=a", "seed=0,1,2"])
    ours.begin()
    return ours


def fail(error: Exception):
    def call():
        print("working")
        raise error

    return call


def test_a_job_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    calls = []

    def call() -> float:
        calls.append(1)
        print("hello")
        return 2.5

    for _ in range(2):
        assert sweep.work(tmp_path, ["seed=0"], call) == 2.5
    assert len(calls) == 1 and (tmp_path / "output.log").read_text() == "hello\n"
    sweep.work(tmp_path, ["seed=0"], call, unchanged=False)
    sweep.work(tmp_path, ["seed=1"], call)
    assert len(calls) == 3


def test_failures_are_written_down_and_tried_again(ours: sweep.Sweep) -> None:
    folder = ours.folder
    assert sweep.work(folder / "0", JOBS[0], fail(UserError("seed=0: bad")), mistakes=(UserError,)) is None
    assert sweep.work(folder / "1", JOBS[1], fail(ZeroDivisionError("a\nb")), mistakes=(UserError,)) is None
    rows = ours.rows()
    assert [row["status"] for row in rows] == ["failed", "failed", "waiting"]
    assert [row["reason"] for row in rows] == ["seed=0: bad", "ZeroDivisionError: a b", None]
    assert [row["what"] for row in rows] == ["seed=0", "seed=1", "seed=2"]
    logs = [(folder / str(i) / "output.log").read_text() for i in (0, 1)]
    assert logs[0] == "working\nerror: seed=0: bad\n" and "Traceback" in logs[1]
    with pytest.raises(SystemExit) as stop:
        ours.check()
    assert stop.value.code == 1
    assert sweep.work(folder / "1", JOBS[1], lambda: 1.0) == 1.0
    with pytest.raises(UserError, match="1 of 3 jobs failed, the first with: seed=0: bad"):
        ours.check()


def test_a_signal_is_no_failure_and_leaves_the_job_for_the_same_command(ours: sweep.Sweep, capsys) -> None:
    with pytest.raises(Stopped):
        sweep.work(ours.folder / "0", JOBS[0], fail(Stopped(signal.SIGTERM, 4)))
    row = ours.rows()[0]
    assert row["status"] == "interrupted"
    assert row["reason"] == "SIGTERM: stopped after iteration 4; the same command continues it"
    assert ours.give_up(0) == 0  # no process killed it
    with pytest.raises(SystemExit) as stop:
        ours.check()
    assert stop.value.code == 1 and "1 of 3 jobs were interrupted; the same command" in capsys.readouterr().err
    assert sweep.work(ours.folder / "0", JOBS[0], lambda: 3) == 3 and ours.rows()[0]["status"] == "done"


@pytest.mark.parametrize("here", [True, False])
def test_a_signal_ends_the_sweep_in_its_own_process_and_only_a_job_in_a_worker(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(multirun.HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": JOBS[0]}}))
    monkeypatch.setattr(multirun.compose, "check", lambda cfg: {})
    monkeypatch.setenv(sweep.START, f"{os.getpid() if here else 1} 0.0")

    def work():
        return multirun.work(lambda *_: fail(Stopped(signal.SIGINT, 4))(), OmegaConf.create(), tmp_path)

    if here:  # a SystemExit, which Hydra does not keep to itself
        with pytest.raises(SystemExit) as stop:
            work()
        assert stop.value.code == 130
        assert capsys.readouterr().err == "SIGINT: stopped after iteration 4; the same command continues\n"
    else:
        assert work() is None
    assert sweep_jobs.read(tmp_path)["status"] == "interrupted"


def test_slurm_where_there_is_none_names_what_there_is(ours: sweep.Sweep, monkeypatch) -> None:
    monkeypatch.setenv(sweep.START, "")
    with pytest.raises(UserError, match="there is no Slurm .* hydra/launcher=submitit_local runs"):
        multirun.launch(ours, fail(RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?')))


def sleep_in(folder: str) -> None:
    sweep.work(Path(folder), JOBS[0], lambda: time.sleep(60))


def test_a_killed_job_is_distinguished_from_a_running_one(ours: sweep.Sweep) -> None:
    folder = ours.folder / "0"
    process = multiprocessing.get_context("spawn").Process(target=sleep_in, args=(str(folder),))
    process.start()
    end = time.monotonic() + 60
    while ours.rows()[0]["status"] != "running":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert sweep.work(folder, JOBS[0], lambda: pytest.fail("two at once")) is None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert ours.rows()[0]["status"] == "interrupted"
    assert ours.give_up(time.time()) == 0 and ours.give_up(0) == 1  # of those that began since
    assert ours.rows()[0]["status"] == "failed" and "was killed" in ours.rows()[0]["reason"]
    assert sweep.work(folder, JOBS[0], lambda: 3) == 3
    assert ours.rows()[0]["status"] == "done"


def test_the_same_sweep_is_found_again_and_another_is_not(ours: sweep.Sweep, tmp_path: Path) -> None:
    again = sweep.Sweep.open(tmp_path / "new", JOBS, ["seed=0,1,2", "algo=a"])
    assert again.folder == ours.folder
    other = sweep.Sweep.open(tmp_path / "new", JOBS[:2], ["algo=a", "seed=0,1"])
    assert other.folder == tmp_path / "new"
    with pytest.raises(UserError, match=r"holds another sweep \(algo=a seed=0,1,2\)"):
        sweep.Sweep(ours.folder, JOBS[:2], ["algo=a", "seed=0,1"]).begin()


def test_the_table_is_shown_and_kept(ours: sweep.Sweep, capsys) -> None:
    with ours.watch():
        sweep.work(ours.folder / "0", JOBS[0], lambda: 7.25)
        (ours.folder / "1").mkdir()  # the last evaluation is not the best one, which is known at the end
        text = "iteration,frames,eval/episode_return\n1,100,\n2,200,-3.5\n3,30"  # a line half written
        (ours.folder / "1" / "metrics.csv").write_text(text)
    shown = capsys.readouterr().out
    assert "1 done, 2 waiting" in shown and "7.25" in shown and "200 frames" in shown and "-3.5" in shown
    rows = list(csv.DictReader((ours.folder / "jobs.csv").read_text().splitlines()))
    assert rows[0]["status"] == "done" and rows[0]["what"] == "seed=0"
    assert [(row["last"], row["best"]) for row in rows] == [("", "7.25"), ("-3.5", ""), ("", "")]
    assert json.loads((ours.folder / "0" / "job.json").read_text())["value"] == 7.25


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match="cannot write file .*a.json: Is a directory"):
        write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_sweep_that_never_began_leaves_nothing(ours: sweep.Sweep) -> None:
    with ours.watch():
        pass
    assert not ours.folder.exists()


BROKEN = {"empty": b"", "NUL": bytes(64), "list": b"[1, 2]\n", "cut": b'{"status": "do', "no text": b"\xff\xfe{}"}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_job_counts_as_not_done_and_is_named(content: bytes, ours: sweep.Sweep, capsys) -> None:
    for i in (0, 1):
        sweep.work(ours.folder / str(i), JOBS[i], lambda: 1.0)
    (ours.folder / "0" / "job.json").write_bytes(content)
    (ours.folder / "1" / "metrics.csv").write_bytes(content)
    again = sweep.Sweep(ours.folder, JOBS, ours.command)
    again.begin()
    printed, warnings = capsys.readouterr()
    assert "1 of 3 jobs are done" in printed and f"warning: {ours.folder}/0/job.json: " in warnings
    assert "counts as not done; set aside as job.json.damaged" in warnings and warnings.count("\n") == 1
    assert (ours.folder / "0" / "job.json.damaged").read_bytes() == content
    assert [row["status"] for row in again.rows()] == ["waiting", "done", "waiting"]
    assert sweep.work(ours.folder / "0", JOBS[0], lambda: 2.0) == 2.0 and again.rows()[0]["status"] == "done"


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_sweep_file_is_named_and_the_jobs_stay(content: bytes, ours: sweep.Sweep, tmp_path, capsys) -> None:
    sweep.work(ours.folder / "0", JOBS[0], lambda: 1.0)
    (ours.folder / "sweep.json").write_bytes(content)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "sweep.json").write_bytes(content)
    assert sweep.Sweep.open(tmp_path / "new", JOBS, ours.command).folder == tmp_path / "new"  # not known any more
    assert f"hydra.sweep.dir={ours.folder} continues it" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds another sweep"):
        sweep.Sweep(ours.folder, JOBS[1:], ["x"]).begin()
    again = sweep.Sweep(ours.folder, JOBS, ours.command)
    again.begin()
    assert "1 of 3 jobs are done" in capsys.readouterr().out and (ours.folder / "sweep.json.damaged").exists()
    assert json.loads((ours.folder / "sweep.json").read_text())["jobs"] == JOBS
    with pytest.raises(UserError, match="others/sweep.json: "):
        sweep.Sweep(tmp_path / "others", JOBS, ours.command).begin()
    assert (tmp_path / "others" / "sweep.json").read_bytes() == content


def test_other_peoples_folders_are_no_sweeps(tmp_path: Path) -> None:
    for name, text in (("0/config.yaml", "x: y\n"), ("jobs.csv", "a,b\n"), ("sweep.json", '{"jobs": 3}')):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        with pytest.raises(UserError):
            sweep.Sweep(folder, JOBS, []).begin()
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / name]
        assert (folder / name).read_text() == text


def test_an_empty_folder_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    empty = sweep.Sweep(tmp_path / "mine", JOBS, [])
    empty.begin()
    with empty.watch():
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_overrides_in_another_order_are_the_same_sweep(tmp_path: Path) -> None:
    jobs = [[f"algo={a}", f"seed={s}"] for a in "xy" for s in "01"]
    first = sweep.Sweep(tmp_path / "s", jobs, ["algo=x,y", "seed=0,1"])
    first.begin()
    sweep.work(tmp_path / "s" / "1", jobs[1], lambda: 1.0)
    turned = [[f"seed={s}", f"algo={a}"] for s in "10" for a in "xy"]
    for again in (
        sweep.Sweep(tmp_path / "s", turned, ["seed=1,0", "algo=x,y"]),
        sweep.Sweep.open(tmp_path / "new", turned, ["seed=1,0", "algo=x,y"]),
    ):
        again.begin()
        assert again.folder == tmp_path / "s" and again.jobs == jobs
        assert [row["status"] for row in again.rows()] == ["waiting", "done", "waiting", "waiting"]
    places = [sweep_jobs.place(tmp_path / "s", i, job) for i, job in enumerate(turned)]
    assert places == [(1, jobs[1]), (3, jobs[3]), (0, jobs[0]), (2, jobs[2])]
    assert sweep_jobs.canonical(["a=1", "a=2"]) != sweep_jobs.canonical(["a=2", "a=1"])
    assert sweep_jobs.canonical(["a={b:1}", "a.b=2"]) != sweep_jobs.canonical(["a.b=2", "a={b:1}"])


def test_the_same_second_gives_two_sweeps_two_folders(tmp_path: Path) -> None:
    for seeds in ("0,1", "0,2"):
        jobs = [[f"seed={seed}"] for seed in seeds.split(",")]
        sweep.Sweep.open(tmp_path / "2026-01-01_00-00-00", jobs, [f"seed={seeds}"]).begin()
    assert {path.name for path in tmp_path.iterdir()} == {"2026-01-01_00-00-00", "2026-01-01_00-00-00_2"}
