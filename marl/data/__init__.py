"""Data sets as tensors in memory: real digits and clothes, and made sets whose truth is known."""

from marl.data.base import ArrayData
from marl.data.images import Digits, FashionMNIST
from marl.data.loader import ShuffledBatches
from marl.data.made import LinearRegression, LogisticRegression, Sine, Threshold
from marl.data.reconstruction import Reconstruction

__all__ = [
    "ArrayData",
    "Digits",
    "FashionMNIST",
    "LinearRegression",
    "LogisticRegression",
    "Reconstruction",
    "ShuffledBatches",
    "Sine",
    "Threshold",
]
