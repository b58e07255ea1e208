"""How often, how much, and how surely: numbers of items over all graphs.

Letters: G graphs, U items, n entries, B resamples.
"""

from __future__ import annotations

import numpy as np

from circuit_tracer.classify.intervals import LEVEL, resampled, wilson
from circuit_tracer.many.aggregate.incidence import Incidence

QUARTILES = {"q25": 0.25, "q50": 0.5, "q75": 0.75}
NUMBERS_AT_ONCE = 1 << 24

Columns = dict[str, np.ndarray]


def describe(found: Incidence, resamples: int, seed: int) -> Columns:
    """The columns that features and edges share (README.md), a row an item that a graph has; ``items``: which those are."""
    items = np.where(found.n_graphs_with > 0)[0]
    count = found.n_graphs_with[items]
    low, high = wilson(count, found.n_graphs)
    mean_low, mean_high = bootstrap_means(found, items, resamples, seed)
    item = found.item
    sums = {
        name: np.bincount(item, weights=getattr(found, name), minlength=len(found))[items]
        for name in ("influence", "attribution", "activation", "settings")
    }
    return {
        "items": items,
        "n_graphs": count,
        "frequency": count / found.n_graphs,
        "frequency_low": low,
        "frequency_high": high,
        "influence": sums["influence"] / found.n_graphs,
        "influence_low": mean_low,
        "influence_high": mean_high,
        **{f"influence_{name}": quantile(found, found.influence, at)[items] for name, at in QUARTILES.items()},
        "activation": sums["activation"] / count,
        "attribution": sums["attribution"] / found.n_graphs,
        "stability": sums["settings"] / count / found.counts.shape[1],
    }


def quantile(found: Incidence, values: np.ndarray, at: float) -> np.ndarray:
    """(U,) quantile of an item's entries, between neighbours in proportion (numpy's "linear"); nan for items without."""
    count = found.n_graphs_with
    ordered = values[np.lexsort((values, found.item))]
    place = at * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    quantiles = np.full(len(found), np.nan)
    there = count > 0
    left, right = (ordered[(found.start[:-1] + which)[there]] for which in (below, above))
    quantiles[there] = left + (place - below)[there] * (right - left)
    return quantiles


def bootstrap_means(found: Incidence, items: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of the mean influence of items (m,), absent = 0, over resamples of the graphs; the same resamples
    for all items. O(B n) time.
    """
    from scipy.sparse import csr_array

    draws = resampled(found.n_graphs, resamples, seed)
    ends = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    matrix = csr_array((found.influence, found.graph, found.start), shape=(len(found), found.n_graphs))
    interval = np.empty((2, len(items)))
    single = found.n_graphs_with[items] == 1
    # The mean of what one graph has is in proportion to how often it is drawn.
    entry = found.start[items[single]]
    of_graph = np.quantile(draws, ends, axis=0)
    interval[:, single] = of_graph[:, found.graph[entry]] * found.influence[entry] / found.n_graphs
    several = np.where(~single)[0]
    for rows in np.split(several, range(step := max(1, NUMBERS_AT_ONCE // resamples), len(several), step)):
        means = matrix[items[rows]] @ draws.T / found.n_graphs
        interval[:, rows] = np.quantile(means, ends, axis=1)
    return interval[0], interval[1]
