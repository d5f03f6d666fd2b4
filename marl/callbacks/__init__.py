"""Callbacks of the trainer: what looks at every iteration, and may stop the run."""

from marl.callbacks.base import Callback
from marl.callbacks.early_stopping import EarlyStopping

__all__ = [
    "Callback",
    "EarlyStopping",
]
