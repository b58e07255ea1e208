"""What separates the graphs of one label from the others: AUC of the attribution of each item, tested.

The AUC is the chance that an item's attribution is larger in a graph with the label than in one without, half for equal ones;
absent is 0. Letters: G graphs with a label, m and n of them with this one and without, U items tested, K labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from circuit_tracer.classify.intervals import Z
from circuit_tracer.errors import InputError
from circuit_tracer.many.aggregate.incidence import Incidence
from circuit_tracer.many.aggregate.statistics import NUMBERS_AT_ONCE, Columns

FEWEST_GRAPHS = 2  # of a label, and that have an item
TESTED_SHARE = 0.02  # of the graphs: what fewer have separates next to nothing, and is left out unseen by labels


def tested_labels(ids: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """The labels of at least 2 graphs, sorted, that at least 2 others do not have.

    Raises InputError if there are none: an AUC compares two groups.
    """
    found = large_enough(labels, ids)
    if not found:
        counts = Counter(labels[id] for id in ids if id in labels)
        shown = ", ".join(f"{name!r} ({count})" for name, count in sorted(counts.items())[:5])
        raise InputError(
            f"labels: {shown or 'none'} over {len(ids)} graphs; expected two labels of at least {FEWEST_GRAPHS} graphs each. "
            "Name another column, or leave labels out (--label none)."
        )
    return found


def large_enough(labels: Mapping[str, str], ids: Sequence[str]) -> list[str]:
    """The labels of at least 2 of the ids, sorted, that at least 2 others do not have."""
    counts = Counter(labels[id] for id in ids if id in labels)
    most = counts.total() - FEWEST_GRAPHS
    return sorted(name for name, count in counts.items() if FEWEST_GRAPHS <= count <= most)


def separating(
    found: Incidence,
    ids: Sequence[str],
    labels: Mapping[str, str],
    by: Literal["attribution", "influence"] = "attribution",
) -> Columns:
    """A row an item and label (README.md); ``items`` and ``label`` say which. p: Mann-Whitney, two-sided, normal
    approximation with ties and continuity. q: Benjamini-Hochberg over all rows. by: what is compared; the columns of means are
    of it.
    """
    names = tested_labels(ids, labels)
    labelled = np.array([id in labels for id in ids])
    of_graph = np.array([labels.get(id, "") for id in ids], dtype=object)[labelled]
    least = max(FEWEST_GRAPHS, TESTED_SHARE * found.n_graphs)
    items = np.where(found.n_graphs_with >= least)[0]
    step = max(1, NUMBERS_AT_ONCE // found.n_graphs)
    rows: list[Columns] = []
    for name in names:
        mine = of_graph == name
        for some in np.split(items, range(step, len(items), step)):
            values = found.dense(some, found.attribution if by == "attribution" else found.influence)[labelled]
            there = found.dense(some, np.ones(len(found.graph)))[labelled]
            rows.append(
                {"items": some, "label": np.full(len(some), name, dtype=object), **_row(values, there, mine, by)}
            )
    columns = {column: np.concatenate([row[column] for row in rows]) for column in rows[0]}
    return {**columns, "q": benjamini_hochberg(columns["p"])}


def _row(values: np.ndarray, there: np.ndarray, mine: np.ndarray, by: str) -> Columns:
    """Columns of items (U,) for one label. values, there: (G, U). mine: (G,) bool."""
    area, low, high = auc(values[mine], values[~mine])
    size = values.shape[1]
    return {
        "n_with": np.full(size, int(mine.sum())),
        "n_without": np.full(size, int((~mine).sum())),
        "auc": area,
        "auc_low": low,
        "auc_high": high,
        "p": mann_whitney(values[mine], values[~mine]),
        f"{by}_with": values[mine].mean(0),
        f"{by}_without": values[~mine].mean(0),
        "frequency_with": there[mine].mean(0),
        "frequency_without": there[~mine].mean(0),
    }


def speaking_for(table: Columns, label: str, most: int) -> np.ndarray:
    """Rows of the features that speak for a label (AUC above 1/2), the surest first. table: `labels.parquet`."""
    rows = np.where((table["kind"] == "feature") & (table["label"] == label) & (table["auc"] > 0.5))[0]
    return rows[np.lexsort((-table["auc"][rows], table["q"][rows]))][:most]


def auc(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U,) AUC of columns (m, U) over (n, U), ties half, and DeLong's 95 % interval, cut at 0 and 1.

    With psi(x, y) = 1, 1/2, 0 for x > y, x = y, x < y: AUC = mean psi, its variance var_x(mean_y psi) / m + var_y(mean_x psi)
    / n. The means over the other group are ranks among all less ranks among their own. Where the groups do not overlap that
    variance is 0, and the far end of the interval is `least_auc`.
    """
    from scipy.stats import rankdata

    m, n = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]), axis=0)
    above_outside = (ranks[:m] - rankdata(inside, axis=0)) / n
    below_inside = 1 - (ranks[m:] - rankdata(outside, axis=0)) / m
    area = above_outside.mean(0)
    half = Z * np.sqrt(above_outside.var(0, ddof=1) / m + below_inside.var(0, ddof=1) / n)
    low, high = np.clip(area - half, 0, 1), np.clip(area + half, 0, 1)
    least = least_auc(m, n)
    return area, np.where(area == 1, least, low), np.where(area == 0, 1 - least, high)


def least_auc(m: int, n: int) -> float:
    """The least AUC t from which m and n values that do not overlap are no more than z standard deviations away.

    1 - t = z sqrt(V), V = t (1 - t) (1 + h (1 - t) / (2 - t) + h t / (1 + t)) / (m n), h = (m + n) / 2 - 1 (Newcombe,
    Statistics in Medicine 25, 2006, method 5; V by Hanley and McNeil); 1 - t is cancelled below.
    """
    from scipy.optimize import brentq

    h = (m + n) / 2 - 1

    def gap(t: float) -> float:
        return (1 - t) - Z * Z * t * (1 + h * (1 - t) / (2 - t) + h * t / (1 + t)) / (m * n)

    return float(brentq(gap, 0.0, 1.0))


def mann_whitney(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """(U,) two-sided p of columns (m, U) and (n, U); 1 for a column with one value."""
    from scipy.stats import mannwhitneyu

    whole = np.concatenate([inside, outside])
    varied = np.ptp(whole, axis=0) > 0
    p = np.ones(whole.shape[1])
    if varied.any():
        # The exact distribution knows no ties, and absent ones are tied.
        p[varied] = mannwhitneyu(inside[:, varied], outside[:, varied], method="asymptotic", axis=0).pvalue
    return p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q of each p: the least false discovery rate at which it is found, min over j >= rank of p_(j) * count / j, at most 1."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q
