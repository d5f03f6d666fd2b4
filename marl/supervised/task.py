"""Supervised learning as a task of the engine: classification, regression, comparisons, on any data set."""

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from marl.callbacks.base import Callback
from marl.core import distributed
from marl.core.errors import UserError
from marl.core.seeding import generator
from marl.data import ArrayData, CSVStream, Loader, Stream
from marl.data.base import finite
from marl.data.loader import Augment, take
from marl.data.samplers import Sampling, Subset, Weights
from marl.engine.run_view import RunView
from marl.networks import reads_team
from marl.supervised import metrics as measures
from marl.supervised.epochs import EVALUATION_ROWS, Epochs


class SupervisedLoss(nn.Module):
    """The model with the scaling of its inputs and targets, and the objective that prices its outputs.

    The scaling is part of the module, so that a checkpoint predicts from raw inputs, in the targets' own units, with
    nothing but itself. Targets are scaled where the data say how and the objective is one of differences
    (`of_differences`): gradients are those of scaled targets, the figure "loss" is that of the targets as they are.
    """

    def __init__(self, model: nn.Module, objective: nn.Module, data: ArrayData | CSVStream) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.kind = data.kind
        self.shift: Tensor
        self.scale: Tensor
        self.target_shift: Tensor
        self.target_scale: Tensor
        self.register_buffer("shift", data.shift.clone())
        self.register_buffer("scale", data.scale.clone())
        self.scaled = hasattr(data, "target_shift") and of_differences(objective, data.out_features)
        if self.scaled:
            self.register_buffer("target_shift", data.target_shift.clone())
            self.register_buffer("target_scale", data.target_scale.clone())

    def outputs(self, x: Tensor) -> Tensor:
        """Logits or values of raw inputs: float [..., *in_shape] → float [..., out_features]."""
        return self._unscaled(self.model((x - self.shift) / self.scale))

    def _unscaled(self, outputs: Tensor) -> Tensor:
        return outputs * self.target_scale + self.target_shift if self.scaled else outputs

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return (self.training,)

    def forward(self, batch: TensorDict) -> dict[str, Tensor]:
        """ "x" [B, *in_shape] and "y" → "loss" [] and, unless it is a regression, "accuracy" [], both on the device.

        Mixed rows (`marl.data.augment.mixup`) have "y2" and "share" too.
        """
        plain = self.model((batch["x"] - self.shift) / self.scale)
        outputs = self._unscaled(plain)
        loss = self._price(outputs, batch)
        if self.scaled and self.training:
            descended = self._price(plain, batch, self.target_shift, self.target_scale)
            loss = loss.detach() + (descended - descended.detach())  # the value of one, the gradient of the other
        figures = {"loss": loss}
        if self.kind != "regression":
            figures["accuracy"] = (labels(outputs.detach(), self.kind) == batch["y"]).float().mean()
        return figures

    def _price(
        self, outputs: Tensor, batch: TensorDict, shift: Tensor | float = 0.0, scale: Tensor | None = None
    ) -> Tensor:
        """The objective, of targets scaled by `shift` and `scale` where these are given."""
        names = [name for name in ("y", "y2") if name in batch]
        prices = [self.objective(outputs, batch[n] if scale is None else (batch[n] - shift) / scale) for n in names]
        if len(prices) == 1:
            return prices[0]
        share = batch["share"][0]
        return share * prices[0] + (1 - share) * prices[1]

    def complete(self, saved: dict[str, Tensor], prefix: str = "") -> None:
        """Add to `saved` weights of a module that scaled no targets that it didn't."""
        if self.scaled and f"{prefix}scale" in saved and f"{prefix}target_scale" not in saved:
            saved[f"{prefix}target_shift"] = torch.zeros_like(self.target_shift)
            saved[f"{prefix}target_scale"] = torch.ones_like(self.target_scale)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        self.complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def of_differences(objective: nn.Module, out_features: int) -> bool:
    """Whether an objective depends on outputs [B, O] and targets [B, O] by their differences alone.

    Only then do scaled targets pose the same problem: squared and absolute errors are such, likelihoods of counts,
    probabilities or signs are not. Tried with numbers, since an objective may be anybody's.
    """
    source = generator(0, "of_differences")
    outputs, target, by = (torch.randn(8, out_features, generator=source) for _ in range(3))
    try:
        with torch.no_grad():
            before, after = objective(outputs, target), objective(outputs + by, target + by)
        return before.dim() == 0 and torch.allclose(before, after, rtol=1e-3, atol=1e-5)
    except (RuntimeError, ValueError, TypeError, IndexError):  # it takes other targets; `_check_objective` tells
        return False


def r_squared(outputs: Tensor, target: Tensor) -> float:
    """1 − Σ (y − ŷ)² / Σ (y − ȳ)² of outputs and targets [N, O], mean over the targets that vary; NaN if none does."""
    error, spread = (target - outputs).square().sum(0), (target - target.mean(0)).square().sum(0)
    return (1 - error / spread)[spread > 0].mean().item()


class WorseThanTheMean(Callback):
    """Says at the end of a run of `task` where a regression has learned nothing."""

    def __init__(self, task: "Supervised") -> None:
        self.task = task

    def on_end(self, trainer: RunView) -> None:
        task = self.task
        if task.kind != "regression" or not trainer.evaluation:
            return
        with trainer.averaged():  # as it was evaluated
            outputs, y = task.outputs_of(task.held_out[""]["x"]), task.held_out[""]["y"]
        if outputs.shape == y.shape and (value := r_squared(outputs, y)) < 0:
            way = "more epochs or another optimizer.lr" if task.loss.scaled else "data.standardize_targets=true"
            print(
                f"warning: R² is {value:.2f} on the validation split: predictions are worse than the targets' mean; "
                f"{way} may help",
                file=sys.stderr,
                flush=True,
            )


def labels(outputs: Tensor, kind: str) -> Tensor:
    """What outputs [..., O] say: classes int64 [...], or for "binary" 0 or 1 as int64 [..., O]; else unchanged.

    "ranking": of scores [..., 2, 1] whether the first is the higher, "triplets": of [..., 3, O] whether the second is
    nearer to the first than the third is; both as 0 or 1, int64 [..., 1].
    """
    if kind == "classification":
        return outputs.argmax(-1)
    if kind == "ranking":
        return (outputs[..., 0, :] > outputs[..., 1, :]).long()
    if kind == "triplets":
        near, far = ((outputs[..., 0, :] - outputs[..., i, :]).norm(dim=-1, keepdim=True) for i in (1, 2))
        return (near < far).long()
    return (outputs > 0).long() if kind == "binary" else outputs


class Supervised(Epochs):
    """Learns `data` with `network` and `objective` (see marl.task.Task); an iteration is an epoch.

    `evaluate` gives "loss" and "accuracy" of the validation split, by which the best checkpoint is chosen, and
    "test_loss" and "test_accuracy" of the test split, by which a model is judged and nothing is chosen.

    Args:
        data: what `marl.data.ArrayData` describes; its training split may be a map-style Dataset or a `Stream` too.
        batch_size to mixup: see `marl.data.Loader`, `marl.data.samplers.Order`.
        batches_per_iteration: minibatches in an iteration of the engine, instead of an epoch's: checkpoints may then
            lie in the midst of an epoch, and the budget is counted in batches.
        metrics: further figures of the evaluation, by their names in `marl.supervised.metrics`.
    """

    loss: SupervisedLoss
    name = "supervised"

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """All but what changes no number of training."""
        return key not in ("workers", "pin_memory", "metrics")

    def __init__(
        self,
        data: ArrayData | CSVStream,
        network: Callable[..., nn.Module],
        objective: nn.Module,
        epochs: Annotated[int, Field(ge=1)],
        batch_size: Annotated[int, Field(ge=1)] = 64,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | torch.device = "cpu",
        sampler: Sampling = "random",
        weights: Weights | None = None,
        subset: Subset | None = None,
        drop_last: bool = False,
        workers: Annotated[int, Field(ge=0)] = 0,
        pin_memory: bool = False,
        augment: Sequence[Augment] = (),
        mixup: Annotated[float, Field(ge=0)] = 0.0,
        batches_per_iteration: Annotated[int, Field(ge=1)] | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        """Raises UserError where the minibatch exceeds the training split or the objective can't price the data."""
        if batch_size > len(data.train):
            raise UserError(
                f"task.batch_size={batch_size}: must be at most {len(data.train)}, the rows of the training split"
            )
        self.kind, self.measures = data.kind, measures.build(metrics, data.kind, data.out_features)
        self.in_shape = data.in_shape
        self.device = torch.device(device)
        if reads_team(network) and len(data.in_shape) == 1:  # it would take the rows of a minibatch for a team
            raise UserError(
                f"network: reads sets (members, features), not inputs {data.in_shape}; use network=mlp for them"
            )
        model = network(data.in_shape, data.out_features)
        self.loss = SupervisedLoss(model, objective, data).to(self.device)
        rows, moved = data.train, False
        if isinstance(rows, TensorDict) and not workers and not pin_memory:
            rows, moved = rows.to(self.device), True
        reading = {"sampler": sampler, "weights": weights, "subset": subset, "drop_last": drop_last}
        reading |= {"workers": workers, "pin_memory": pin_memory, "augment": augment, "mixup": mixup}
        reading["own_target"] = getattr(data, "own_target", False)
        self.loader = Loader(rows, batch_size, seed, device=None if moved else self.device, **reading)
        if not len(self.loader):
            raise UserError(f"task.batch_size={batch_size}: more than an epoch has; drop_last leaves nothing")
        self.held_out = {"": finite("validation of data", _in_memory(data.validation)).to(self.device)}
        if data.test is not None:
            self.held_out["test_"] = finite("test of data", _in_memory(data.test)).to(self.device)
        self.monitor = ("loss", "min") if data.kind == "regression" else ("accuracy", "max")
        self.budget(epochs, batches_per_iteration)
        self._check_objective(next(iter(self.loader.span(0, 1)))[:3])
        self._check_last_row(batch_size)
        self.callbacks = (WorseThanTheMean(self),)

    def _check_objective(self, rows: TensorDict) -> None:
        """Price three rows: a mismatch shows here as one sentence, not later as a wrong broadcast."""
        with self.evaluating(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # torch only warns where losses broadcast by mistake
            outputs, target = self.loss.outputs(rows["x"]), rows["y"]
            try:
                price = self.loss.objective(outputs, target)
                reason = f"it gives {list(price.shape)} instead of one number" if price.dim() else None
            except (RuntimeError, ValueError, TypeError, IndexError, UserWarning) as error:
                reason = str(error).splitlines()[0]
        if reason is not None:
            raise UserError(
                f"objective={type(self.loss.objective).__name__}: does not fit {self.kind} data, outputs "
                f"{list(outputs.shape)} against {target.dtype} targets {list(target.shape)} ({reason})"
            )

    def _check_last_row(self, batch_size: int) -> None:
        """Where an epoch has a minibatch of a single row, make sure that the model trains on one: BatchNorm doesn't."""
        loader = self.loader
        last = 0 if loader.drop_last else loader.order.length % batch_size
        if 1 not in (last, batch_size) or distributed.world() > 1:  # of several, each takes its share of the rows
            return
        x = self.held_out[""]["x"][:1]
        try:
            with torch.no_grad(), torch.random.fork_rng():  # dropout draws
                copy.deepcopy(self.loss.model).train()((x - self.loss.shift) / self.loss.scale)
        except (ValueError, UserError) as error:
            way = "it must be at least 2" if batch_size == 1 else "task.drop_last=true leaves the last one out"
            raise UserError(f"task.batch_size={batch_size}: minibatches of one row come up ({error}); {way}") from error

    def parts(self) -> dict[str, nn.Module]:
        return {"model": self.loss.model}

    def evaluate(self) -> dict[str, float]:
        """Means over the rows of the validation and test splits, the latter's names beginning with "test_"."""
        figures = {}
        for prefix, rows in self.held_out.items():
            figures |= {prefix + name: value for name, value in self.means(rows).items()}
            if self.measures:
                outputs = self.outputs_of(rows["x"])
                figures |= {prefix + name: measure(outputs, rows["y"]) for name, measure in self.measures.items()}
        return figures

    def figure_names(self) -> set[str]:
        """As `Task.figure_names`; an evaluation of the untrained model has them all."""
        return set(self.evaluate())

    def outputs_of(self, x: Tensor) -> Tensor:
        """Logits or values of raw inputs x [N, *in_shape] in evaluation mode, a part of the rows at a time."""
        with self.evaluating():
            return torch.cat([self.loss.outputs(part) for part in x.split(EVALUATION_ROWS)])

    def predict(self, x: Tensor) -> Tensor:
        """What the model says of raw inputs x [..., *in_shape] (tensor, array or list).

        Classification: int64 [...], the class. Binary: int64 [..., O], 0 or 1. Regression: float32 [..., O].
        `task.loss.outputs` gives the logits. Raises UserError for another shape.
        """
        x = torch.as_tensor(x, dtype=torch.float32, device=self.device)
        if x.shape[x.dim() - len(self.in_shape) :] != self.in_shape:
            raise UserError(f"predict: takes inputs [..., {', '.join(map(str, self.in_shape))}], not {list(x.shape)}")
        with self.evaluating():
            return labels(self.loss.outputs(x), self.kind)

    def summary(self, metrics: dict[str, float]) -> dict:
        """The figures of `evaluate` among `metrics`, under the same names."""
        names = [prefix + name for prefix in self.held_out for name in ("accuracy", "loss", *self.measures)]
        return {name: metrics[name] for name in names if name in metrics}

    def diagnose(self) -> str | None:
        """The first training row that is not finite."""
        if not isinstance(self.loader.rows, TensorDict):
            return None
        for key in ("x", "y"):
            bad = (~torch.isfinite(self.loader.rows[key])).nonzero()
            if len(bad):
                return f"row {bad[0, 0].item()} of the training split has a value in {key!r} that is not finite"
        return None


def _in_memory(rows: Any) -> TensorDict:
    """A held-out split in memory, whatever kind of data set it is."""
    if isinstance(rows, Stream):
        x, y = (torch.stack(part) for part in zip(*rows.rows(), strict=True))
        return TensorDict({"x": x, "y": y}, batch_size=[len(x)])
    return rows if isinstance(rows, TensorDict) else take(rows, range(len(rows)))
