"""A user's helper module: constants, functions that compute, functions and objects that count."""

import torch

PAY = 1.75
COUNT = 0
TALLY: dict[str, int] = {}


def tally(name):
    """Counts calls by name."""
    TALLY[name] = TALLY.get(name, 0) + 1
    return TALLY[name]


def shaped(pos):
    """[E]: a shaped reward."""
    return PAY * torch.exp(-pos.square().sum(-1))


class Meter:
    """Reads 0, and 1 from its 200th reading on."""

    def __init__(self):
        self._read = 0

    def read(self):
        """One more reading."""
        self._read += 1
        return float(self._read > 200)


METER = Meter()
