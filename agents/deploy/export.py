"""Policies as files for other programs: ONNX, TorchScript, ExecuTorch, C and others, each with a model card.

Shapes: B observations, A agents in a group, F features, D action dimensions.
"""

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from agents.deploy.c_code import files as c_files
from agents.deploy.formats import executorch, int8, torchscript
from agents.policies.policy import Policy
from envs.spec import GroupSpec
from marl.core import files
from marl.core.errors import UserError

FILES = {
    "onnx": "policy.onnx",
    "torch_export": "policy.pt2",
    "torchscript": "policy.ts",
    "executorch": "policy.pte",
    "safetensors": "policy.safetensors",
    "c": "policy.c",  # and policy.h
}
BATCHES = {  # what a card says of how many observations a file takes
    "executorch": "for batches of one, B = 1.",
    "c": "one agent at a time: `policy.h` says how it is called.",
}


QUANTIZED = {"onnx": tuple(int8.KINDS), "c": ("int8",)}
EIGHT_BITS = {  # what a card says of them
    ("onnx", "int8"): " Its matrix products are 8-bit, the ranges of their inputs those of each call: an action "
    "depends a little on what else is in the batch.",
    ("onnx", "int8_static"): " Its matrix products are 8-bit, the ranges of their inputs fixed from recorded "
    "observations.",
    ("c", "int8"): " Its weights have 8 bits; what that costs stands at the top of the file.",
}


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


def input_names(policy: Policy) -> list[str]:
    """The names of a file's inputs, in their order: see `inputs`."""
    remembered = [f"{name}_memory" for name in policy.memory()]
    return [*inputs(policy), *remembered, *(f"{name}_action_mask" for name in masked(policy))]


def output_names(policy: Policy) -> list[str]:
    """The names of a file's outputs, in their order: see `inputs`."""
    return [*(f"{name}_action" for name in policy.spec.groups), *(f"{name}_next_memory" for name in policy.memory())]


def export(
    policy: Policy,
    format: str,
    folder: str | Path,
    quantize: str = "none",
    feeds: Sequence[int8.Feed] = (),
) -> Path:
    """Write the policy as `format` (a key of `FILES`) and its card into `folder`.

    Args:
        policy: moved to the CPU.
        format: see docs/export.md.
        folder: made where it is missing.
        quantize: none, or one of `int8.KINDS` (onnx), or int8 (c).
        feeds: what `agents.deploy.formats.recorded.calibration` gives; quantize=int8_static only.

    Returns:
        The policy's file.

    Raises:
        UserError: a package is missing, the networks can't be exported, or int8 in a format that has none.
    """
    if quantize not in ("none", *QUANTIZED.get(format, ())):
        known = ", ".join(f"format={name} has {' and '.join(kinds)}" for name, kinds in QUANTIZED.items())
        raise UserError(f"quantize={quantize}: format={format} has no such weights; {known}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if format == "c":
        target = c_files.write(policy.cpu().eval(), folder, "float32" if quantize == "none" else "int8")
        (folder / "README.md").write_text(card(policy, format, quantize))
        return target
    target = folder / file_name(format, quantize)
    temporary = folder / f".{os.getpid()}{target.suffix}"
    policy = policy.cpu().eval()
    try:
        WRITERS[format](policy, temporary)
        if quantize != "none":
            int8.quantize(temporary, temporary, quantize, feeds)
        files.write(target, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)
    card_file = folder / "README.md"
    card_file.write_text(card(policy, format, quantize))
    return target


def file_name(format: str, quantize: str = "none") -> str:
    """What a policy's file is called: policy.onnx, policy_int8.onnx, …; in C names are part of the code."""
    name = Path(FILES[format])
    return name.name if quantize == "none" or format == "c" else f"{name.stem}_{quantize}{name.suffix}"


def _examples(policy: Policy, batch: int) -> tuple[Tensor, ...]:
    """Inputs in the order of `input_names`."""
    examples = tuple(torch.zeros(batch, g.n_agents, g.observation_size) for g in policy.spec.groups.values())
    examples += tuple(policy.memory(batch).values())
    agents = {name: group.n_agents for name, group in policy.spec.groups.items()}
    return examples + tuple(
        torch.ones(batch, agents[n], choices, dtype=torch.bool) for n, choices in masked(policy).items()
    )


def _traced(policy: Policy) -> torch.export.ExportedProgram:
    examples = _examples(policy, 2)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(Exported(policy), examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))


def _torch_export(policy: Policy, path: Path) -> None:
    torch.export.save(_traced(policy), path, extra_files={"policy.json": json.dumps(metadata(policy))})


def _torchscript(policy: Policy, path: Path) -> None:
    extra = {"policy.json": json.dumps(metadata(policy))}
    torchscript.save(Exported(policy), _examples(policy, 2), path, extra)


def _executorch(policy: Policy, path: Path) -> None:
    # One observation at a time: XNNPACK plans its memory for a batch that it knows.
    executorch.save(torch.export.export(Exported(policy), _examples(policy, 1)), path)


def _onnx(policy: Policy, path: Path) -> None:
    try:
        import onnx  # noqa: F401 - what torch's exporter needs
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"format=onnx: {error.name} is not installed; run pip install -e '.[export]'") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: nothing a user could change
        program = torch.onnx.export(
            _traced(policy),
            input_names=input_names(policy),
            output_names=output_names(policy),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props["policy"] = json.dumps(metadata(policy))
    program.save(str(path), external_data=False)


WRITERS = {
    "onnx": _onnx,
    "torch_export": _torch_export,
    "torchscript": _torchscript,
    "executorch": _executorch,
    "safetensors": Policy.save,
}


def metadata(policy: Policy) -> dict[str, Any]:
    """What travels inside the exported file: the layout of observations and actions, and where it comes from."""
    return {key: policy.metadata.get(key) for key in ("spec", "env", "run")}


def card(policy: Policy, format: str, quantize: str = "none") -> str:
    """The model card, in Markdown."""
    run, env = policy.metadata.get("run") or {}, policy.metadata.get("env") or {}
    rows = [
        f"# {run.get('name') or 'Policy'}: a multi-agent policy",
        "",
        f"`{file_name(format, quantize)}` maps observations to actions, deterministically (the policy's mode), "
        + BATCHES.get(format, "for any batch.")
        + EIGHT_BITS.get((format, quantize), ""),
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
