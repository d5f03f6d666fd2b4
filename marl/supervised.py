"""Supervised learning as a task of the engine: classification and regression on data sets in memory."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from marl.data import ArrayData, ShuffledBatches
from marl.errors import UserError
from marl.networks import reads_team

EVALUATION_ROWS = 4096  # rows per forward pass outside training: bounds memory, changes no figure


class SupervisedLoss(nn.Module):
    """The model with its input scaling, and the objective that prices its outputs.

    The scaling is part of the module, so that a checkpoint predicts from raw inputs with nothing but itself.
    """

    def __init__(self, model: nn.Module, objective: nn.Module, data: ArrayData) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.kind = data.kind
        self.register_buffer("shift", data.shift.clone())
        self.register_buffer("scale", data.scale.clone())

    def outputs(self, x: Tensor) -> Tensor:
        """Logits or values of raw inputs: float [..., *in_shape] → float [..., out_features]."""
        return self.model((x - self.shift) / self.scale)

    def forward(self, batch: TensorDict) -> dict[str, Tensor]:
        """"x" [B, *in_shape] and "y" → "loss" [] and, unless it is a regression, "accuracy" [], both on the device."""
        outputs = self.outputs(batch["x"])
        figures = {"loss": self.objective(outputs, batch["y"])}
        if self.kind != "regression":
            figures["accuracy"] = (labels(outputs.detach(), self.kind) == batch["y"]).float().mean()
        return figures


def labels(outputs: Tensor, kind: str) -> Tensor:
    """What outputs [..., O] say: classes int64 [...], or for "binary" 0 or 1 as int64 [..., O]; else unchanged."""
    if kind == "classification":
        return outputs.argmax(-1)
    return (outputs > 0).long() if kind == "binary" else outputs


class Supervised:
    """Learns `data` with `network` and `objective` (see marl.task.Task); an iteration is an epoch.

    `evaluate` gives "loss" and "accuracy" of the validation split, by which the best checkpoint is chosen, and
    "test_loss" and "test_accuracy" of the test split, by which a model is judged and nothing is chosen.
    """

    name = "supervised"
    unit = "epochs"
    units_per_iteration = 1

    def __init__(
        self,
        data: ArrayData,
        network: Callable[..., nn.Module],
        objective: nn.Module,
        epochs: Annotated[int, Field(ge=1)],
        batch_size: Annotated[int, Field(ge=1)] = 64,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Raises UserError where the minibatch exceeds the training split or the objective can't price the data."""
        if batch_size > len(data.train):
            raise UserError(
                f"task.batch_size={batch_size}: must be at most {len(data.train)}, the rows of the training split"
            )
        self.kind = data.kind
        self.in_shape = data.in_shape
        self.device = torch.device(device)
        if reads_team(network) and len(data.in_shape) == 1:  # it would take the rows of a minibatch for a team
            raise UserError(
                f"network: reads sets (members, features), not inputs {data.in_shape}; use network=mlp for them"
            )
        model = network(data.in_shape, data.out_features)
        self.loss = SupervisedLoss(model, objective, data).to(self.device)
        self.loader = ShuffledBatches(data.train.to(self.device), batch_size, seed)
        self.held_out = {"": data.validation.to(self.device)}
        if data.test is not None:
            self.held_out["test_"] = data.test.to(self.device)
        self.iterations = epochs
        self.steps_per_iteration = len(self.loader)
        self.monitor = ("loss", "min") if data.kind == "regression" else ("accuracy", "max")
        self._check_objective(data.train[:3].to(self.device))

    def _check_objective(self, rows: TensorDict) -> None:
        """Price three rows: a mismatch shows here as one sentence, not later as a wrong broadcast."""
        with self._evaluating(), warnings.catch_warnings():
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

    def parts(self) -> dict[str, nn.Module]:
        return {"model": self.loss.model}

    def collect(self, iteration: int) -> None:
        """Nothing to gather: the data set is given, and `batches` shuffles it."""

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """TensorDicts [B] of "x" and "y" that hold every training row once, in this epoch's order."""
        return self.loader.epoch(iteration)

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """Nothing depends on the loss of a batch."""

    def metrics(self) -> dict[str, Tensor | float]:
        return {}

    def evaluate(self) -> dict[str, float]:
        """Means over the rows of the validation and test splits, the latter's names beginning with "test_"."""
        figures = {}
        with self._evaluating():
            for prefix, rows in self.held_out.items():
                totals: dict[str, Tensor] = {}
                for part in rows.split(EVALUATION_ROWS):
                    for name, value in self.loss(part).items():
                        totals[name] = totals.get(name, 0) + value.float() * len(part)
                figures |= {prefix + name: (total / len(rows)).item() for name, total in totals.items()}
        return figures

    def predict(self, x: Tensor) -> Tensor:
        """What the model says of raw inputs x [..., *in_shape] (tensor, array or list).

        Classification: int64 [...], the class. Binary: int64 [..., O], 0 or 1. Regression: float32 [..., O].
        `task.loss.outputs` gives the logits. Raises UserError for another shape.
        """
        x = torch.as_tensor(x, dtype=torch.float32, device=self.device)
        if x.shape[x.dim() - len(self.in_shape) :] != self.in_shape:
            raise UserError(f"predict: takes inputs [..., {', '.join(map(str, self.in_shape))}], not {list(x.shape)}")
        with self._evaluating():
            return labels(self.loss.outputs(x), self.kind)

    def summary(self, metrics: dict[str, float]) -> dict:
        """The figures of `evaluate` among `metrics`, under the same names."""
        names = [prefix + name for prefix in self.held_out for name in ("accuracy", "loss")]
        return {name: metrics[name] for name in names if name in metrics}

    def state_dict(self) -> dict:
        return {"shuffle_seed": self.loader.seed}

    def load_state_dict(self, state: dict) -> None:
        self.loader.seed = state["shuffle_seed"]

    def rejoin(self, iteration: int) -> None:
        """Nothing: an epoch's order depends on its number and the seed, whoever takes which rows of it."""

    def diagnose(self) -> str | None:
        """The first training row that is not finite."""
        for key in ("x", "y"):
            bad = (~torch.isfinite(self.loader.rows[key])).nonzero()
            if len(bad):
                return f"row {bad[0, 0].item()} of the training split has a value in {key!r} that is not finite"
        return None

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No gradients and evaluation mode inside; the mode of before afterwards."""
        training = self.loss.training
        self.loss.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.loss.train(training)
