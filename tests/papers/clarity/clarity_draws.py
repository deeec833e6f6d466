"""What the tests of the tables draw from."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=25, deadline=None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))
