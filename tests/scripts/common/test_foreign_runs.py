"""Run directories, checkpoints and policy files of unknown origin: what they name is looked at before it is called."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marl.config import compose
from marl.core.errors import UserError
from marl.launch import cli
from tests.fixtures.runs import make_run
from tests.marl.core.test_kinds import hostile


def test_a_foreign_run_directory_is_refused_by_whatever_reads_it(tmp_path: Path, script, capsys) -> None:
    run, mark = make_run(tmp_path / "run", "env=vmas/balance"), tmp_path / "hostile"
    whole = OmegaConf.load(run / "config.yaml")
    evaluate = script("evaluate")
    for node in hostile(mark).values():
        OmegaConf.save({**whole, "trainer": node}, run / "config.yaml")
        with pytest.raises(SystemExit) as stop, cli.guard():
            evaluate.evaluate(*evaluate.parse([f"ckpt={run}"]))
        assert stop.value.code == 2 and "trainer._target_=" in capsys.readouterr().err
        with pytest.raises(UserError, match="trainer"):
            compose.check(compose.compose([f"resume={run}"]))
    assert not mark.exists()
