"""torch's Muon, which takes matrices only, with AdamW for all other parameters, as one optimiser."""

from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for weight matrices, AdamW for biases, norms and convolutions, side by side.

    One learning rate serves both, since Muon's steps are scaled to the size of AdamW's (`adjust_lr_fn:
    match_rms_adamw`, Liu et al. 2025). Groups and state are shared with the two, so that schedules and checkpoints see
    one optimiser.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **kwargs: Any) -> None:
        split = ([], [])
        for group in groups:
            for others, is_matrix in ((0, True), (1, False)):
                params = [p for p in group["params"] if (p.dim() == 2) == is_matrix]
                if params:
                    split[others].append({**group, "params": params})
        kwargs.setdefault("adjust_lr_fn", "match_rms_adamw")
        self.inner = [Muon(split[0], lr=lr, **kwargs)] if split[0] else []
        for group in split[1]:  # momentum and the like are Muon's
            for key in set(group) - {"params", "name", "lr", "weight_decay"}:
                del group[key]
        self.inner += [AdamW(split[1], lr=lr)] if split[1] else []
        super().__init__([group for each in self.inner for group in each.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        first = 0
        for each in self.inner:
            count = len(each.param_groups)
            each.param_groups, each.state = self.param_groups[first : first + count], self.state
            first += count

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """A step of both."""
        for each in self.inner:
            each.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
