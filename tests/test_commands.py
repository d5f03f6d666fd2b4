"""Every command that README, the pages and the help texts give is taken as it stands: composed, checked, built."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from marl.config import compose
from marl.config.options import split
from marl.config.overrides import tidy
from marl.core.zoo import index as zoo
from marl.launch import build
from tests.fixtures.runs import make_run
from tests.scripts.conftest import script  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "scripts").glob("*.py"))]
SOURCES += [ROOT / "conf" / "config.yaml", *sorted((ROOT / "conf").rglob("base.yaml"))]
SCRIPT = re.compile(r"(?:python|torchrun [^`]*?) (?:\.\./\.\./)?scripts/(\w+)\.py((?:'[^']*'|[^`'#;&|\n)])*)")
# What stands for something, and what other commands make.
UNTOLD = re.compile(r"\b(NAME|OUT|FOLDER|COMMAND|RUNS?|S)\b(?!_)|…|\[option|\{self|\$@|\"|schedule\|model|outputs/tune")
MISTAKES = {"algo.gama=0.9"}  # the README shows what a mistake prints


def commands() -> Iterator[Any]:
    """(script, its arguments) of every command, each once."""
    seen = set()
    for path in SOURCES:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        for line in text.splitlines():
            for name, rest in SCRIPT.findall(line):
                rest = re.sub(r"\s{3,}\S.*| (?<=\s)\(.*", "", rest.rstrip())  # what a help text says beside a command
                if UNTOLD.search(rest) or name == "benchmark":
                    continue
                arguments = tuple(shlex.split(rest.rstrip(". ")))
                if (name, arguments) not in seen and not MISTAKES & set(arguments):
                    seen.add((name, arguments))
                    yield pytest.param(name, list(arguments), id=f"{path.name}: {name} {' '.join(arguments)}"[:110])


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("commands") / "run")


def test_there_are_as_many_as_there_were() -> None:
    assert len(COMMANDS) > 70 and {command.values[0] for command in COMMANDS} >= {"train", "evaluate", "show", "tune"}


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_it_is_one_that_works(name: str, arguments: list[str], run: Path, script, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(ROOT / "docs" / "examples")
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    replaced = [re.sub(r"RUN_DIR(/checkpoints/iteration_50.pt)?|\$RUN|\$run|outputs/\w+(?=( |$))", str(run), a)
             for a in arguments]  # fmt: skip
    if name == "train":
        for overrides in jobs(replaced):
            fits(overrides)
    elif name == "show":
        compose.check(compose.compose([a for a in replaced[1:] if not a.startswith("out=")]))
    elif name == "doctor":
        assert not replaced
    else:
        values, rest = split(script(name).Options, replaced)
        overrides = [a for a in rest if "=" in a and not Path(a).exists()]
        if name == "tune":
            compose.check(compose.compose(overrides))
        elif name == "evaluate":
            compose.check(compose.saved(values["ckpt"], overrides))
        else:
            assert not overrides or name in ("elo", "crossplay", "report")


def jobs(arguments: list[str]) -> list[list[str]]:
    """The overrides of a run, or of the first and the last job of a sweep."""
    if "--help" in arguments:
        return []
    config = ["--config-dir"] if "--config-dir" in arguments else []
    plain = [a for a in arguments if a not in ("-m", "--config-dir", "conf")]
    if config:
        plain.append(f"hydra.searchpath=['file://{ROOT / 'docs' / 'examples' / 'conf'}']")
    if "-m" not in arguments:
        return [plain]
    parsed = OverridesParser.create().parse_overrides(tidy([a for a in plain if "launcher" not in a]))
    jobs_found = BasicSweeper.split_arguments(parsed, None)[0]
    return [jobs_found[0], jobs_found[-1]]


def fits(overrides: list[str]) -> None:
    """Compose and check; build the environment, too, where the command says more of it than its name."""
    source = [o for o in overrides if o.startswith(("resume=", "init_from="))]
    elsewhere = "init_from=", "device=cuda"  # what this machine may not have
    config = compose.check(compose.compose([o for o in overrides if not o.startswith(elsewhere)]))
    if source:
        path = source[0].partition("=")[2]
        assert path.endswith(".safetensors") or zoo.located(path).exists()
    chosen = [o for o in overrides if re.match(r"\+*env\.(scenario|env|id|kwargs)", o)]
    if chosen and config["env"]:
        pytest.importorskip("mpe2" if "mpe2" in str(chosen) else "torch")
        plain = {"num_envs": 2, "workers": 0, "fast": "off"}  # no kernel is made, unless the command speaks of them
        given = {o.partition("=")[0].removeprefix("env.") for o in overrides} - {"num_envs", "workers"}
        env = build.part(config["env"] | {k: v for k, v in plain.items() if k in config["env"] and k not in given})
        env(seed=0, device="cpu").close()
