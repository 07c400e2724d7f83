"""Random choices that depend on a seed alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's CPU generators for a block, and puts them back after it."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def derived_seed(*parts: int) -> int:
    """A seed of 32 bits that depends on all parts: a run's seed, an epoch, an image …"""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
