"""Streams: what is drawn inside and outside is what two generators of one's own would give."""

import random

import numpy as np
import pytest
import torch

from envs.rng import Stream

DRAWS = {
    "nothing": lambda source: 0,
    "words": lambda source: source.random_sample(),
    "a Gaussian, its twin kept": lambda source: source.normal(),
    "three": lambda source: source.normal(size=3).tolist(),
    "a whole block of words": lambda source: source.random_sample(700).sum(),
    "an order": lambda source: source.permutation(5).tolist(),
    "seeded": lambda source: source.seed(7),
}


@pytest.mark.parametrize("seed", range(4))
def test_numpys_generator_is_two(seed: int) -> None:
    """Whatever comes after whatever: a kept Gaussian and the place in the words stay each with its own generator."""
    dice, before = random.Random(seed), np.random.get_state()
    own, outside, stream = np.random.RandomState(5), np.random.RandomState(1), Stream(5)
    np.random.seed(1)
    for _ in range(60):
        first, *inside = (DRAWS[dice.choice(list(DRAWS))] for _ in range(3))
        assert first(np.random) == first(outside)
        with stream:
            assert [draw(np.random) for draw in inside] == [draw(own) for draw in inside]
        if dice.random() < 0.2:
            stream.load_state_dict(stream.state_dict())
    key, *rest = np.random.get_state()[1:]
    assert key.tolist() == outside.get_state()[1].tolist() and rest == list(outside.get_state()[2:])
    np.random.set_state(before)


def test_pythons_and_torchs_are_left_alone() -> None:
    states = random.getstate(), torch.get_rng_state().tolist()
    with Stream(3):
        drawn = random.random(), torch.rand(1).item()
    assert (random.getstate(), torch.get_rng_state().tolist()) == states
    assert drawn == (random.Random(3).random(), torch.rand(1, generator=torch.Generator().manual_seed(3)).item())
