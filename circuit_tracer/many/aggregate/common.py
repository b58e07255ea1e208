"""The circuit that graphs have in common, as a curve over how many of them must have a part of it.

One threshold would be a choice that decides the result; the curve shows what any would give, how much of a graph's influence
is in it, and whether it stays the same when graphs are pruned otherwise. Letters: G graphs, U items, C settings, T thresholds.
"""

from __future__ import annotations

import numpy as np

from circuit_tracer.many.aggregate.incidence import Incidence
from circuit_tracer.many.aggregate.statistics import Columns

MOST_THRESHOLDS = 50


def counts_of(n_graphs: int) -> np.ndarray:
    """(T,) the numbers of graphs that are thresholds: all from 1 to G, or 50 of them."""
    return np.unique(np.ceil(np.linspace(1, n_graphs, min(n_graphs, MOST_THRESHOLDS))).astype(np.int64))


def common_curve(features: Incidence, edges: Incidence) -> Columns:
    """A row a threshold; the columns of README.md."""
    thresholds = counts_of(features.n_graphs)
    columns: Columns = {"threshold": thresholds / features.n_graphs}
    for name, found in (("features", features), ("edges", edges)):
        columns |= {f"{column}_{name}": values for column, values in _curve(found, thresholds).items()}
    return columns


def _curve(found: Incidence, thresholds: np.ndarray) -> Columns:
    """n, influence, steady and overlap, each (T,)."""
    held = np.bincount(found.graph, weights=found.influence, minlength=found.n_graphs)
    # mean over graphs of the part of what a graph holds: each item adds the sum of its shares
    share = found.influence / held[found.graph] if len(found.graph) else found.influence
    by_item = np.bincount(found.item, weights=np.nan_to_num(share), minlength=len(found))
    count, n_holding = found.counts[:, 0], max(1, int((held > 0).sum()))
    rows = []
    for least in thresholds:
        common = found.counts >= least  # (U, C)
        ours = common[:, :1]
        both, either = (ours & common).sum(0), (ours | common).sum(0)
        likeness = np.where(either > 0, both / np.maximum(either, 1), 1.0)[1:]
        rows.append(
            (
                int(ours.sum()),
                by_item[count >= least].sum() / n_holding,
                int(common.all(1).sum()),
                likeness.mean() if len(likeness) else 1.0,
            )
        )
    names = ("n", "influence", "steady", "overlap")
    return dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
