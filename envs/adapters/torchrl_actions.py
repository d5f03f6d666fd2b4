"""Actions of TorchRL environments as ours: the specs one way, the actions themselves the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, MultiOneHot, OneHot, Unbounded
from torchrl.data.tensor_specs import TensorSpec

from envs.base import EnvError
from envs.spec import ActionSpec

ACTIONS = "Bounded, Unbounded, Categorical, MultiCategorical, OneHot, MultiOneHot or Binary"


def action_of(leaf: TensorSpec, dims: int, agents: int, where: str) -> ActionSpec:
    """TorchRL's spec of a group's actions as ours. Raises EnvError for a kind that no policy has."""
    if isinstance(leaf, MultiOneHot):
        return ActionSpec("multi_discrete", nvec=tuple(int(box.n) for box in leaf.space.boxes))
    if isinstance(leaf, Binary):
        return ActionSpec("multi_discrete", nvec=(2,) * (leaf.shape[dims:].numel() // agents))
    if isinstance(leaf, MultiCategorical):
        return ActionSpec("multi_discrete", nvec=tuple(int(n) for n in leaf.nvec.reshape(-1, leaf.shape[-1])[0]))
    if isinstance(leaf, (OneHot, Categorical)) and int(leaf.space.n) > 0:
        return ActionSpec("discrete", nvec=(int(leaf.space.n),))
    if isinstance(leaf, Bounded) and leaf.dtype.is_floating_point:
        low, high = (
            bound.reshape(-1, *leaf.shape[dims:])[0].reshape(agents, -1).float()
            for bound in (leaf.space.low, leaf.space.high)
        )
        return ActionSpec("continuous", low.cpu().clone(), high.cpu().clone())
    if isinstance(leaf, Unbounded) and leaf.dtype.is_floating_point:
        shape = (agents, leaf.shape[dims:].numel() // agents)
        return ActionSpec("continuous", torch.full(shape, -torch.inf), torch.full(shape, torch.inf))
    raise EnvError(f"{where}: its actions are {type(leaf).__name__} {list(leaf.shape)}; {ACTIONS} are allowed.")


def encoded(action: Tensor, kind: ActionSpec, leaf: TensorSpec) -> Tensor:
    """Our actions [E, A, D] in the form that TorchRL's spec holds."""
    if kind.kind == "continuous":
        action = action.clamp(kind.low, kind.high)
    elif isinstance(leaf, OneHot):  # and MultiOneHot
        parts = zip(action.unbind(-1), kind.nvec, strict=True)
        action = torch.cat([torch.nn.functional.one_hot(part, n) for part, n in parts], -1)
    return action.reshape(leaf.shape).to(leaf.dtype).to(leaf.device)
