"""Which features to expand, for a budget of rows, by exact influence and whatever the batch size.

For a threshold t let S(t) be the features whose influence reaches t when only members of S(t) pass influence on; since the
graph is layered, one pass from the top layer decides it. S grows as t falls. The selection for a budget of n features is the
largest S(t) with at most n members, filled up to n by influence (equals in the order of columns). This definition knows
nothing of batches; the rounds below only decide which rows are computed on the way, and every row is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from circuit_tracer.attribution.finished_rows import FinishedRows

SHARE_A_ROUND = 0.92  # of what seems missing; the rest is judged again with the new rows
SMALLEST_ROUND = 128


def select(store: FinishedRows, weight_K: Tensor, budget: int, expand: Callable[[Tensor], None]) -> Tensor:
    """Columns (budget,) of the selected features, ascending; `expand(columns)` computes the rows that are missing.

    On KeyboardInterrupt inside `expand` the error passes through; rows computed so far are in the store.
    """
    found = rounds(store, weight_K, budget)
    while True:
        try:
            expand(next(found))
        except StopIteration as last:
            chosen: Tensor = last.value
            return chosen


def rounds(store: FinishedRows, weight_K: Tensor, budget: int) -> Generator[Tensor, None, Tensor]:
    """The same for whoever computes rows of several prompts at once: yields columns whose rows are to be in the store when it
    goes on, and returns those selected.
    """
    weight_K = weight_K.to(store.device)
    while True:
        influence = store.influence(weight_K).cpu()
        missing = _missing(store, _top(influence, budget), influence)
        if len(missing) <= SMALLEST_ROUND:
            break
        yield missing[: max(SMALLEST_ROUND, int(len(missing) * SHARE_A_ROUND))]
    while True:
        chosen, influence = largest_below(store, weight_K, budget)
        missing = _missing(store, chosen, influence)
        if len(missing) == 0:
            return chosen
        yield missing


def largest_below(store: FinishedRows, weight_K: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The selection from the rows there are: columns (ascending) and the influences (N,) that gave them.

    The threshold is found by iterating "the budget-th largest influence under the last threshold", inside a bracket that
    every pass narrows.
    """
    above, below = float("inf"), 0.0  # S(above) fits the budget, S(below) does not
    best_threshold, best_influence = float("inf"), store.influence(weight_K)
    threshold = _value_at(best_influence, budget)
    for _ in range(64):
        influence = store.influence(weight_K, threshold)
        count, following = _count_and_value(influence, threshold, budget)
        if count <= budget:
            above = best_threshold = threshold
            best_influence = influence
            if count == budget:
                break
        else:
            below = threshold
        threshold = following
        if not below < threshold < above:
            threshold = (
                (below * above) ** 0.5
                if below > 0 and above < float("inf")
                else (below + min(above, 2 * below + 1e-30)) / 2
            )
        if not below < threshold < above:
            break
    best_influence = best_influence.cpu()
    best = torch.nonzero(best_influence >= best_threshold).flatten()
    rest = best_influence.clone()
    rest[best] = -1
    fill = torch.argsort(rest, descending=True, stable=True)[: budget - len(best)]
    return torch.cat([best, fill]).sort().values, best_influence


def _count_and_value(influence: Tensor, threshold: float, rank: int) -> tuple[int, float]:
    """How many influences reach a threshold, and the `rank`-th largest: the one thing that a pass is asked for."""
    value = torch.topk(influence, rank).values[-1]
    count, value = torch.stack([(influence >= threshold).sum().to(value), value]).tolist()
    return int(count), value


def _top(influence: Tensor, count: int) -> Tensor:
    return torch.argsort(influence, descending=True, stable=True)[:count]


def _value_at(influence: Tensor, rank: int) -> float:
    return float(torch.topk(influence, rank).values[-1])


def _missing(store: FinishedRows, columns: Tensor, influence: Tensor) -> Tensor:
    missing = columns[~store.expanded[columns]]
    return missing[torch.argsort(influence[missing], descending=True, stable=True)]
