"""Run directories, checkpoints and policy files of unknown origin: what they name is looked at before it is called."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marl import cli, compose
from marl.errors import UserError
from tests.marl.test_kinds import hostile
from tests.runs import make_run


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


