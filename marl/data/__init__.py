"""Data sets: digits and clothes, made ones whose truth is known, your own files, recorded episodes; their batches."""

from marl.data.augment import Erase, Flip, Noise, Shift
from marl.data.base import ArrayData
from marl.data.digit_variants import DigitAttributes, DigitPairs, DigitTriplets
from marl.data.episodes import Episodes
from marl.data.images import Digits, FashionMNIST
from marl.data.loader import Loader
from marl.data.readers import CSV, IDX, NPZ, ImageFolder
from marl.data.reconstruction import Reconstruction
from marl.data.stream import CSVStream, Stream
from marl.data.synthetic import LinearRegression, LogisticRegression, Sine, Threshold

__all__ = [
    "ArrayData",
    "CSV",
    "CSVStream",
    "DigitAttributes",
    "DigitPairs",
    "DigitTriplets",
    "Digits",
    "Episodes",
    "Erase",
    "FashionMNIST",
    "Flip",
    "IDX",
    "ImageFolder",
    "LinearRegression",
    "Loader",
    "LogisticRegression",
    "NPZ",
    "Noise",
    "Reconstruction",
    "Shift",
    "Sine",
    "Stream",
    "Threshold",
]
