"""Independent streams of random numbers, one per purpose, all derived from one seed: the one place that derives."""

import hashlib
import os
import random
from typing import Any

import numpy as np
import torch


def derive(seed: int, purpose: str) -> int:
    """A 32-bit seed for `purpose` (any text), well mixed: neighbouring seeds and purposes share nothing."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=4).digest(), "big")


def spread(seed: int, number: int) -> int:
    """A 63-bit seed for stream `number` of an environment: one round of splitmix64 (Steele et al. 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) & (2**63 - 1)


def generator(seed: int, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A `torch.Generator` of its own for `purpose`, on `device`."""
    return torch.Generator(device).manual_seed(derive(seed, purpose))


def restore(generator: torch.Generator, state: torch.Tensor) -> None:
    """Let a generator go on from a state, uint8 [N] on any device, that another one had.

    A GPU's state says nothing to a CPU's generator, nor the reverse: there it is seeded with a digest of the state.
    """
    state = state.cpu()
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "big") >> 1)


def seed_global(seed: int) -> None:
    """Seed the process-wide generators of Python, NumPy and torch; they serve initialisation and dropout only."""
    seed = derive(seed, "global")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def global_state() -> dict:
    """The process-wide random states, in types that `torch.load(weights_only=True)` accepts."""
    legacy: Any = np.random.get_state()  # a tuple: dictionaries are of other bit generators
    name, keys, position, has_gauss, gauss = legacy
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), int(position), int(has_gauss), float(gauss)),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_global_state(state: dict) -> None:
    """Put back what `global_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"][: torch.cuda.device_count()]])


def use_deterministic_algorithms(enabled: bool) -> None:
    """Refuse algorithms whose result depends on timing; where torch has no other kind, it raises when they are met."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it; read when CUDA starts
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = False
