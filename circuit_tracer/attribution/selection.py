"""Which features to expand, for a budget of rows, by exact influence and whatever the batch size.

For a threshold t let S(t) be the features whose influence reaches t when only members of S(t) pass influence on; since the
graph is layered, one pass from the top layer decides it. S grows as t falls. The selection for a budget of n features is the
largest S(t) with at most n members, filled up to n by influence (equals in the order of columns). This definition knows
nothing of batches; the rounds below only decide which rows are computed on the way, and every row is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.kernels.device import sent

SHARE_A_ROUND = 0.92  # of what seems missing; the rest is judged again with the new rows
SMALLEST_ROUND = 128
# Few rows from high layers meet all sources, as many do: a round of them takes as long as so many rows take in another. Fewer
# are not held back.
ROWS_A_ROUND_COSTS = 200


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
    weight_K = sent(weight_K, store.device)
    while True:
        influence = store.influence(weight_K).cpu()
        missing = _missing(store, _first(influence, budget), influence)
        if len(missing) <= SMALLEST_ROUND:
            break
        sure = max(SMALLEST_ROUND, int(len(missing) * SHARE_A_ROUND))
        yield missing[:sure] if len(missing) - sure > ROWS_A_ROUND_COSTS else missing
    while True:
        chosen, influence = largest_below(store, weight_K, budget, influence)
        missing = _missing(store, chosen, influence)
        if len(missing) == 0:
            return chosen
        yield missing
        influence = store.influence(weight_K).cpu()


def largest_below(store: FinishedRows, weight_K: Tensor, budget: int, influence: Tensor) -> tuple[Tensor, Tensor]:
    """The selection from the rows there are: columns (ascending) and the influences (N,) that gave them.

    A pass at a threshold tells more than whom it selects: with the same selection pass all thresholds down to the largest
    influence of those outside, or up to the smallest of those inside. So the bracket closes when no selection is between its
    ends. Inside, "the budget-th largest influence under the last threshold" is tried first. The second such threshold lets at
    least as many pass as there may be. All that follow are higher: from then on those it selects are looked at by themselves,
    and all columns once more in the end.

    influence: (N,), when all rows pass it on.
    """
    # S(above) fits the budget, and is S down to `following`, exclusive; S(below) does not fit
    above, following, below = float("inf"), float(influence.max()) if len(influence) else 0.0, 0.0
    selected, members = torch.zeros(len(influence), dtype=torch.bool), store
    threshold, at_last = _value_at(influence, budget), None  # influence under the threshold `above`, of all columns
    while below < following:
        found = members.influence(weight_K, threshold)
        seen = _seen(found, threshold, budget)
        if seen.reaching <= budget:
            above, following = threshold, seen.outside
            at_last = found if members is store else None
            if seen.reaching == budget:
                break
        else:
            below = seen.inside
            if members is store:
                members = store.among(torch.nonzero(found.cpu() >= threshold).flatten())
        threshold = seen.value
        if not below < threshold <= following:
            between = (below * following) ** 0.5 if below > 0 else following / 2
            threshold = between if below < between < following else following
    if above < float("inf"):
        influence = (store.influence(weight_K, above) if at_last is None else at_last).cpu()
        selected = influence >= above
    return _first(influence, budget, selected).sort().values, influence


class _Seen(NamedTuple):
    """What the host hears of a pass at a threshold."""

    reaching: int  # how many influences reach it
    outside: float  # the largest that does not, 0 if there is none
    inside: float  # the smallest that does
    value: float  # the largest but so many


def _seen(influence: Tensor, threshold: float, rank: int) -> _Seen:
    inside = influence >= threshold
    outside = influence.masked_fill(inside, 0).max()
    value = torch.topk(influence, rank).values[-1]
    found = [inside.sum().to(value), outside, influence.masked_fill(~inside, torch.inf).min(), value]
    count, *rest = torch.stack(found).tolist()
    return _Seen(int(count), *rest)


def _first(influence: Tensor, count: int, before: Tensor | None = None) -> Tensor:
    """The columns of the largest influence, equals in their order; those of `before` (N,) come first."""
    order = torch.argsort(influence, descending=True, stable=True)
    return (order if before is None else torch.cat([order[before[order]], order[~before[order]]]))[:count]


def _value_at(influence: Tensor, rank: int) -> float:
    return float(torch.topk(influence, rank).values[-1])


def _missing(store: FinishedRows, columns: Tensor, influence: Tensor) -> Tensor:
    missing = columns[~store.expanded[columns]]
    return missing[torch.argsort(influence[missing], descending=True, stable=True)]
