"""Optimisers of torch by name, with a learning rate per part, frozen parts, and clipped gradients."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from marl.core.errors import UserError, closest
from marl.optim.lr_schedule import MISTAKES, called, class_named
from marl.optim.muon import MuonAdamW

ELSEWHERE = {"lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay", "params": "optimizer.freeze"}
WHOLE = ("params", "foreach", "fused", "capturable", "differentiable")  # of the optimiser, not of a part
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def _owner(name: str, paths: Iterable[str]) -> str | None:
    """The longest of `paths` that is `name` or leads to it: ("model.body.0.weight", ["model", "model.body"])."""
    return max((path for path in paths if name == path or name.startswith(f"{path}.")), key=len, default=None)


@dataclass
class OptimizerConfig:
    """Any optimiser of `torch.optim`, built over named parts of a model.

    Weight decay and `l1` spare biases and normalisation layers by default (they are scale-free). `lr_per_part` gives
    a part its own learning rate, `per_part` other settings of its own, `freeze` keeps parts as they are, `unfreeze`
    {part: n} keeps them for n iterations (epochs). Each names a part or something inside of one by its dotted path, as
    in `model.body`; the longest path counts. `l1` adds l1·sign(w) to the gradient after clipping, where Adam and
    SGD add weight_decay·w. The fused kernel is used where torch has one; Muon, which takes matrices only, has AdamW
    beside it for the rest.
    """

    name: str = "Adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    l1: Annotated[float, Field(ge=0)] = 0.0
    no_decay_on_bias_and_norm: bool = True
    lr_per_part: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    per_part: dict[str, dict[str, Any]] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    unfreeze: dict[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, parts: dict[str, nn.Module]) -> torch.optim.Optimizer:
        """The optimiser over `parts`; frozen parameters lose `requires_grad`. Raises UserError for unknown names."""
        kind = class_named((torch.optim,), self.name, torch.optim.Optimizer, "optimizer.name")
        if kind is torch.optim.SparseAdam:
            raise UserError("optimizer.name='SparseAdam': takes sparse gradients only, and no network here has those")
        accepted, kwargs = inspect.signature(kind).parameters, dict(self.kwargs)
        for key, value in kwargs.items():
            if key in ELSEWHERE:
                raise UserError(f"optimizer.kwargs.{key}={value}: is set by {ELSEWHERE[key]}")
            if key not in accepted:
                allowed = ", ".join(name for name in accepted if name not in ELSEWHERE)
                message = f"{self.name} has none{closest(key, accepted)}; allowed are {allowed}"
                hint = f"~optimizer.kwargs.{key} takes a preset's away"
                raise UserError(f"optimizer.kwargs.{key}={value}: {message}; {hint}")
        names = [f"{part}.{name}" for part, module in parts.items() for name, _ in module.named_parameters()]
        for key in ("freeze", "unfreeze", "lr_per_part", "per_part"):
            for path in getattr(self, key):
                if not any(_owner(name, [path]) for name in names):
                    raise UserError(f"optimizer.{key}: no part {path!r}; parts are {_below(path, names)}")
        self._check_parts(kind)
        by_group, later, penalised = self._sort(parts)
        rates = self.lr_per_part | {path: each["lr"] for path, each in self.per_part.items() if "lr" in each}
        groups = []
        for (name, spared), params in by_group.items():
            group = {"params": params, "weight_decay": self.weight_decay, **self._own(name), "name": name}
            group["lr"] = rates.get(_owner(name, rates) or "", self.lr)
            if spared:
                group["weight_decay"] = 0.0
            if params:
                groups.append(group)
        if not groups:
            raise UserError(f"optimizer.freeze={self.freeze}: nothing is left to train")
        if not any(p.requires_grad for group in groups for p in group["params"]):
            raise UserError(f"optimizer.unfreeze={self.unfreeze}: nothing would train before iteration {min(later)}")
        if "weight_decay" not in accepted:
            if self.weight_decay:
                message = f"{self.name} has none; write optimizer.weight_decay=0"
                raise UserError(f"optimizer.weight_decay={self.weight_decay}: {message}")
            for group in groups:
                del group["weight_decay"]
        if kind is torch.optim.LBFGS:
            groups = self._single(groups)
        if kind is torch.optim.Muon:
            kind = MuonAdamW
        if "fused" in accepted and "foreach" not in kwargs:
            kwargs.setdefault("fused", True)
        try:
            built = called(kind, "optimizer", groups, lr=self.lr, **kwargs)
            device = groups[0]["params"][0].device
            for settings in ({}, *self.per_part.values()):
                _try(kind, device, {"lr": self.lr, **kwargs, **settings})
        except UserError as error:
            hint = "; ~optimizer.kwargs.KEY takes a preset's away" if self.kwargs else ""
            raise UserError(f"{error}{hint}") from error
        built.later = later
        if self.l1:
            built.register_step_pre_hook(lambda *_: _pull(penalised, self.l1))
        return built

    def _own(self, path: str) -> dict[str, Any]:
        """The settings of `per_part` for what is called `path`."""
        return self.per_part.get(_owner(path, self.per_part) or "", {})

    def _check_parts(self, kind: type[torch.optim.Optimizer]) -> None:
        """Let torch judge each part's settings as it would the whole optimiser's: in groups it takes anything."""
        allowed = [name for name in inspect.signature(kind).parameters if name not in WHOLE]
        for part, settings in self.per_part.items():
            for key, value in settings.items():
                where = f"optimizer.per_part.{part}.{key}={value}"
                if key not in allowed:
                    message = f"{self.name} has none for a part{closest(key, allowed)}"
                    raise UserError(f"{where}: {message}; allowed are {', '.join(allowed)}")
                if key == "lr" and part in self.lr_per_part:
                    raise UserError(f"{where}: optimizer.lr_per_part.{part}={self.lr_per_part[part]} is there, too")
            settings = {"lr": self.lr, **self.kwargs, **settings}
            called(kind, f"optimizer.per_part.{part}", [torch.zeros(1, 1)], **settings)

    def _sort(self, parts: dict[str, nn.Module]) -> tuple[dict, dict[int, list], list]:
        """Parameters by (name of the group, whether spared), by the iteration they wait for, and those of the L1."""
        by_group: dict[tuple[str, bool], list[nn.Parameter]] = {}
        later: dict[int, list[nn.Parameter]] = {}
        penalised, taken = [], set()
        for part, module in parts.items():
            for prefix, layer in module.named_modules(prefix=part):
                for key, parameter in layer.named_parameters(recurse=False):
                    if id(parameter) in taken:
                        continue
                    taken.add(id(parameter))
                    path = f"{prefix}.{key}"
                    fixed, waits = _owner(path, self.freeze), _owner(path, self.unfreeze)
                    if waits and len(waits) >= len(fixed or ""):
                        parameter.requires_grad_(False)
                        later.setdefault(self.unfreeze[waits], []).append(parameter)
                    elif fixed:
                        parameter.requires_grad_(False)
                        continue
                    elif not parameter.requires_grad:
                        continue
                    name = _owner(path, [*self.lr_per_part, *self.per_part]) or part
                    spare = self.no_decay_on_bias_and_norm and (isinstance(layer, NORMS) or "bias" in key)
                    for spared in (False, True):  # the spared ones come second
                        by_group.setdefault((name, spared), [])
                    decay = self._own(name).get("weight_decay", self.weight_decay)
                    by_group[name, bool(spare and decay)].append(parameter)
                    if not spare:
                        penalised.append(parameter)
        return by_group, later, penalised

    def _single(self, groups: list[dict]) -> list[dict]:
        """One group of all: LBFGS knows no others."""
        if self.lr_per_part or self.per_part or self.l1:
            raise UserError("optimizer.name='LBFGS': has one learning rate for all, no per_part and no l1")
        return [{"params": [p for group in groups for p in group["params"]], "name": groups[0]["name"]}]


def _try(kind: type[torch.optim.Optimizer], device: torch.device, settings: dict[str, Any]) -> None:
    """Make steps beside the model: some settings are refused at one only, and that is to be said before the run."""
    weights = [nn.Parameter(torch.ones(shape, device=device)) for shape in ((2, 2), (2,))]

    def closure() -> float:
        for weight in weights:
            weight.grad = weight.detach().clone()
        return sum(weight.detach().square().sum().item() / 2 for weight in weights)

    try:
        beside = kind([{"params": weights}], **settings)
        for _ in range(2):
            closure()
            beside.step(closure) if kind is torch.optim.LBFGS else beside.step()
    except MISTAKES as error:
        raise UserError(f"optimizer: {kind.__name__} cannot make its steps with {settings}: {error}") from error


def _below(path: str, names: list[str]) -> str:
    """What the last right step of a wrong `path` leads to, for a sentence."""
    steps = path.split(".")
    for depth in range(len(steps) - 1, -1, -1):
        prefix = "".join(f"{step}." for step in steps[:depth])
        below = [name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)]
        if below:
            return ", ".join(dict.fromkeys(prefix + name for name in below))
    return ""


@torch.no_grad()
def _pull(parameters: list[nn.Parameter], l1: float) -> None:
    moved: list[Tensor] = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in moved if p.grad is not None]
    if moved:
        torch._foreach_add_(gradients, torch._foreach_sign(moved), alpha=l1)


def unfreeze_due(optimizer: torch.optim.Optimizer, iteration: int) -> bool:
    """Let those parameters train whose iteration of `unfreeze` has come; whether any began to."""
    changed = False
    for begin, parameters in getattr(optimizer, "later", {}).items():
        if iteration >= begin and not parameters[0].requires_grad:
            changed = True
            for parameter in parameters:
                parameter.requires_grad_(True)
    return changed


def clip_gradients(parameters: list[nn.Parameter], max_norm: float | None, max_value: float | None = None) -> Tensor:
    """L2 norm of the gradients; they are clipped in place, on the device (no host sync).

    First each number to ±`max_value`, then the whole to the norm `max_norm`. 0 where none has a gradient: a part may be
    left out of some steps.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    remaining = norm
    if max_value is not None:
        torch._foreach_clamp_max_(gradients, max_value)
        torch._foreach_clamp_min_(gradients, -max_value)
        remaining = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (remaining + 1e-6)).clamp(max=1.0))
    return norm
