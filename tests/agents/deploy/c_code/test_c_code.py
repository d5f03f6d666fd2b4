"""Policies as C: the same actions from a program of gcc's, without a warning, of every kind of network and head."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.deploy.c_code import cortex_m
from agents.deploy.c_code.check import (
    as_text,
    compare,
    compile_main,
    library_actions,
    printed_actions,
    recorded,
    run,
)
from agents.deploy.c_code.files import int8_errors, rounded, write
from agents.deploy.c_code.library import Library
from agents.deploy.c_code.networks import quantised
from agents.deploy.c_code.writer import literal
from agents.deploy.export import export
from agents.deploy.formats.runners import runner
from agents.policies.policy import Policy
from marl.core.errors import CannotCompile, UserError
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
needs_board = pytest.mark.skipif(bool(cortex_m.why_not()), reason=cortex_m.why_not() or "all is there")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    return {name: make_run(tmp_path_factory.mktemp("runs") / name, *overrides) for name, overrides in RUNS.items()}


@needs_gcc
@pytest.mark.parametrize("name", RUNS)
def test_the_program_acts_as_the_policy(runs, name: str, tmp_path: Path) -> None:
    """In 32 bits as the policy; in eight as one whose weights are rounded. Of 1,000 choices one may be a near tie."""
    policy = Policy.load(runs[name])
    observations, masks = recorded(policy, STEPS)
    agents = sum(group.n_agents for group in policy.spec.groups.values())
    for weights, like in (("float32", policy), ("int8", rounded(policy))):
        source = write(policy, tmp_path, weights)
        printed = printed_actions(policy, run([str(compile_main(source))], as_text(observations, masks)).stdout)
        worst, other, count = compare(like, printed, observations, masks)
        assert count == STEPS * agents and worst <= 1e-6 and other <= count / 1000, weights
        returned = library_actions(policy, Library(source), observations, masks)
        assert all(torch.equal(returned[group], printed[group]) for group in printed), "the functions do something else"


@needs_gcc
@pytest.mark.skipif(not shutil.which("clang"), reason="clang is not installed")
def test_clang_takes_it_without_a_warning(runs, tmp_path: Path) -> None:
    for name in RUNS:
        assert compile_main(write(Policy.load(runs[name]), tmp_path), "clang").is_file()


@needs_gcc
def test_choices_that_are_masked_are_not_made(runs, tmp_path: Path) -> None:
    """A policy that was trained without masks, in an environment that has them."""
    policy = Policy.load(runs["discrete"])
    group = policy.spec.groups["agents"]
    for actor in policy.actors.values():
        actor.masks = ("action",)
    choices = sum(group.action.nvec)
    generator = torch.Generator().manual_seed(0)
    observations = {"agents": torch.randn(50, group.n_agents, group.observation_size, generator=generator)}
    masks = {"agents": torch.rand(50, group.n_agents, choices, generator=generator) < 0.5}
    source = write(policy, tmp_path)
    printed = printed_actions(policy, run([str(compile_main(source))], as_text(observations, masks)).stdout)
    returned = library_actions(policy, Library(source), observations, masks)
    assert torch.equal(returned["agents"], printed["agents"])
    assert compare(policy, printed, observations, masks)[1:] == (0, 50 * group.n_agents)
    assert compare(policy, printed, observations)[1] > 0  # which the masks decide
    assert "#define POLICY_AGENTS_CHOICES" in (tmp_path / "policy.h").read_text()


@needs_gcc
def test_memories_go_by_the_layout_of_the_policy(runs, tmp_path: Path) -> None:
    """From a memory of any numbers a step leads to the policy's; what was given stays as it was."""
    policy = Policy.load(runs["lstm"])
    generator = torch.Generator().manual_seed(0)
    seen = {
        n: torch.randn(3, g.n_agents, g.observation_size, generator=generator) for n, g in policy.spec.groups.items()
    }
    memory = {name: torch.randn(zeros.shape, generator=generator) / 2 for name, zeros in policy.memory(3).items()}
    library = Library(write(policy, tmp_path))
    feed = {f"{name}_observation": value.numpy() for name, value in seen.items()}
    prepared = library.prepare(feed | {f"{name}_memory": value.numpy() for name, value in memory.items()})
    library.step(prepared)
    after = library.step(prepared)[len(seen) :]
    for ours, theirs in zip(after, policy.act(seen, memory=memory)[1].values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=1e-6)


@needs_gcc
def test_inputs_of_another_shape_never_reach_the_functions(runs, tmp_path: Path) -> None:
    library = Library(write(Policy.load(runs["mlp"]), tmp_path))
    with pytest.raises(UserError, match=r"agents_observation is to be \[B, 3, 14\], not \[2, 3, 17\]"):
        library.prepare({"agents_observation": np.zeros((2, 3, 17), np.float32)})


def test_without_a_compiler_a_sentence_says_so(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match=r"no C compiler was found \(looked for \$CC, gcc, clang and cc\)"):
        runner(Policy.load(runs["mlp"]), "c", tmp_path)


@needs_gcc
def test_the_program_refuses_what_is_no_observation(runs, tmp_path: Path) -> None:
    program = compile_main(write(Policy.load(runs["mlp"]), tmp_path))
    assert run([str(program)], "").stdout == ""
    for wrong in ("1 2 3", "left"):
        with pytest.raises(CannotCompile, match=r"status 1: a step's input ends early or holds what is no number"):
            run([str(program)], wrong)


def test_eight_bits_by_hand() -> None:
    """The largest of a row is 127 steps; a row of zeros stays zeros."""
    steps, scale = quantised(torch.tensor([[1.27, -0.634, 0.0], [0.0, 0.0, 0.0]]))
    assert steps.tolist() == [[127, -63, 0], [0, 0, 0]]
    torch.testing.assert_close(scale[0], torch.tensor(0.01))


def test_numbers_keep_every_bit() -> None:
    values = torch.tensor([1.0, -0.1, 1e-42, 16777217.0, 3.4e38, float("inf"), float("-inf")])
    words = [literal(x) for x in values.tolist()]
    assert words[0] == "1.0f" and words[-2:] == ["INFINITY", "-INFINITY"]
    assert torch.equal(torch.tensor([float(word.rstrip("f")) for word in words[:-2]]), values[:-2])


def test_what_eight_bits_cost_is_told_and_true(runs, tmp_path: Path) -> None:
    """On observations of the policy's own environment the error is no larger than three times what the file says."""
    policy = Policy.load(runs["mlp"])
    file = export(policy, "c", tmp_path, "int8")
    told = int8_errors(policy)["agents"][0]
    assert f"agents's numbers differ by {told:.2g} of their range at most" in file.read_text()
    seen = int8_errors(policy, {name: o.unsqueeze(1) for name, o in recorded(policy, 200)[0].items()})["agents"][0]
    assert 0 < told < 0.05 and seen <= 3 * told
    assert "policy.h" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("network", ["attention", "deep_sets", "graph"])
def test_networks_of_a_whole_team_are_refused(network: str, tmp_path: Path) -> None:
    policy = Policy.load(make_run(tmp_path / "run", "env=vmas/balance", f"network={network}"))
    with pytest.raises(UserError, match=r"network=\w+ can't be written as C; MLP, Linear, GRU and LSTM can"):
        export(policy, "c", tmp_path / "export")
    assert not (tmp_path / "export" / "policy.c").exists()


@needs_board
@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_a_cortex_m4_acts_as_the_policy(runs, name: str, tmp_path: Path) -> None:
    policy = Policy.load(runs[name])
    observations, masks = recorded(policy, 20)
    report = cortex_m.measure(policy, tmp_path, observations, masks)
    assert report.worst <= 1e-6 and report.data == 0
    parameters = sum(p.numel() for p in policy.actors.parameters())
    instructions, stack = report.instructions["agents"], report.stack["agents"]
    assert report.constants <= 4 * parameters + 200 and 0 < report.code < 4000
    assert 3 * parameters < instructions < 30 * parameters and 256 <= stack < 16_000
    assert f"| agents | {report.code:,} |" in cortex_m.table(report)
