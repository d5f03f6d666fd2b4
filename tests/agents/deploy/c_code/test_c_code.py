"""Policies as C: the same actions from a program of gcc's, without a warning, of every kind of network and head."""

import shutil
from pathlib import Path

import pytest
import torch

from agents.deploy.c_code.check import compare, compile_main, recorded
from agents.deploy.c_code.files import int8_errors, rounded, write
from agents.deploy.c_code.networks import quantised
from agents.deploy.c_code.writer import literal
from agents.deploy.export import export
from agents.policies.policy import Policy
from marl.core.errors import UserError
from tests.fixtures.runs import make_run

RUNS = {
    "mlp": ["env=vmas/mpe/simple_spread"],
    "separate": [
        "env=vmas/mpe/simple_tag",
        "algo.share_actor=separate",
        "network.layer_norm=true",
        "network.activation=gelu",
    ],
    "normalised": ["env=vmas/balance", "algo.normalize_observation=true", "network.activation=elu"],
    "discrete": ["env=vmas/mpe/simple_spread", "env.continuous_actions=false", "env.multi_discrete=true"],
    "hybrid": ["env=vmas/mpe/simple_reference", "env.words=discrete", "network.activation=mish"],
    "clipped": ["env=vmas/mpe/simple_spread", "algo.policy=clipped_normal", "network.activation=silu"],
    "gru": ["env=vmas/balance", "network=gru", "network.layers=2"],
    "lstm": ["env=vmas/mpe/simple_tag", "network=lstm", "network.encoder=[16]", "algo.agent_ids=true"],
}
STEPS = 1000
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    return {name: make_run(tmp_path_factory.mktemp("runs") / name, *overrides) for name, overrides in RUNS.items()}


@needs_gcc
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("name", RUNS)
def test_the_program_acts_as_the_policy(runs, name: str, weights: str, tmp_path: Path) -> None:
    policy = Policy.load(runs[name])
    observations, masks = recorded(policy, STEPS)
    program = compile_main(write(policy, tmp_path, weights))
    worst, other, count = compare(policy if weights == "float32" else rounded(policy), [str(program)], observations, masks)
    agents = sum(group.n_agents for group in policy.spec.groups.values())
    assert count == STEPS * agents and worst <= 2e-6 and other <= count / 1000
    print(f"{name} {weights}: {worst:.2g} {other} of {count}")
