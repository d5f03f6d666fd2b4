"""Weights of another algorithm's run, made to fit: copies that others follow, statistics that only one side has.

Shapes: H outputs of a network's first layer, N its inputs, A agents in a group, F features.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agents.models.actor import Actor
from agents.models.critic import Critic
from agents.models.normalization import ObservationNorm, ValueNorm
from marl.networks import MLP

STANDS = 1e15  # frames seen: with so many behind them statistics no longer move


def fit(loss: nn.Module, saved: dict[str, Tensor]) -> list[str]:
    """Change `saved`, a loss module's weights by name, so that they fit another algorithm's networks.

    Target networks that `loss` has none of are left out, and so are all critics where it has none. Where the saved
    networks see normalised observations and these do not, the statistics become part of the first layers. Where these
    do and the saved ones do not, the statistics begin as mean 0 and deviation 1, and stay so. Both leave the networks
    the functions they were, but for features beyond `observation_limit`. Normalised values are treated likewise: their
    statistics become part of the critics' last layers. Weights of the same algorithm and settings stay as they are.

    loss: has `actors` and `critics`, by group.

    Returns:
        A sentence on each change that a user should know of.
    """
    kinds = {name.partition(".")[0] for name in loss.state_dict()}
    for name in [name for name in saved if name.partition(".")[0] in {"targets", "critics"} - kinds]:
        del saved[name]
    networks = [(f"{kind[:-1]} of {group}", f"{kind}.{group}.", module) for kind, group, module in _networks(loss)]
    networks += [("", f"targets.{group}.network.", t.network) for group, t in getattr(loss, "targets", {}).items()]
    folded: list[str] = []
    standing: list[str] = []
    unscaled: list[str] = []
    for whose, prefix, module in networks:
        if any(name.startswith(prefix) for name in saved):
            folded += [whose] * _fold(module, prefix, saved)
            standing += [whose] * _stand(module, prefix, saved)
            if isinstance(module, Critic):
                unscaled += [whose] * _unscale(module, prefix, saved)
                _keep_units(module, prefix, saved)
    notes = []
    if folded:
        names = ", ".join(filter(None, folded))
        notes.append(f"the observations' statistics are now part of the first layer: {names}")
    if standing:
        names = ", ".join(filter(None, standing))
        notes.append(f"observations stay as they are, as the run that is begun from had them: {names}")
    if unscaled:
        notes.append(f"the returns' statistics are now part of the last layer: {', '.join(filter(None, unscaled))}")
    return notes


def _networks(loss: nn.Module) -> list[tuple[str, str, Actor | Critic]]:
    """Kind, group and module of all actors and critics."""
    kinds = {"actors": loss.actors, "critics": loss.critics}
    return [(kind, group, module) for kind, modules in kinds.items() for group, module in modules.items()]


def _fold(module: Actor | Critic, prefix: str, saved: dict[str, Tensor]) -> bool:
    """Make saved statistics part of the first layers, W (x s + c) + b = (W s) x + (W c + b); whether there were any.

    Of MLPs only, whose first layer is linear and reads its inputs one by one.
    """
    sources = [s for s in ("inputs", "state_inputs") if f"{prefix}{s}.norm.scale" in saved]
    networks = getattr(module.network, "networks", [module.network])
    if not sources or any(getattr(module, s).norm is not None for s in sources):
        return False
    if not all(isinstance(network, MLP) for network in networks):
        return False
    scale, shift = (_row(module, prefix, saved, what) for what in ("scale", "shift"))
    constant = scale > 0.99 * ObservationNorm.EPS**-0.5  # never seen to vary: divided by no deviation
    scale, shift = torch.where(constant, 1.0, scale), torch.where(constant, shift / scale, shift)
    layer = "body.0" if len(networks[0].body) else "head"
    pattern = re.compile(rf"{re.escape(prefix)}network\.(networks\.\d+\.)?{re.escape(layer)}\.weight")
    firsts = [name for name in saved if pattern.fullmatch(name)]
    if any(saved[name].shape[1] != len(scale) for name in firsts):
        return False
    for name in firsts:
        weight, bias = saved[name].double(), name.removesuffix("weight") + "bias"
        saved[bias] = (saved[bias].double() + weight @ shift).to(saved[bias])
        saved[name] = (weight * scale).to(saved[name])
    for name in [n for n in saved if any(n.startswith(f"{prefix}{s}.norm.") for s in sources)]:
        del saved[name]
    return True


def _row(module: Actor | Critic, prefix: str, saved: Mapping[str, Tensor], what: str) -> Tensor:
    """What each input of the first layer is multiplied by ("scale"), or what is added to it ("shift"), float64 [N]."""
    rest = float(what == "scale")
    own = saved.get(f"{prefix}inputs.norm.{what}", torch.empty(0)).double()
    ids = module.inputs.size - len(own) if len(own) else 0
    own = torch.cat([own, own.new_full((ids,), rest)])
    if isinstance(module, Actor) or module.kind == "local":
        return own
    if module.kind == "concat":
        return own if module.team else own.repeat(module.n_agents)
    state = saved[f"{prefix}state_inputs.norm.{what}"].double()
    if module.kind == "state":
        return state
    return torch.cat([own, state] if module.team else [state, own])


def _stand(module: Actor | Critic, prefix: str, saved: dict[str, Tensor]) -> bool:
    """Add statistics that leave observations as they are, where the module has some and the file has none.

    Returns:
        Whether any were added.
    """
    added = False
    for source in ("inputs", "state_inputs"):
        norm = getattr(getattr(module, source, None), "norm", None)
        if not isinstance(norm, ObservationNorm) or not module.inputs.unscaled:
            continue
        if any(name.startswith(f"{prefix}{source}.norm.") for name in saved):
            continue
        start = {"count": STANDS, "mean": 0.0, "m2": STANDS, "scale": 1.0, "shift": 0.0}
        for name, value in norm.state_dict().items():
            saved[f"{prefix}{source}.norm.{name}"] = torch.full_like(value, start[name])
        added = True
    return added


def _unscale(critic: Critic, prefix: str, saved: dict[str, Tensor]) -> bool:
    """Make the returns' statistics part of the last layers, (W h + b) std + mean; whether there were any.

    Of networks whose last layer is called `head`, as all of this package are.
    """
    moments = saved.get(f"{prefix}value_norm.moments")
    if moments is None or critic.value_norm is not None:
        return False
    pattern = re.compile(rf"{re.escape(prefix)}network\.(networks\.\d+\.)?head\.weight")
    heads = [name for name in saved if pattern.fullmatch(name)]
    if not heads or any(name.removesuffix("weight") + "bias" not in saved for name in heads):
        return False
    norm = ValueNorm().to(moments.device)
    norm.load_state_dict({name: saved.pop(f"{prefix}value_norm.{name}") for name in ("moments", "weight")})
    mean, std = norm.mean_std()
    for name in heads:
        bias = name.removesuffix("weight") + "bias"
        saved[name] = (saved[name].double() * std).to(saved[name])
        saved[bias] = (saved[bias].double() * std + mean).to(saved[bias])
    return True


def _keep_units(critic: Critic, prefix: str, saved: dict[str, Tensor]) -> None:
    """Add statistics of returns that leave values as they are, where the critic has some and the file has none.

    They weigh like those of all rollouts so far, so that values do not jump at the next one.
    """
    if critic.value_norm is not None and f"{prefix}value_norm.moments" not in saved:
        like = critic.value_norm.moments
        saved[f"{prefix}value_norm.moments"] = like.new_tensor([0.0, 1.0])  # mean 0, mean square 1
        saved[f"{prefix}value_norm.weight"] = like.new_ones(())
