"""Policies as files for other programs: ONNX, torch.export, safetensors, C, each with a model card.

Shapes: B observations, A agents in a group, F features, D action dimensions.
"""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from agents.deploy.c_code import files as c_files
from agents.deploy.c_code.writer import Weights
from agents.policies.policy import Policy
from envs.spec import GroupSpec
from marl.core import files
from marl.core.errors import UserError

FILES = {"onnx": "policy.onnx", "torch_export": "policy.pt2", "safetensors": "policy.safetensors", "c": "policy.c"}


class Exported(nn.Module):
    """The deterministic policy as one function: observations of all groups in order -> their actions in order.

    float32 [B, A, F] each -> [B, A, D] in the environment's units (int64 where all are choices). What groups with a
    memory remember follows, float32 [B, A, M] before the step -> after it; zeros at an episode's beginning.
    Last come masks, bool [B, A, sum(nvec)], of the groups whose actions are masked.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.actors = policy.actors
        self.first_mask = len(self.actors) + len(policy.memory())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        observations, memories = inputs[: len(self.actors)], iter(inputs[len(self.actors) : self.first_mask])
        masks = iter(inputs[self.first_mask :])
        actions, after = [], []
        for actor, observation in zip(self.actors.values(), observations, strict=True):
            mask = next(masks) if "action" in actor.masks else None
            if actor.memory_shape is None:
                params = actor(observation, mask)
            else:
                params, memory = actor.remember(observation, next(memories), mask)
                after.append(memory)
            actions.append(actor.head.to_env(actor.head.mode(params)))
        return (*actions, *after)


def inputs(policy: Policy) -> dict[str, GroupSpec]:
    """{name of the input: group}, in order; the outputs are called `<group>_action` likewise.

    Inputs `<group>_memory` and outputs `<group>_next_memory` follow, of the groups of `policy.memory()`, and inputs
    `<group>_action_mask` of those of `masked`.
    """
    return {f"{name}_observation": group for name, group in policy.spec.groups.items()}


def masked(policy: Policy) -> dict[str, int]:
    """{group: choices of one agent, sum(nvec)} of the groups whose actions are masked."""
    return {n: sum(g.action.nvec) for n, g in policy.spec.groups.items() if "action" in g.masks}


def export(policy: Policy, format: str, folder: str | Path, c_weights: Weights = "float32") -> Path:
    """Write the policy as `format` (onnx, torch_export, safetensors or c) and its card into `folder`.

    Returns the policy's file. c_weights: of format c. Raises UserError where a package is missing or the networks can't
    be exported.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILES[format]
    temporary = folder / f".{os.getpid()}{target.suffix}"
    policy = policy.cpu().eval()
    if format == "c":
        c_files.write(policy, folder, c_weights)
        (folder / "README.md").write_text(card(policy, format))
        return target
    try:
        {"onnx": _onnx, "torch_export": _torch_export, "safetensors": lambda p, f: p.save(f)}[format](policy, temporary)
        files.write(target, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)
    card_file = folder / "README.md"
    card_file.write_text(card(policy, format))
    return target


def _traced(policy: Policy) -> torch.export.ExportedProgram:
    examples = tuple(torch.zeros(2, g.n_agents, g.observation_size) for g in policy.spec.groups.values())
    examples += tuple(policy.memory(2).values())
    agents = {name: group.n_agents for name, group in policy.spec.groups.items()}
    examples += tuple(torch.ones(2, agents[n], choices, dtype=torch.bool) for n, choices in masked(policy).items())
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(Exported(policy), examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))


def _torch_export(policy: Policy, path: Path) -> None:
    torch.export.save(_traced(policy), path, extra_files={"policy.json": json.dumps(metadata(policy))})


def _onnx(policy: Policy, path: Path) -> None:
    try:
        import onnx  # noqa: F401 - what torch's exporter needs
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"format=onnx: {error.name} is not installed; run pip install -e '.[export]'") from error
    remembering = list(policy.memory())
    names = [*inputs(policy), *(f"{name}_memory" for name in remembering)]
    names += [f"{name}_action_mask" for name in masked(policy)]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: nothing a user could change
        program = torch.onnx.export(
            _traced(policy),
            input_names=names,
            output_names=[
                *(f"{name}_action" for name in policy.spec.groups),
                *(f"{name}_next_memory" for name in remembering),
            ],
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props["policy"] = json.dumps(metadata(policy))
    program.save(str(path), external_data=False)


def metadata(policy: Policy) -> dict[str, Any]:
    """What travels inside the exported file: the layout of observations and actions, and where it comes from."""
    return {key: policy.metadata.get(key) for key in ("spec", "env", "run")}


def card(policy: Policy, format: str) -> str:
    """The model card, in Markdown."""
    run, env = policy.metadata.get("run") or {}, policy.metadata.get("env") or {}
    rows = [
        f"# {run.get('name') or 'Policy'}: a multi-agent policy",
        "",
        f"`{FILES[format]}` maps observations to actions, deterministically (the policy's mode), "
        + ("one agent at a time: `policy.h` says how it is called." if format == "c" else "for any batch."),
        "",
        "| input | shape | what it is |",
        "|---|---|---|",
    ]
    for name, group in inputs(policy).items():
        rows.append(
            f"| `{name}` | float32 [B, {group.n_agents}, {group.observation_size}] | of the agents "
            f"{', '.join(f'`{a}`' for a in group.agents)}, in this order; {_features(group)} |"
        )
    memory = {name: f"float32 [B, {', '.join(map(str, zeros.shape))}]" for name, zeros in policy.memory().items()}
    for name, shape in memory.items():
        own = ", an agent's own one's, and while it is dead" if policy.spec.groups[name].ends else ""
        rows.append(f"| `{name}_memory` | {shape} | zeros at an episode's beginning{own}, then `{name}_next_memory` |")
    for name, choices in masked(policy).items():
        shape = f"bool [B, {policy.spec.groups[name].n_agents}, {choices}]"
        rows.append(f"| `{name}_action_mask` | {shape} | True where a choice is allowed |")
    rows += ["", "| output | shape | what it is |", "|---|---|---|"]
    for name, group in policy.spec.groups.items():
        rows.append(f"| `{name}_action` | {_action(group)} |")
    rows += [f"| `{name}_next_memory` | {shape} | what the next step needs |" for name, shape in memory.items()]
    rows += ["", "Observations are not normalised outside of the file: whatever the policy needs is inside it."]
    if format == "safetensors" and len(policy.critics):
        critic = policy.metadata["algo"]["critic"]
        rows.append(f"It also holds the critics (`{critic}`): `agents.policies.policy.Policy.load(path).values(…)`.")
    rows += ["", "## Where it comes from", "", "| | |", "|---|---|"]
    rows += [f"| {key} | {value} |" for key, value in run.items() if key != "evaluation" and value is not None]
    evaluation = run.get("evaluation") or {}
    if evaluation.get("episode_return") is not None:
        low, high = evaluation["episode_return/ci95_low"], evaluation["episode_return/ci95_high"]
        rows.append(
            f"| episode return | {evaluation['episode_return']:.4g} (95 % interval of the mean {low:.4g} to "
            f"{high:.4g}, {int(evaluation['episodes'])} episodes, the run's own last evaluation) |"
        )
    shown = {"env": _plain(env), "algo": _plain(policy.metadata["algo"]), "network": _plain(policy.metadata["network"])}
    rows += ["", "## Configuration", "", "```yaml", yaml.safe_dump(shown, sort_keys=False).rstrip(), "```", ""]
    return "\n".join(rows)


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_partial_"}


def _features(group: GroupSpec) -> str:
    """What a group's features are."""
    if not group.parts:
        return "features as the scenario's `observation` returns them"
    parts = [f"`{part.name}` {list(part.shape)}" for part in group.parts]
    return f"features: {', '.join(parts)}, each flattened, one after the other; pictures as [channels, rows, columns]"


def _action(group: GroupSpec) -> str:
    """Shape and meaning of a group's actions, as two cells of the table."""
    action = group.action
    choices = " x ".join(map(str, action.nvec))
    if action.low is not None:
        bounds = sorted(
            {
                (round(low, 6), round(high, 6))
                for low, high in zip(action.low.flatten().tolist(), action.high.flatten().tolist(), strict=True)
            }
        )
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in bounds)
        shape = f"float32 [B, {group.n_agents}, {action.size}]"
        if action.nvec:
            return (
                f"{shape} | {action.n_continuous} numbers in the environment's units ({ranges}), then the index of a "
                f"choice in each of the others, {choices} choices; in VMAS what moves an agent, then its word"
            )
        return (
            f"{shape} | in the simulator's units ({ranges}): what "
            "`vmas.Environment.step` takes; for the usual dynamics forces in x and y before `u_multiplier`, "
            "then rotation, then communication where agents have them"
        )
    return f"int64 [B, {group.n_agents}, {action.size}] | the index of VMAS's discrete action, {choices} choices"
