"""Seeds: one number per run, and numbers derived from it for each use, so that no two uses share a stream."""

from __future__ import annotations

import hashlib


def derive(seed: int, *parts: str | int) -> int:
    """A seed below 2^63 for one use, e.g. `derive(seed, "shuffle", epoch, day)`; equal on every machine and rank."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices) with numbers derived from `seed`."""
    import random

    import numpy as np
    import torch

    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
    torch.manual_seed(derive(seed, "torch"))
