"""A policy's C file against the policy: compiled by this machine's C compilers, on observations recorded in its own
environment.

    python -m agents.deploy.c_code.check RUN_DIR [--weights float32|int8] [--compiler gcc clang]

Prints the largest difference of an action, relative to its size (at least 1), and how many choices differ: with int8
those from a policy whose weights are rounded likewise, and then what the rounding changes.
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
from agents.policies.policy import Policy
from marl.core.errors import CannotCompile, UserError
from marl.core.kinds import build

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")
ENVS = 100  # that observations are recorded in


def compile_main(source: Path, compiler: str = "gcc") -> Path:
    """The program of a policy's C file, beside it. Raises CannotCompile with the compiler's words."""
    program = source.with_name(f"policy_{Path(compiler).name}")
    done = subprocess.run(
        [compiler, *FLAGS, "-DPOLICY_MAIN", str(source), "-o", str(program), "-lm"], capture_output=True, text=True
    )
    if done.returncode:
        raise CannotCompile(f"{compiler} failed: {done.stderr.strip()[:1000]}")
    return program


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
    if not policy.metadata.get("env"):
        raise UserError("the policy does not say which environment it was trained in")
    envs = min(steps, ENVS)
    env = build({**policy.metadata["env"], "_partial_": True})(num_envs=envs, seed=seed, device="cpu")
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


def compare(
    policy: Policy, printed: str, observations: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> tuple[float, int, int]:
    """How actions that a program printed differ from the policy's over one episode, in which no memory is cleared.

    observations, masks: what the program read, as `recorded` returns it. Returns the largest difference of a number
    relative to its size (at least 1), how many choices differ, and how many actions of agents were compared.
    """
    sizes = {n: (g.n_agents, policy.actors[n].head.raw_size) for n, g in policy.spec.groups.items()}
    rows = torch.from_numpy(np.loadtxt(printed.splitlines(), ndmin=2))
    parts = rows.split([a * d for a, d in sizes.values()], 1)
    ours = {n: part.reshape(-1, *sizes[n]) for n, part in zip(sizes, parts, strict=True)}
    side = 1 if policy.memory() else 0  # without a memory all steps are one batch
    given = {name: o.unsqueeze(side) for name, o in observations.items()}
    actions = play(policy, given, {name: m.unsqueeze(side) for name, m in (masks or {}).items()})
    worst, other, count = 0.0, 0, 0
    for name in policy.spec.groups:
        theirs = torch.cat([action[name] for action in actions]).double()
        numbers = policy.actors[name].head.n_continuous
        error = (ours[name] - theirs).abs()
        if numbers:
            worst = max(worst, float((error / theirs.abs().clamp(min=1))[..., :numbers].max()))
        other += int((error[..., numbers:] > 0).sum())
        count += theirs[..., 0].numel()
    return worst, other, count


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", help="as scripts/export.py takes it")
    parser.add_argument("--weights", choices=("float32", "int8"), default="float32")
    parser.add_argument("--compiler", nargs="*", default=("gcc", "clang"), help="those that are installed are used")
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    policy = Policy.load(options.ckpt)
    observations, masks = recorded(policy, options.steps)
    for compiler in [name for name in options.compiler if shutil.which(name)]:
        with tempfile.TemporaryDirectory() as folder:
            program = compile_main(write(policy, Path(folder), options.weights), compiler)
            like = rounded(policy) if options.weights == "int8" else policy
            printed = run([str(program)], as_text(observations, masks)).stdout
            worst, other, count = compare(like, printed, observations, masks)
        print(f"{compiler}: {count:,} actions, largest relative difference {worst:.1e}, {other} other choices")
    if options.weights == "int8":
        errors = int8_errors(policy, {name: o.unsqueeze(1) for name, o in observations.items()})
        for name, (number, share) in errors.items():
            print(
                f"{name}: eight bits change a number by {number:.2g} of its range at most, and {share:.2%} of choices"
            )


if __name__ == "__main__":
    main()
