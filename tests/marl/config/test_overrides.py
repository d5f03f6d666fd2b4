"""What people write on a command line: paths of any characters, groups by name, keywords of one scenario only."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from marl.checkpoints import checkpoint_file
from marl.config import compose, overrides
from marl.config.options import split
from marl.config.preset_settings import LeftOut
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import build
from tests.fixtures.runs import make_run

NAMES = [
    "plain",
    "two words",
    "it's",
    'a "quoted" one',
    "naïve – 数",
    "a=1,b=2",
    "[list]",
    "{x: y}",
    "50%",
    "#1 & (2)",
    "2026",
    "null",
    "'in quotes'",
    "back\\slash",
    "ends with \\",
    " space ",
    "~tilde",
]


def test_a_preset_with_another_algorithm_leaves_out_what_that_one_has_not() -> None:
    with pytest.warns(LeftOut, match="algo.entropy_coef, which PPO has and PQN has not: left out"):
        config = compose.check(compose.compose(["experiment=tictactoe", "algo=pqn"]))
    assert config["algo"]["gamma"] == 1.0 and "entropy_coef" not in config["algo"]  # what both have is the preset's
    for given in ("algo.entropy_coef=0.1", "+algo.clipp=1"):  # what one sets oneself must fit
        with pytest.raises(UserError, match="unknown key 'algo.(entropy_coef|clipp)'"):
            compose.check(compose.compose(["experiment=tictactoe", "algo=pqn", given]))


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_that_path_however_it_is_called(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    for path in (name, str(tmp_path / name)):
        for key in ("resume", "init_from", "ckpt", "data.folder", "data.file", "hydra.run.dir"):
            (text,) = overrides.tidy([f"{key}={path}"])
            assert OverridesParser.create().parse_override(text).value() == path
        assert overrides.value_of(overrides.tidy([f"resume={path}"]), "resume") == path


MEANING = ("2026", "null", "[list]", "{x: y}", " space ", "a=1,b=2")  # something else, unless it is there


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MEANING])
def test_so_is_one_that_is_still_to_be_made(name: str) -> None:
    (text,) = overrides.tidy([f"hydra.run.dir={name}"])
    expected = name.strip("'") if name == "'in quotes'" else name
    assert OverridesParser.create().parse_override(text).value() == expected


def test_what_means_something_to_hydra_stays() -> None:
    same = ["init_from=a,b", "hydra.run.dir=${paths.output_dir}/x", "data.folder='x y'", "resume=null", "ckpt=", "-m"]
    assert overrides.tidy(same) == same
    changed = {"env=null": "~env", "+env.scenario_kwargs.n_agents=5": "++env.scenario_kwargs.n_agents=5"}
    changed["groups.a.policy=random"] = "++groups.a.policy=random"
    assert overrides.tidy(list(changed)) == list(changed.values())


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("odd") / 'it\'s "a" run – é=1')


def test_a_run_with_an_odd_name_is_read_however_it_is_quoted(odd_run: Path) -> None:
    escaped = str(odd_run).replace('"', '\\"')
    for text in (str(odd_run), f'"{escaped}"'):
        assert compose.compose([f"resume={text}"]).resume == str(odd_run)
        assert compose.compose([f"init_from={text}"]).init_from == str(odd_run)
        assert split(Options, [f"ckpt={text}"])[0] == {"ckpt": str(odd_run)}
    build.rebuild(odd_run)


@dataclass
class Options:
    """Of a script that reads runs."""

    ckpt: str


def test_a_checkpoint_is_found_by_its_folder_and_rebuilds_its_task_alone(odd_run: Path, tmp_path: Path) -> None:
    folder = odd_run / "checkpoints"
    assert run_directory.find(folder) == folder / "last.pt"
    assert run_directory.config_of(folder) == odd_run / "config.yaml"
    lone = tmp_path / "lone.pt"
    lone.write_bytes((folder / "last.pt").read_bytes())
    config, task = build.rebuild(lone)
    assert config["env"]["num_envs"] == 4
    saved = checkpoint_file.load(lone)["loss"]
    assert all((value == saved[name]).all() for name, value in task.loss.state_dict().items())
    with pytest.raises(UserError, match="holds no configuration; give a run directory or a checkpoint"):
        weights = tmp_path / "last.safetensors"
        weights.write_bytes((folder / "last.safetensors").read_bytes())
        compose.saved(weights)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("experiment=-1", "experiment=-1: no such option .there are "),
        ("experiment=[1,2]", r"experiment=\[1,2\]: no such option"),
        ("experiment=nan", "experiment=nan: no such option"),
        ("network=1.5", "network=1.5: no such option .there are attention"),
        ("hydra=1", "hydra=1: hydra's own settings are single keys"),
        ("@seed=1", "cannot read '@seed=1': write key=value"),
        ("=1", "cannot read '=1': write key=value"),
        ("paths=null", "paths=null: every run has one; choose one of default"),
        ("trainer=null", "trainer=null: every run has one; choose one of ddp, default, gpu"),
        ("logger.csv=text", "logger.csv=text: must be a node with a _target_ that names a marl.loggers.loggers.Logger"),
        ("+callbacks.a=1", "callbacks.a=1: must be a node with a _target_ that names a marl.callbacks.base.Callback"),
        ("+seed=1", r"\+seed=…: this key is there already; write seed=… without the '\+'"),
        ("+algo.gamma=1", r"\+algo.gamma=…: this key is there already; write algo.gamma=… without"),
        ("network.hidden=[1000000000]", r"network.hidden\[0\]=1000000000: must be at most 1000000"),
        ("trainer.threads=1000000", "trainer.threads=1000000: must be at most 1024"),
    ],
)
def test_mistakes_are_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        compose.check(compose.compose([override]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "kwargs"),
    [
        (["env.scenario=navigation"], {}),
        (["env.scenario=balance"], "as they were"),
        (["env.scenario=discovery", "+env.scenario_kwargs.n_agents=5"], {"n_agents": 5}),
        (["experiment=benchmarl_balance", "env.scenario=a.B", "env.scenario_kwargs.size=2"], {"size": 2}),
        (["env=vmas/base", "env.scenario=a.B", "+env.scenario_kwargs={size: 2}"], {"size": 2}),
        (["+env.scenario_kwargs.n_agents=5"], "one changed"),
    ],
)
def test_another_scenario_drops_the_keywords_of_the_one_before(arguments: list[str], kwargs) -> None:
    standard = json.loads(json.dumps(compose.check(compose.compose([]))["env"]["scenario_kwargs"]))
    expected = {"as they were": standard, "one changed": {**standard, "n_agents": 5}}.get(str(kwargs), kwargs)
    assert compose.check(compose.compose(arguments))["env"]["scenario_kwargs"] == expected


def test_so_do_environments_by_dotted_path(odd_run: Path) -> None:
    first = compose.compose(["env=torchrl"]).env.kwargs
    assert first and not compose.compose(["env=torchrl", "env.env=my.Mine"]).env.kwargs
    arguments = ["env=torchrl", "env.env=torchrl.envs.VmasEnv", "env.kwargs={scenario: balance}"]
    assert dict(compose.compose(arguments).env.kwargs) == {"scenario": "balance"}
    assert not compose.saved(odd_run, ["env.scenario=navigation"]).env.scenario_kwargs
