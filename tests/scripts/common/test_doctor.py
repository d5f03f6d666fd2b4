"""scripts/doctor.py: a table of this machine, and what it says of others."""

import sys

import pytest
import torch


@pytest.fixture
def doctor(script):
    return script("doctor")


def test_it_prints_a_table_of_this_machine(shell, tmp_path):
    done = shell(tmp_path, "doctor")
    assert done.returncode == 0, done.stderr
    for word in ("Python", torch.__version__, "C++ compiler", "vectors", "CPU cores", "kernel cache", "extra export"):
        assert word in done.stdout, word


def test_without_a_compiler_it_says_what_that_costs(doctor, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    ((what, here, todo),) = doctor.toolchain()
    assert what == "C++ compiler" and here.startswith("none") and "apt-get install g++" in todo


def test_vectors_are_those_of_the_compilers_macros(doctor, monkeypatch, tmp_path):
    fake = tmp_path / "g++"
    macros = "#define __SSE2__ 1\n#define __AVX2__ 1\n#define __AVX512FP16__ 1"
    fake.write_text(f"#!{sys.executable}\nprint({macros!r})\n")
    fake.chmod(0o700)
    monkeypatch.setenv("CXX", str(fake))
    assert doctor.toolchain()[1] == ("vectors", "AVX2, 256 bits: 8 environments at once", "")


def test_an_extra_that_is_missing_says_how_to_install_it(doctor, monkeypatch):
    have = {"onnx": "1", "onnxscript": "1"}
    monkeypatch.setattr(doctor, "installed", have.get)
    rows = {what: (here, todo) for what, here, todo in doctor.extras()}
    assert rows["extra export"] == ("installed", "")
    assert rows["extra serve"] == ("not installed: aiohttp", "pip install -e '.[serve]' -c constraints.txt")
    assert rows["extra mlflow"] == ("not installed: mlflow", "pip install -e '.[mlflow]'")  # wants an older protobuf
    assert "marl-engine" not in rows["extra dev"][0] and rows["extra dev"][1].endswith(" -c constraints.txt")


def test_what_is_optional_is_not_called_missing(doctor):
    here, extra, compiler = (
        ("Python", "3.12", ""),
        ("extra video", "not installed", "pip"),
        ("C++ compiler", "none", "apt"),
    )
    assert doctor.conclusion([here]) == "nothing that is needed is missing"
    assert doctor.conclusion([here, compiler]) == "1 of 2 lines say what to do"
    told = doctor.conclusion([here, extra, extra])
    assert told.startswith("nothing that is needed is missing; of the extras") and told.endswith("2 are not installed")


def test_other_versions_than_the_tested_ones_are_named(doctor, monkeypatch, tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# a comment\ntorch==2.13.0\nnumpy==2.4.6\nabsent==1.0\n")
    monkeypatch.setattr(doctor, "installed", {"torch": "2.13.0+cpu", "numpy": "2.5.0"}.get)
    assert doctor.versions(constraints)[0][1] == "numpy 2.5.0 (tested: 2.4.6)"
    monkeypatch.setattr(doctor, "installed", {"torch": "2.13.0+cpu", "numpy": "2.4.6"}.get)
    assert doctor.versions(constraints)[0][1] == "2 packages, all as they were tested together"
