"""The C files of a policy, and what a policy in eight bits costs in exactness, measured where it is written."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from agents.deploy.c_code.networks import quantise
from agents.deploy.c_code.writer import CWriter, Weights
from agents.models.inputs import Inputs
from agents.policies.policy import Policy
from marl.core import files

STEPS, EPISODES = 100, 100  # observations of each agent that the error of eight bits is measured on


def write(policy: Policy, folder: Path, weights: Weights = "float32") -> Path:
    """Writes policy.c and policy.h into `folder`; the path of the first. Raises UserError for what can't be written."""
    writer = CWriter(policy, weights)
    run = policy.metadata.get("run") or {}
    comment = f"{run.get('name') or 'A policy'}: the deterministic actions of a team, weights in {weights}."
    if weights == "int8":
        comment += f"\n   {said(policy)}"
    comment = comment.replace("*/", "* /").replace("/*", "/ *")
    files.write(folder / "policy.h", writer.header(comment).encode())
    target = folder / "policy.c"
    files.write(target, writer.source(comment).encode())
    return target


def said(policy: Policy) -> str:
    """What eight bits cost, in one sentence."""
    errors = int8_errors(policy)
    parts = []
    for name, group in policy.spec.groups.items():
        number, share = errors[name]
        if group.action.low is not None:
            parts.append(f"{name}'s numbers differ by {number:.2g} of their range at most")
        if group.action.nvec:
            parts.append(f"{share:.2%} of {name}'s choices differ")
    return f"Eight bits against 32, on {STEPS * EPISODES:,} drawn observations of every agent: {', '.join(parts)}."


@torch.no_grad()
def int8_errors(policy: Policy, observations: Mapping[str, Tensor] | None = None) -> dict[str, tuple[float, float]]:
    """What rounding the weights to eight bits changes: {group: (largest change of a number by the size of its range, or
    by itself where that is endless; share of the choices that are others)}.

    observations: {group: float32 [T, E, A, F]}, E episodes of T steps; None: drawn, normal, with mean and deviation of
    the policy's own statistics where it normalises.
    """
    observations = drawn(policy) if observations is None else observations
    pairs = zip(play(policy, observations), play(rounded(policy), observations), strict=True)
    worst = {name: (0.0, 0.0) for name in policy.actors}
    wrong: dict[str, list[float]] = {name: [] for name in policy.actors}
    for exact, near in pairs:
        for name, group in policy.spec.groups.items():
            action, numbers = group.action, 0 if group.action.low is None else group.action.low.shape[-1]
            difference = (exact[name] - near[name]).abs().float()
            if numbers:
                size = action.high - action.low
                size = torch.where(size.isfinite() & (size > 0), size, 1.0)
                worst[name] = max(worst[name][0], float((difference[..., :numbers] / size).max())), 0.0
            if difference.shape[-1] > numbers:
                wrong[name].append(float((difference[..., numbers:] > 0).float().mean()))
    return {n: (number, sum(wrong[n]) / max(len(wrong[n]), 1)) for n, (number, _) in worst.items()}


def rounded(policy: Policy) -> Policy:
    """A copy whose weights are those of its file in eight bits."""
    out = copy.deepcopy(policy)
    quantise(out)
    return out


def play(
    policy: Policy, observations: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> list[dict[str, Tensor]]:
    """The deterministic actions {group: [E, A, D]} of T steps, for observations [T, E, A, F], memories carried along.

    masks: of actions, {group: bool [T, E, A, sum(nvec)]}.
    """
    steps, episodes = next(iter(observations.values())).shape[:2]
    memory, out = policy.memory(episodes), []
    for t in range(steps):
        kinds = {name: {"action": mask[t]} for name, mask in (masks or {}).items()}
        actions, memory = policy.act({name: o[t] for name, o in observations.items()}, masks=kinds, memory=memory)
        out.append(actions)
    return out


def drawn(policy: Policy) -> dict[str, Tensor]:
    """Observations [STEPS, EPISODES, A, F] as `int8_errors` draws them."""
    generator = torch.Generator().manual_seed(0)
    out = {}
    for name, group in policy.spec.groups.items():
        x = torch.randn(STEPS, EPISODES, group.n_agents, group.observation_size, generator=generator)
        inputs: Inputs = policy.actors[name].inputs
        out[name] = x if inputs.norm is None else (x - inputs.norm.shift) / inputs.norm.scale
    return out
