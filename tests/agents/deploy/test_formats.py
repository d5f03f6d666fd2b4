"""Every format against `Policy.act` on 10,000 recorded observations, 8-bit files within what the docs say of them."""

import shutil
from pathlib import Path

import pytest

from agents.deploy.c_code.library import COMPILERS
from agents.deploy.formats.comparison import errors, recorded
from agents.deploy.formats.recorded import feeds
from agents.deploy.formats.runners import KINDS, runner
from agents.policies.policy import Policy
from tests.fixtures.runs import make_run

OBSERVATIONS = 10_000
SPREAD, BALANCE = "env=vmas/mpe/simple_spread", "env=vmas/balance"
RUNS = {
    "mlp": [BALANCE],
    "separate": [BALANCE, "algo.share_actor=separate"],
    "gru": [BALANCE, "network=gru", "network.hidden=16", "network.encoder=[16]", "algo.chunk_length=5"],
    "discrete": [SPREAD, "env.continuous_actions=false"],
    "normalised": [SPREAD, "algo.normalize_observation=true"],
    "groups": ["env=vmas/mpe/simple_tag"],
}
NEEDS = {"onnx": "onnxruntime", "int8": "onnxruntime", "int8_static": "onnxruntime", "executorch": "executorch"}
EXACT = 1e-5  # of an action's range, largest error
EIGHT_BITS = {"largest": 0.15, "mean": 0.01, "differing": 0.03}  # shares of the range, of the choices


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, tuple[Policy, dict, list, Path]]:
    """{run: (policy, recorded episodes, what a file is fed along other episodes, where its files go)}."""
    made = {}
    for name, overrides in RUNS.items():
        folder = tmp_path_factory.mktemp("formats")
        policy = Policy.load(make_run(folder / "run", *overrides))
        calibration = feeds(policy, recorded(policy, 300, seed=1))
        made[name] = policy, recorded(policy, OBSERVATIONS, seed=100), calibration, folder
    return made


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "compiled"])  # that one is the policy itself
@pytest.mark.parametrize("run", RUNS)
def test_a_file_acts_as_the_policy_does(cases, run: str, kind: str) -> None:
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind], reason=f"{NEEDS[kind]} is not installed")
    if kind in ("c", "c_int8") and not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C compiler is installed")
    policy, shard, calibration, folder = cases[run]
    found = errors(policy, runner(policy, kind, folder, calibration), shard)
    assert found.observations >= OBSERVATIONS and found.numbers + found.choices >= 3 * OBSERVATIONS
    if "int8" in kind:
        assert found.largest <= EIGHT_BITS["largest"] and found.mean <= EIGHT_BITS["mean"], found
        assert found.differing <= EIGHT_BITS["differing"] * found.choices, found
        assert found.mean > 0 or found.differing > 0, "no product is 8-bit"
    else:
        assert found.largest <= EXACT and found.differing == 0, found
