"""Streams of random numbers: derived per purpose, saved and restored bitwise."""

import random

import numpy as np
import torch

from marl.core.seeding import derive, generator, global_state, restore_global_state, seed_global


def test_purposes_and_seeds_are_independent():
    seeds = {derive(seed, purpose) for seed in range(100) for purpose in ("policy", "environment", "evaluation")}
    assert len(seeds) == 300 and all(0 <= s < 2**32 for s in seeds)
    a, b = generator(0, "policy"), generator(0, "policy")
    assert torch.equal(torch.rand(5, generator=a), torch.rand(5, generator=b))


def test_global_state_round_trip(tmp_path):
    seed_global(3)
    np.random.standard_normal()  # leaves a cached second draw behind
    torch.save(global_state(), tmp_path / "state.pt")
    draws = torch.rand(3), random.random(), np.random.standard_normal(3)
    seed_global(4)
    restore_global_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again = torch.rand(3), random.random(), np.random.standard_normal(3)
    assert torch.equal(draws[0], again[0]) and draws[1] == again[1] and (draws[2] == again[2]).all()
