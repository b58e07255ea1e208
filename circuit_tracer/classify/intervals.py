"""How sure shares and means are. Letters: G groups, B resamples."""

from __future__ import annotations

import numpy as np

LEVEL = 0.95  # of intervals
Z = 1.959963984540054  # the normal quantile of it


def wilson(count: np.ndarray, total: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share: the p with |count / total - p| <= z sqrt(p (1 - p) / total)."""
    share, extra = count / total, Z * Z / total
    middle = (share + extra / 2) / (1 + extra)
    half = np.sqrt(share * (1 - share) * extra + extra * extra / 4) / (1 + extra)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def resampled(n_groups: int, resamples: int, seed: int) -> np.ndarray:
    """(B, G) how often each group is drawn when G are drawn with replacement."""
    draws = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    return draws.astype(np.float64)
