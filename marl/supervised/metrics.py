"""Further figures of an evaluation by name, computed by torchmetrics over a whole split at once."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from marl.core.errors import UserError

NAMES = {
    "classification": ("precision", "recall", "f1", "top_K"),
    "binary": ("precision", "recall", "f1", "exact_match"),
    "regression": ("r2", "mae"),
}
Measure = Callable[[Tensor, Tensor], float]


def build(names: Sequence[str], kind: str, out_features: int) -> dict[str, Measure]:
    """{name: function of outputs [N, O] and targets as `marl.data.ArrayData` has them -> number}.

    precision, recall, f1   mean over the classes or labels, each counting the same ("macro"), 0 / 0 being 0
    top_K                   share of rows whose class is among the K likeliest
    exact_match             share of rows of which every label is right
    r2                      1 − Σ (y − ŷ)² / Σ (y − ȳ)², mean over the targets
    mae                     mean |y − ŷ|, in the targets' units

    Raises UserError for a metric that this kind of data has not.
    """
    allowed = NAMES.get(kind, ())
    for name in names:
        if re.sub(r"^top_[1-9]\d*$", "top_K", name) not in allowed:
            options = f"allowed are {', '.join(allowed)}" if allowed else "which has no others"
            raise UserError(f"task.metrics=[{name}]: not for {kind} data ({options})")
        if name.startswith("top_") and int(name[4:]) >= out_features:
            raise UserError(f"task.metrics=[{name}]: must be below {out_features}, the number of classes")
    return {name: partial(_measure, name, kind, out_features) for name in names}


def _measure(name: str, kind: str, out_features: int, outputs: Tensor, target: Tensor) -> float:
    from torchmetrics.functional import classification, regression  # slow to import: only for those who use it

    outputs = outputs.float()
    if name == "r2":
        return _number(regression.r2_score(outputs, target))
    if name == "mae":
        return _number(regression.mean_absolute_error(outputs, target))
    if kind == "classification":
        of: dict[str, Any] = {"num_classes": out_features}
        if name.startswith("top_"):
            return _number(
                classification.multiclass_accuracy(outputs, target, **of, average="micro", top_k=int(name[4:]))
            )
        return _number(getattr(classification, f"multiclass_{NAME_OF[name]}")(outputs, target, **of, average="macro"))
    predicted, target = (outputs > 0).long(), target.long()
    if name == "exact_match":
        return _number(classification.multilabel_exact_match(predicted, target, num_labels=out_features))
    if out_features == 1:
        return _number(getattr(classification, f"binary_{NAME_OF[name]}")(predicted, target))
    function = getattr(classification, f"multilabel_{NAME_OF[name]}")
    return _number(function(predicted, target, num_labels=out_features, average="macro"))


NAME_OF = {"precision": "precision", "recall": "recall", "f1": "f1_score"}


def _number(value: Tensor) -> float:
    return value.item()


def confusion(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """How often class i (row) was called j (column): int64 [N], int64 [N] → int64 [classes, classes]."""
    return (target * classes + predicted).bincount(minlength=classes * classes).view(classes, classes)
