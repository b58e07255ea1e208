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
    while True:
        influence, _ = store.influence(weight_K)
        missing = _missing(store, _first(influence, budget), influence)
        if len(missing) <= SMALLEST_ROUND:
            break
        yield missing[: max(SMALLEST_ROUND, int(len(missing) * SHARE_A_ROUND))]
    while True:
        chosen, influence = largest_below(store, weight_K, budget, influence)
        missing = _missing(store, chosen, influence)
        if len(missing) == 0:
            return chosen
        yield missing
        influence, _ = store.influence(weight_K)


def largest_below(store: FinishedRows, weight_K: Tensor, budget: int, influence: Tensor) -> tuple[Tensor, Tensor]:
    """The selection from the rows there are: columns (ascending) and the influences (N,) that gave them.

    A pass at a threshold tells more than whom it selects: with the same selection pass all thresholds down to the largest
    influence of those outside, or up to the smallest of those inside. So the bracket closes when no selection is between its
    ends. Inside, "the budget-th largest influence under the last threshold" is tried first. The second such threshold lets at
    least as many pass as there may be. All that follow are higher: from then on those it selects are looked at by themselves, and
    all columns once more in the end.

    influence: (N,), when all rows pass it on.
    """
    # S(above) fits the budget, and is S down to `following`, exclusive; S(below) does not fit
    above, following, below = float("inf"), float(influence.max()) if len(influence) else 0.0, 0.0
    selected, members = torch.zeros(len(influence), dtype=torch.bool), store
    threshold = _value_at(influence, budget)
    while below < following:
        found, inside = members.influence(weight_K, threshold)
        count = int(inside.sum())
        if count <= budget:
            above, following = threshold, float(found.masked_fill(inside, 0).max())
            if members is store:
                influence, selected = found, inside
            if count == budget:
                break
        else:
            below = float(found[inside].min())
            if members is store:
                members = store.among(torch.nonzero(inside).flatten())
        threshold = _value_at(found, budget)
        if not below < threshold <= following:
            between = (below * following) ** 0.5 if below > 0 else following / 2
            threshold = between if below < between < following else following
    if members is not store and above < float("inf"):
        influence, selected = store.influence(weight_K, above)
    return _first(influence, budget, selected).sort().values, influence


def _first(influence: Tensor, count: int, before: Tensor | None = None) -> Tensor:
    """The columns of the largest influence, equals in their order; those of `before` (N,) come first."""
    order = torch.argsort(influence, descending=True, stable=True)
    return (order if before is None else torch.cat([order[before[order]], order[~before[order]]]))[:count]


def _value_at(influence: Tensor, rank: int) -> float:
    return float(torch.topk(influence, rank).values[-1])


def _missing(store: FinishedRows, columns: Tensor, influence: Tensor) -> Tensor:
    missing = columns[~store.expanded[columns]]
    return missing[torch.argsort(influence[missing], descending=True, stable=True)]
