"""The configurations that people run: each composes, fits the signatures, and says what its keys mean."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from marl.callbacks.early_stopping import EarlyStopping
from marl.config import compose, conf_tree
from marl.core.errors import UserError
from marl.launch import build
from marl.loggers.loggers import CSVLogger, TensorBoardLogger

CONF = conf_tree.CONF
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
CHOSEN = [group for group in GROUPS if group != "study"]  # studies are read by tune.py alone
OPTIONS = [f"{group}={option}" for group in CHOSEN for option in conf_tree.group_options(group)]
PLAIN = sorted(p for g in GROUPS if g not in ("experiment", "debug") for p in (CONF / g).rglob("*.yaml"))


@cache
def composed(*overrides: str) -> dict[str, Any]:
    """A checked configuration, for tests that change nothing in it."""
    return compose.check(compose.compose(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_its_signatures(option: str, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # for trainer=gpu: nothing is built here
    chosen_by = {"task=off_policy": ["algo=masac"], "task=short_horizon": ["algo=shac"]}  # the algorithm itself
    config = composed(option, *chosen_by.get(option, []))
    if option.startswith("experiment="):
        assert config["experiment"] == option.partition("=")[2]


@pytest.mark.parametrize("experiment", conf_tree.group_options("experiment"))
def test_every_experiment_has_a_budget_of_its_kind(experiment: str) -> None:
    config = composed(f"experiment={experiment}")
    kind = config["task"]["_target_"].rpartition(".")[2]
    from_data = kind in ("Supervised", "Clone")
    assert (config["frames"] is None) == from_data and (config["epochs"] is None) != from_data
    assert (config["env"] is None) == (kind == "Supervised") and (config["data"] is None) != from_data
    build.build_trainer({"trainer": {**config["trainer"], "threads": None}})
    build.build_setup({**config, "logger": None})


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_is_explained(path: Path) -> None:
    """By a comment on its line, or, where that is long, on the line above."""
    silent, above = [], ""
    in_defaults = False
    for line in path.read_text().splitlines():
        assert len(line) <= 120, line
        in_defaults = line.startswith("defaults:") or (in_defaults and line.startswith(" "))
        key = re.match(r"\s*(?:- )?(\w+): *[^\s#]", line)  # a key with a value on its line
        if key and not in_defaults and not key[1].startswith("_") and "#" not in line and above[:1] != "#":
            silent.append(line)
        above = line.strip()
    assert not silent


def test_top_level_keys_are_those_that_other_programs_rely_on() -> None:
    config = compose.check(compose.compose())
    assert {"seed", "frames", "epochs", "device", "ckpt", "resume", "init_from"} <= set(config)
    assert config["env"]["scenario"] == "balance" and config["algo"]["critic"] == "concat"


def test_groups_can_be_emptied_and_free_keys_need_no_plus() -> None:
    config = compose.check(compose.compose(["env=null", "experiment=null", "logger=csv"]))
    assert config["env"] is None and list(config["logger"]) == ["csv"]
    config = compose.check(compose.compose(["env.scenario_kwargs.n_agents=5", "optimizer.kwargs.amsgrad=true"]))
    assert config["env"]["scenario_kwargs"]["n_agents"] == 5
    assert config["optimizer"]["kwargs"]["amsgrad"] is True


def test_the_critics_may_have_a_network_of_their_own() -> None:
    config = compose.check(compose.compose(["network@critic_network=mlp", "critic_network.hidden=[8]"]))
    assert config["critic_network"]["hidden"] == [8] and config["network"]["hidden"] != [8]


def test_parts_are_built_as_configured() -> None:
    config = compose.check(compose.compose(["callbacks=early_stopping", "callbacks.early_stopping.patience=7"]))
    setup = build.build_setup(config)
    assert setup["optimizer"].name == "Adam" and setup["optimizer"].kwargs == {"eps": 1e-5}
    assert type(setup["optimizer"].kwargs) is dict and type(setup["schedule"].stages) is list
    assert [type(logger) for logger in setup["loggers"]] == [CSVLogger, TensorBoardLogger]
    assert [(type(c), c.patience) for c in setup["callbacks"]] == [(EarlyStopping, 7)]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("algo=mapo", r"algo=mapo: no such option; did you mean 'mappo'.*there are apg, iddpg, ippo, iql"),
        ("env=vmas/balanc", r"env=vmas/balanc: no such option; did you mean 'vmas/balance'"),
        ("experiment=digit", r"experiment=digit: no such option; did you mean 'digits'"),
        ("algo.gama=1", r"unknown key 'algo.gama'; did you mean 'gamma'\? \(there are "),
        ("alg=ippo", r"unknown key 'alg'; did you mean 'algo'"),
        ("experiments=digits", r"unknown key 'experiments'; did you mean 'experiment'"),
        ("algo.gamma=[1", r"cannot read 'algo.gamma=\[1'"),
        ("algo.gamma", r"cannot read 'algo.gamma': write key=value"),
        ("+algo.gama=1", r"unknown key 'algo.gama'; did you mean 'gamma'\? \(allowed are "),
        ("seed=???", r"seed: a value is required; give seed=…"),
        ("frames=${nothing}", r"[Ii]nterpolation key 'nothing' not found"),
    ],
)
def test_mistakes_of_composition_are_worded(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        compose.check(compose.compose([override]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("study", conf_tree.group_options("study"))
def test_the_space_of_a_study_is_of_what_it_trains(study: str) -> None:
    node = yaml.safe_load((CONF / "study" / f"{study}.yaml").read_text())
    for end in (0, -1):
        ends = {key: list(one.get("choices") or (one["low"], one["high"]))[end] for key, one in node["space"].items()}
        compose.check(compose.compose([*node["base"], *(f"{key}={value}" for key, value in ends.items())]))
