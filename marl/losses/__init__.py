"""Supervised losses: objectives of one output each, and comparisons between rows."""

from marl.losses.comparisons import HingeEmbedding, MarginRanking, TripletMargin
from marl.losses.objectives import (
    ELBO,
    AsymmetricL1,
    BinaryCrossEntropy,
    CrossEntropy,
    Penalised,
    Transformed,
    Weighted,
)

__all__ = [
    "AsymmetricL1",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "ELBO",
    "HingeEmbedding",
    "MarginRanking",
    "Penalised",
    "Transformed",
    "TripletMargin",
    "Weighted",
]
