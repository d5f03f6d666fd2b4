"""A policy's C file against the policy: compiled by this machine's C compilers, on observations recorded in its own
environment.

    python -m agents.deploy.c_code.check RUN_DIR [--weights float32|int8] [--compiler gcc clang]

Prints the largest difference of an action, relative to its size (at least 1), and how many choices differ: with int8
those from a policy whose weights are rounded likewise, and then what the rounding changes. The file's own program is
held to print the same.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.deploy.c_code.files import int8_errors, play, rounded, write
from agents.deploy.c_code.library import Library, compile_c
from agents.deploy.c_code.writer import Weights
from agents.evaluation.own_env import own_env
from agents.policies.policy import Policy
from marl.core.errors import CannotCompile
from marl.launch import cli

ENVS = 100  # that observations are recorded in
PRINTED = 100  # steps of the program, whose input and output are text


def compile_main(source: Path, compiler: str = "gcc") -> Path:
    """The program of a policy's C file, beside it. Raises CannotCompile with the compiler's words."""
    return compile_c(source, source.with_name(f"policy_{Path(compiler).name}"), compiler, "-DPOLICY_MAIN")


def as_text(observations: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> str:
    """What the program reads for an episode: observations [T, A, F] by group, masks bool [T, A, sum(nvec)]."""
    lines = []
    for t in range(len(next(iter(observations.values())))):
        for name, rows in observations.items():
            for agent, row in enumerate(rows[t].tolist()):
                allowed = masks[name][t, agent].int().tolist() if masks and name in masks else []
                lines.append(" ".join([*(f"{x:.9g}" for x in row), *map(str, allowed)]))
    return "\n".join(lines) + "\n"


def run(program: list[str], text: str) -> subprocess.CompletedProcess[str]:
    """A program that has read a text, and what it printed. Raises CannotCompile where it fails."""
    done = subprocess.run(program, input=text, capture_output=True, text=True)
    if done.returncode:
        raise CannotCompile(f"{program[0]} ended with status {done.returncode}: {done.stderr.strip()[:300]}")
    return done


def recorded(policy: Policy, steps: int, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What environments of the policy's own show where actions are random, one environment's steps after another's.

    Returns observations {group: float32 [T, A, F]} and masks {group: bool [T, A, sum(nvec)]} where actions are masked.
    Raises UserError where the policy does not say what it was trained in.
    """
    envs = min(steps, ENVS)
    env = own_env(policy, envs, seed)
    generator, (observation, _) = torch.Generator().manual_seed(seed), env.reset()
    seen: list[dict[str, Tensor]] = []
    allowed: list[dict[str, Tensor]] = []
    for _ in range(-(-steps // envs)):
        seen.append({name: observation[name].clone() for name in policy.spec.groups})
        masks = env.masks()
        allowed.append({n: masks[n]["action"].clone() for n, a in policy.actors.items() if "action" in a.masks})
        observation = env.step(env.random_action(generator)).observation
    env.close()
    found = [{n: torch.stack([one[n] for one in rows], 1).flatten(0, 1) for n in rows[0]} for rows in (seen, allowed)]
    return found[0], found[1]


def printed_actions(policy: Policy, printed: str) -> dict[str, Tensor]:
    """What a program printed of an episode: {group: float32 [T, A, D]}."""
    sizes = {n: (g.n_agents, policy.actors[n].head.raw_size) for n, g in policy.spec.groups.items()}
    rows = torch.from_numpy(np.loadtxt(printed.splitlines(), np.float32, ndmin=2))
    parts = rows.split([a * d for a, d in sizes.values()], 1)
    return {n: part.reshape(-1, *sizes[n]) for n, part in zip(sizes, parts, strict=True)}


def library_actions(
    policy: Policy, library: Library, observations: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What a policy's C file does in one episode, in which no memory is cleared: {group: float32 [T, A, D]}.

    observations, masks: as `recorded` returns them.
    """
    feed = {f"{name}_observation": o for name, o in observations.items()}
    feed |= {f"{name}_action_mask": mask for name, mask in (masks or {}).items()}
    memory, groups = policy.memory(1), list(policy.spec.groups)
    size = 1 if memory else len(next(iter(observations.values())))  # without a memory all steps are one batch
    steps: list[list[Tensor]] = []
    remembered = {f"{name}_memory": value.numpy() for name, value in memory.items()}
    for parts in zip(*(value.split(size) for value in feed.values()), strict=True):
        inputs = {name: part.numpy() for name, part in zip(feed, parts, strict=True)}
        outputs = [torch.from_numpy(x) for x in library.step(library.prepare(inputs | remembered))]
        steps.append(outputs[: len(groups)])
        remembered = {name: x.numpy() for name, x in zip(remembered, outputs[len(groups) :], strict=True)}
    return {name: torch.cat(parts).float() for name, parts in zip(groups, zip(*steps, strict=True), strict=True)}


def compare(
    policy: Policy,
    ours: Mapping[str, Tensor],
    observations: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[float, int, int]:
    """How a C file's actions differ from the policy's over one episode, in which no memory is cleared.

    ours: of `library_actions` or `printed_actions`. observations, masks: what it saw, as `recorded` returns it. Returns
    the largest difference of a number relative to its size (at least 1), how many choices differ, and how many actions
    of agents were compared.
    """
    side = 1 if policy.memory() else 0  # without a memory all steps are one batch
    given = {name: o.unsqueeze(side) for name, o in observations.items()}
    actions = play(policy, given, {name: m.unsqueeze(side) for name, m in (masks or {}).items()})
    worst, other, count = 0.0, 0, 0
    for name in policy.spec.groups:
        theirs = torch.cat([action[name] for action in actions]).double()
        numbers = policy.actors[name].head.n_continuous
        error = (ours[name].double() - theirs).abs()
        if numbers:
            worst = max(worst, float((error / theirs.abs().clamp(min=1))[..., :numbers].max()))
        other += int((error[..., numbers:] > 0).sum())
        count += theirs[..., 0].numel()
    return worst, other, count


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", help="as scripts/export.py takes it")
    parser.add_argument("--weights", choices=("float32", "int8"), default="float32")
    parser.add_argument("--compiler", nargs="+", default=("gcc", "clang"), help="those that are installed are used")
    parser.add_argument("--steps", type=int, default=10_000, help="observations of every agent")
    options = parser.parse_args(arguments)
    compilers = [name for name in options.compiler if shutil.which(name)]
    if not compilers:  # with nothing compiled, silence would look like agreement
        parser.error(f"--compiler {' '.join(options.compiler)}: none is installed")
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: must be at least 1")
    with cli.guard():
        report(options.ckpt, options.weights, compilers, options.steps)


def report(ckpt: str, weights: Weights, compilers: list[str], steps: int) -> None:
    """Print what each compiler made of a policy. Raises UserError for one that can't be loaded or written."""
    policy = Policy.load(ckpt)
    observations, masks = recorded(policy, steps)
    for compiler in compilers:
        with tempfile.TemporaryDirectory() as folder:
            source = write(policy, Path(folder), weights)
            acted = library_actions(policy, Library(source, compiler), observations, masks)
            first = [{name: value[:PRINTED] for name, value in rows.items()} for rows in (observations, masks)]
            printed = printed_actions(policy, run([str(compile_main(source, compiler))], as_text(*first)).stdout)
        if not all(torch.equal(printed[name], acted[name][:PRINTED]) for name in acted):
            raise SystemExit(f"{compiler}: the program prints other actions than the functions return")
        like = rounded(policy) if weights == "int8" else policy
        worst, other, count = compare(like, acted, observations, masks)
        print(f"{compiler}: {count:,} actions, largest relative difference {worst:.1e}, {other} other choices")
    if weights == "int8":
        errors = int8_errors(policy, {name: o.unsqueeze(1) for name, o in observations.items()})
        for name, (number, share) in errors.items():
            print(
                f"{name}: eight bits change a number by {number:.2g} of its range at most, and {share:.2%} of choices"
            )


if __name__ == "__main__":
    main()
