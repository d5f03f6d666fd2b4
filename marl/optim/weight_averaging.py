"""Averages of the weights over training (EMA, SWA): what a run is evaluated by and saved as."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

Kind = Literal["none", "ema", "swa"]
DECAY, BEGIN = 0.999, 0.0  # what the trainer takes where nothing is said


class Averaging:
    """The average of a loss module's weights (`torch.optim.swa_utils.AveragedModel`).

    ema: after every optimiser step  average ← decay·average + (1 − decay)·weights  (Polyak and Juditsky 1992)
    swa: after every iteration       the mean of the weights so far  (Izmailov et al. 2018)

    both from the share `begin` of the run on; until then there is no average. Buffers (running statistics) are the
    current ones, but for BatchNorm's under swa, which are computed from one pass over the training data.
    """

    def __init__(self, module: nn.Module, kind: Literal["ema", "swa"], decay: float, begin: float) -> None:
        self.kind, self.begin = kind, begin
        self.rule = get_ema_multi_avg_fn(decay) if kind == "ema" else get_swa_multi_avg_fn()
        self.model = AveragedModel(module, multi_avg_fn=self.rule)
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.norms = norms if kind == "swa" else []

    def update(self, kind: str, module: nn.Module, progress: float) -> None:
        """Take the weights in, if this average counts after a `kind` ("ema": a step, "swa": an iteration)."""
        if kind != self.kind or progress < self.begin:
            return
        if kind == "ema" and self.model.n_averaged > 0:
            self._move(module)
        else:
            self.model.update_parameters(module)

    @torch.no_grad()
    def _move(self, module: nn.Module) -> None:
        """As `AveragedModel.update_parameters`, which brings its count to the GPU and waits; an ema does without."""
        self.rule(list(self.model.parameters()), list(module.parameters()), self.model.n_averaged)
        for averaged, current in zip(self.model.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(current)
        self.model.n_averaged += 1

    @contextmanager
    def swapped(self, module: nn.Module, batches: Callable[[], Iterator[TensorDict]]) -> Iterator[None]:
        """`module` with the average in place of its weights inside; the very same weights afterwards."""
        if self.model.n_averaged == 0:
            yield
            return
        averaged = [p.detach() for p in self.model.module.parameters()]
        weights = [p.detach() for p in module.parameters()]
        saved_weights = torch._foreach_clone(weights)
        statistics = [{name: value.clone() for name, value in norm.state_dict().items()} for norm in self.norms]
        torch._foreach_copy_(weights, averaged)
        try:
            if self.norms:
                with torch.random.fork_rng():  # dropout draws in this pass
                    update_bn(batches(), module)
            yield
        finally:
            torch._foreach_copy_(weights, saved_weights)
            for norm, saved in zip(self.norms, statistics, strict=True):
                norm.load_state_dict(saved)

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)
