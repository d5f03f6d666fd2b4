"""The kernel cache: damaged files are built again, foreign folders are not trusted, a compiler that hangs is ended."""

import os
import shutil
import stat
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envs.kernel import compile
from envs.vmas.env import VmasEnv
from marl.core.errors import CannotCompile
from marl.native import compiler
from marl.native import library_cache as cache
from marl.native.compiler import compile_library, load

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
SOURCE = 'extern "C" int width() { return 7; }'
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "kernels"
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(place))
    return place


def damage(path: Path, how: str) -> None:
    """Puts another file in its place: this process may have the old one in its memory."""
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
        return
    at = len(content) // 3
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "nul": bytes(len(content)),
            "flipped": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        }[how]
    )
    path.chmod(0o600)


@needs_compiler
@pytest.mark.parametrize("how", ["empty", "cut", "nul", "flipped", "folder"])
def test_a_damaged_library_is_built_again(folder, how):
    first = compile_library(SOURCE)
    damage(first, how)
    again = compile_library(SOURCE)
    assert load(again).width() == 7 and cache.intact(again)


@needs_compiler
@pytest.mark.parametrize("how", ["empty", "cut", "nul", "flipped", "folder"])
@pytest.mark.parametrize("suffix", [".pt", ".so"])
def test_an_environment_survives_damaged_files(folder, how, suffix):
    assert VmasEnv("mpe/simple", num_envs=3).path == "kernel"
    files = sorted(path for path in folder.glob("[!.]*.*"))
    for path in files:
        if path.suffix == suffix:
            damage(path, how)
    assert VmasEnv("mpe/simple", num_envs=3).path == "kernel"
    assert sorted({path.suffix for path in folder.glob("[!.]*.*")}) == [".pt", ".so"]
    assert all(cache.intact(path) for path in folder.glob("[!.]*.*"))


def test_the_folder_is_the_users_alone(folder):
    assert cache.cache_folder() == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, mode):
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(mode)
    (place / "x.so").write_bytes(b"anybody's")
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(place))
    with pytest.warns(UserWarning, match=f"other users can write to it .mode {mode:o}; chmod 700"):
        used = cache.cache_folder()
    assert used != place and stat.S_IMODE(used.stat().st_mode) == 0o700
    assert [path.name for path in place.iterdir()] == ["x.so"]


def test_a_folder_in_one_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path / "open" / "mine"))
    with pytest.warns(UserWarning, match="other users can write to .*open"):
        cache.cache_folder()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    place = tmp_path / "theirs"
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(place))
    with pytest.warns(UserWarning, match="another user owns it"):
        assert cache.cache_folder() != place


@needs_compiler
def test_without_a_place_for_kernels_there_is_a_warning_and_a_kernel(tmp_path):
    code = "from envs.vmas.env import VmasEnv; print(VmasEnv('mpe/simple', num_envs=3).path)"
    environment = {**os.environ, "HOME": "/proc/nohome", "PYTHONPATH": str(ROOT)}
    environment.pop("MARL_KERNEL_CACHE", None)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.split() == ["kernel"]
    assert "kernels are not kept in" in run.stderr and "Traceback" not in run.stderr


@needs_compiler
def test_a_compiler_that_hangs_is_ended_with_what_it_started(folder, tmp_path, monkeypatch):
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(compiler, "PATIENCE", 0.5)
    start = time.monotonic()
    with pytest.raises(CannotCompile, match="slow did not end within 0.5 s"):
        compile_library(SOURCE)
    assert time.monotonic() - start < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] in "ZX":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the compiler started still runs")


@pytest.mark.parametrize("message", ["printf '\\377\\376 no text\\n' >&2; exit 1", "exit 3", "kill -9 $$"])
def test_a_compiler_that_fails_is_reported_in_one_sentence(folder, tmp_path, monkeypatch, message):
    script = tmp_path / "failing"
    script.write_text(f"#!/bin/sh\n{message}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        why = VmasEnv("mpe/simple", num_envs=3).why_eager
    assert "failing failed" in why and "\n" not in why


@needs_compiler
def test_a_library_of_several_sources_is_one(folder):
    library = compile_library(
        'int seven();\nextern "C" int width() { return seven(); }', more=["int seven() { return 7; }"]
    )
    assert load(library).width() == 7
    with pytest.raises(CannotCompile, match="failed: .*kernel2.cpp"):
        compile_library(SOURCE, more=["int six() { return 6; }", "int five() { return broken; }"])
    assert not list(folder.glob("build-*"))


@needs_compiler
def test_several_builders_of_one_kernel_agree(folder):
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: compile_library(SOURCE), range(4)))
    assert len(set(libraries)) == 1 and load(libraries[0]).width() == 7
    assert not list(folder.glob("build-*"))


def test_only_builders_of_keys_that_begin_alike_wait_for_each_other(folder, monkeypatch):
    waited = []
    monkeypatch.setattr(cache.time, "sleep", waited.append)
    with cache.building("3f00", ".pt", 0.02):
        with cache.building("3e00", ".pt", 0.02), cache.building("3f00", ".so", 0.02):
            assert not waited
        with cache.building("3f11", ".pt", 0.02):
            assert waited
    waited.clear()
    with cache.building("3f11", ".pt", 0.02):
        assert not waited
    assert sorted(path.name for path in folder.iterdir()) == [".lock-3e.pt", ".lock-3f.pt", ".lock-3f.so"]


def test_old_scratch_is_swept_and_new_scratch_is_left(folder):
    folder.mkdir(mode=0o700)
    for name, age in (("build-old", 2 * cache.ABANDONED), ("build-new", 0.0)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    cache.cache_folder()
    assert [path.name for path in folder.glob("build-*")] == ["build-new"]


def test_a_full_disk_is_reported(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "keep", full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = VmasEnv("mpe/simple", num_envs=3)
    assert env.path == "eager" and "No space left on device" in env.why_eager


def test_keys_follow_every_source_of_the_package_wherever_it_lies(tmp_path, monkeypatch):
    (tmp_path / "kernel" / "ir").mkdir(parents=True)
    names = []
    for place in ("a.py", "kernel/a.py", "kernel/ir/a.py", "kernel/ir/a.h"):
        (tmp_path / place).write_text("pass")
        names.append(sources_of(tmp_path, monkeypatch))
    (tmp_path / "kernel" / "ir" / "a.py").write_text("...")
    names.append(sources_of(tmp_path, monkeypatch))
    (tmp_path / "a.py").rename(tmp_path / "kernel" / "b.py")
    names.append(sources_of(tmp_path, monkeypatch))
    monkeypatch.setattr(compiler, "SIMD", tmp_path / "kernel" / "ir" / "a.h")
    names.append(sources_of(tmp_path, monkeypatch))
    assert len(set(names)) == len(names)


def sources_of(package: Path, monkeypatch) -> str:
    monkeypatch.setattr(compile, "PACKAGE", package)
    compile._sources.cache_clear()
    try:
        return compile._sources()
    finally:
        compile._sources.cache_clear()


def test_a_key_is_the_same_in_every_process(tmp_path):
    """Texts of built-in functions hold addresses, which differ from process to process."""
    program = (
        "import warnings; warnings.filterwarnings('ignore')\n"
        "from envs.kernel.compile import ScenarioState\nfrom envs.vmas.env import VmasEnv\n"
        "env = VmasEnv('balance', num_envs=2, seed=0, fast='off')\n"
        "import torch; env.simulator.scenario.activation = torch.tanh\n"
        "print(ScenarioState(env.world).digest())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1
