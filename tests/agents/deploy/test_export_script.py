"""scripts/export.py: 8-bit files from a recorded data set, and one sentence for what does not fit together."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.deploy import export as export_module
from agents.policies.policy import Policy
from marl.core.errors import UserError
from tests.scripts.conftest import script  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[3]
BALANCE = str(ROOT / "docs" / "zoo" / "balance.safetensors")


def test_observations_are_recorded_and_an_8_bit_file_is_calibrated_on_them(script, tmp_path: Path, capsys) -> None:  # noqa: F811
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
    record, export = script("record"), script("export")
    episodes, out = tmp_path / "episodes", tmp_path / "export"
    record.run(record.Options(BALANCE, episodes=3, out=str(episodes), deterministic=True))
    options = export.Options(BALANCE, quantize="int8_static", calibration=str(episodes), out=str(out))
    file = export.run(options)
    assert file.name == "policy_int8_static.onnx" and str(file) in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "`policy_int8_static.onnx` maps" in card and "fixed from recorded observations" in card
    session = onnxruntime.InferenceSession(str(file))
    assert json.loads(session.get_modelmeta().custom_metadata_map["policy"])["env"]["scenario"] == "balance"
    group = Policy.load(BALANCE).spec.groups["agents"]
    seen = np.zeros((3, group.n_agents, group.observation_size), np.float32)
    assert session.run(None, {"agents_observation": seen})[0].shape == (3, group.n_agents, 2)


def test_what_does_not_fit_is_refused_in_a_sentence(script, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    export, cases = script("export"), {}
    cases["quantize=int8: format=torchscript has no such weights; format=onnx has int8 and int8_static"] = {
        "format": "torchscript",
        "quantize": "int8",
    }
    cases["calibration=x: only quantize=int8_static reads recorded observations"] = {"calibration": "x"}
    cases[f"calibration={tmp_path}: no recorded episodes there; python scripts/record.py ckpt=RUN_DIR out="] = {
        "quantize": "int8_static",
        "calibration": str(tmp_path),
    }
    for sentence, values in cases.items():
        with pytest.raises(UserError, match=re.escape(sentence)):
            export.run(export.Options(BALANCE, out=str(tmp_path / "out"), **values))
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.backends", None)
    with pytest.raises(UserError, match=r"is not installed; run pip install -e '\.\[executorch\]'"):
        export.run(export.Options(BALANCE, format="executorch", out=str(tmp_path / "out")))


def test_episodes_of_other_agents_calibrate_nothing(script, tmp_path: Path) -> None:  # noqa: F811
    record, export = script("record"), script("export")
    record.run(record.Options(BALANCE, episodes=1, out=str(tmp_path / "episodes")))
    navigation = BALANCE.replace("balance", "navigation")
    options = export.Options(navigation, quantize="int8_static", calibration=str(tmp_path / "episodes"))
    with pytest.raises(UserError, match=r"recorded episodes: observations of agents are to be \[3, 18\]"):
        export.run(options)


def test_the_executorch_lines_of_the_docs_run(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("executorch", reason="pip install -e '.[executorch]'")
    text = (ROOT / "docs" / "export.md").read_text()
    lines = re.search(r"```python\n(import torch\nfrom executorch.*?)```", text, re.S)[1]
    policy = Policy.load(BALANCE)
    export_module.export(policy, "executorch", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines, names)
    group = policy.spec.groups["agents"]
    seen = names["torch"].zeros(1, group.n_agents, group.observation_size)
    names["torch"].testing.assert_close(names["actions"], policy.act(seen), atol=1e-6, rtol=0)
