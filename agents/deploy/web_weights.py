"""A policy's networks as plain data: layers with their weights, for programs that have no torch (the live page)."""

import base64
from typing import Any

from torch import Tensor, nn

from agents.models.critic import Critic
from agents.models.heads import Categorical, ClippedNormal, TanhNormal
from agents.models.inputs import Inputs
from agents.models.policy_heads.exploring import Deterministic, EpsilonGreedy
from agents.models.policy_heads.hybrid import Hybrid
from agents.policies.group_settings import source
from agents.policies.policy import Policy
from marl.core.errors import UserError
from marl.networks import ACTIVATIONS, MLP, Linear, PerAgent

NAMES = {module: name for name, module in ACTIVATIONS.items()}
HEADS = {
    TanhNormal: "tanh_normal",
    ClippedNormal: "clipped_normal",
    Categorical: "categorical",
    EpsilonGreedy: "epsilon_greedy",
    Deterministic: "deterministic",
}


def numbers(values: Tensor) -> str:
    """float32, little-endian, in base64."""
    return base64.b64encode(values.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()).decode()


def layers(network: nn.Module) -> list[dict[str, Any]]:
    """The layers of an MLP or a linear network, first to last. Raises UserError for other networks."""
    if not isinstance(network, (MLP, Linear)):
        raise UserError(
            f"network: {type(network).__name__} can't run in a page; MLP and Linear can (serve=true runs all)"
        )
    out: list[dict[str, Any]] = []
    for layer in [*getattr(network, "body", ()), network.head]:
        if isinstance(layer, nn.Linear):
            out.append(
                {
                    "kind": "linear",
                    "in": layer.in_features,
                    "out": layer.out_features,
                    "weight": numbers(layer.weight),
                    "bias": None if layer.bias is None else numbers(layer.bias),
                }
            )
        elif isinstance(layer, nn.LayerNorm):
            out.append({"kind": "norm", "weight": numbers(layer.weight), "bias": numbers(layer.bias), "eps": layer.eps})
        elif type(layer) in NAMES:
            out.append({"kind": NAMES[type(layer)]})
        elif not isinstance(layer, nn.Dropout):
            raise UserError(f"network: a layer {type(layer).__name__} can't run in a page; serve=true runs all")
    return out


def inputs(module: Inputs) -> dict[str, Any]:
    """What stands before a network: normalisation of every feature, then the agent's id."""
    norm = module.norm
    if module.units is not None or any(part.kind == "picture" for part in module.parts):
        raise UserError("network: pictures can't be scaled in a page; serve=true runs all")
    statistics = norm and {"scale": numbers(norm.scale), "shift": numbers(norm.shift), "limit": norm.limit}
    return {"norm": statistics, "ids": module.ids is not None}


def _bound(values: Tensor | None) -> list[float] | None:
    """Bounds of actions, one agent's after the other's; the largest float32 for none, since JSON has no infinity."""
    return None if values is None else values.float().nan_to_num().flatten().tolist()


def plain(policy: Policy) -> dict[str, Any]:
    """{group: actor and critic (null: nothing values states)}, JSON-able: what the page's `policy.js` reads."""
    out = {}
    actors, critics = policy.everyone()
    for name, actor in actors.items():
        critic, group, head = critics.get(name), policy.spec.groups[source(policy.settings, name)], actor.head
        gaussian = head.continuous if isinstance(head, Hybrid) else head
        if type(gaussian) not in HEADS:
            raise UserError(f"algo.policy: the head {type(head).__name__} can't run in a page; serve=true runs all")
        out[name] = {
            "agents": group.n_agents,
            "features": group.observation_size,
            "head": HEADS[type(gaussian)],
            "size": head.raw_size,
            "nvec": list(group.action.nvec),
            "low": _bound(group.action.low),
            "high": _bound(group.action.high),
            "inputs": inputs(actor.inputs),
            "networks": [layers(n) for n in actor.network.networks],
            "critic": None if critic is None else _values(critic),
        }
    return out


def _values(critic: Critic) -> dict[str, Any]:
    return {
        "kind": critic.kind,
        "joint": critic.joint,
        "inputs": inputs(critic.inputs),
        "state_inputs": inputs(critic.state_inputs),
        "mean_std": list(map(float, critic.value_norm.mean_std() if critic.value_norm else (0, 1))),
        "networks": [
            layers(n) for n in (critic.network.networks if isinstance(critic.network, PerAgent) else [critic.network])
        ],
    }
