"""The value down to which the largest numbers must be kept to hold a fraction of the total, without a full sort."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import InputError

SORTABLE = 4096
DIGIT_BITS = 16


def cumulative_threshold(scores: Tensor, fraction: float) -> float:
    """The v such that the scores >= v are the largest ones that together hold ``fraction`` of the sum, ties included.

    The same v as sorting in descending order and looking up ``searchsorted(cumsum / sum, fraction)``; fraction 1 is defined
    as "all that is not zero". Returns inf if all scores are 0. O(n): the bits of a non-negative float order like its value,
    so a radix selection walks down 16 bits at a time through the bin in which the sum crosses the fraction, and sorts only
    what is left of it.

    Args:
        scores: (n,), non-negative, any float dtype; accumulated in float64.
        fraction: 0 to 1.

    Returns:
        The threshold, in units of the scores; inf if all scores are 0.

    Raises:
        InputError: For a fraction outside 0..1.

    Examples:
        >>> from circuit_tracer.graph import cumulative_threshold
        >>> cumulative_threshold(torch.tensor([5.0, 3.0, 1.0, 1.0]), 0.8)
        3.0
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"threshold is {fraction}; expected a fraction between 0 and 1")
    candidates = scores.double()
    candidates = candidates[candidates > 0]
    if len(candidates) == 0:
        return float("inf")
    if fraction == 1.0:
        return float(candidates.min())
    total, above = candidates.sum(), torch.zeros((), dtype=torch.float64, device=scores.device)
    for shift in range(64 - DIGIT_BITS, -1, -DIGIT_BITS):
        if len(candidates) <= SORTABLE:
            break
        digit = (candidates.view(torch.int64) >> shift) & ((1 << DIGIT_BITS) - 1)
        sums = torch.bincount(digit, weights=candidates, minlength=1 << DIGIT_BITS)
        from_top = above + torch.cumsum(sums.flip(0), 0)
        last = (1 << DIGIT_BITS) - 1
        crossing = int(torch.searchsorted(from_top / total, fraction))
        # Rounding of the sums can put the fraction just outside of the bins in use; the nearest of them is the one.
        crossing = max(last - int(digit.max()), min(crossing, last - int(digit.min())))
        above = from_top[crossing - 1] if crossing else above
        candidates = candidates[digit == last - crossing]
    ordered = torch.sort(candidates, descending=True).values
    cumulative = (above + torch.cumsum(ordered, 0)) / total
    index = min(int(torch.searchsorted(cumulative, fraction)), len(ordered) - 1)
    return float(ordered[index])


def find_threshold(scores: Tensor, threshold: float) -> Tensor:
    """``cumulative_threshold`` as a tensor of the dtype of ``scores``, under circuit-tracer's name.

    Differs from circuit-tracer 0.5.0 at threshold 1, which there returns 0 and keeps every absent edge; here it is the
    smallest positive score.

    Args:
        scores: (n,), non-negative.
        threshold: Fraction, 0 to 1.

    Returns:
        The threshold, a tensor without dimensions.
    """
    return torch.tensor(cumulative_threshold(scores.flatten(), threshold), dtype=scores.dtype, device=scores.device)


def cumulative_ranks(scores: Tensor) -> Tensor:
    """(n,) fraction of the total held by all scores down to and including each one's rank: small is important.

    Equal scores keep their order. All ones if the total is 0.

    Args:
        scores: (n,), non-negative.

    Returns:
        (n,) fractions, 0 to 1.
    """
    ordered, order = torch.sort(scores.double(), descending=True, stable=True)
    total = ordered.sum()
    if total == 0:
        return torch.ones_like(ordered)
    ranks = torch.empty_like(ordered)
    ranks[order] = torch.cumsum(ordered, 0) / total
    return ranks
