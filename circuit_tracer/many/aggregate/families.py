"""Families of prompts: graphs that use the same features for the same share of what they do.

The likeness of two graphs is the weighted Jaccard index of the influence of their features, sum of min(x, y) over sum
of max(x, y). Letters: G graphs, U items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.many.aggregate.incidence import Incidence

EACH = 50  # every number of families up to here is tried, of two graphs or more in the mean
BEYOND = 1.05  # then each is this much more than the one before, as long as families have ten graphs in the mean
NEAR_BEST = 0.9  # of the best mean silhouette: the fewest families that reach it; splitting on gains little, for long
STRUCTURE = 0.25  # mean silhouette of no families (Kaufman and Rousseeuw: below it "no substantial structure")


@dataclass(frozen=True)
class Families:
    """family: (G,) number of each graph's, the largest family first. medoid: graphs, one a family: the member with the least
    sum of distances to the others. silhouette: (G,), nan if there is one family. distance: (G, G), 1 - likeness. order: (G,)
    graphs, like ones beside each other. tried: mean silhouette by number of families.
    """

    family: np.ndarray
    medoid: np.ndarray
    silhouette: np.ndarray
    distance: np.ndarray
    order: np.ndarray
    tried: dict[int, float]

    def __len__(self) -> int:
        return len(self.medoid)

    def members(self, family: int) -> np.ndarray:
        """Graphs of a family, nearest to its medoid first, which is the first."""
        mine = np.where(self.family == family)[0]
        near = self.distance[mine, self.medoid[family]]
        return mine[np.lexsort((mine, mine != self.medoid[family], near))]


def weighted_jaccard(found: Incidence) -> np.ndarray:
    """(G, G) sum over items of min / sum of max of their influence; 1 for two graphs without items. O(sum of squares of
    counts).
    """
    shared = np.zeros((found.n_graphs, found.n_graphs))
    for first, last in zip(found.start[:-1], found.start[1:], strict=True):
        if last > first:
            graphs, values = found.graph[first:last], found.influence[first:last]
            shared[np.ix_(graphs, graphs)] += np.minimum.outer(values, values)
    held = np.diag(shared)
    larger = held[:, None] + held - shared
    return np.divide(shared, larger, out=np.ones_like(shared), where=larger > 0)


def find_families(found: Incidence, count: int | None = None) -> Families:
    """Average linkage on 1 - likeness, cut at the fewest families whose mean silhouette is 90 % of the largest (of the
    numbers of families in `_counts`); one family if none has 0.25.

    count: that many instead. Raises InputError for more than there are graphs.
    """
    from scipy.cluster.hierarchy import cut_tree, leaves_list, linkage
    from scipy.spatial.distance import squareform

    n_graphs = found.n_graphs
    if count is not None and not 1 <= count <= n_graphs:
        raise InputError(f"{count} families of {n_graphs} graphs; expected 1 to {n_graphs}")
    distance = np.clip(1 - weighted_jaccard(found), 0, 1)
    np.fill_diagonal(distance, 0)
    if n_graphs == 1:
        nothing = np.zeros(1, dtype=np.int64)
        return Families(nothing, nothing, np.full(1, np.nan), distance, nothing, {})
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=n_graphs <= 1000)
    counts = [count] if count is not None else _counts(n_graphs)
    cuts = dict(zip(counts, cut_tree(tree, n_clusters=counts).T, strict=True))
    silhouettes = {number: silhouette(distance, cut) for number, cut in cuts.items() if len(set(cut.tolist())) > 1}
    tried = {number: float(values.mean()) for number, values in silhouettes.items()}
    chosen = count if count is not None else _fewest(tried)
    family = _by_size(cuts[chosen])
    return Families(
        family=family,
        medoid=np.array([_medoid(distance, family == number) for number in range(family.max() + 1)]),
        silhouette=silhouettes.get(chosen, np.full(n_graphs, np.nan)),
        distance=distance,
        order=leaves_list(tree),
        tried=tried,
    )


def _counts(n_graphs: int) -> list[int]:
    """Numbers of families that are tried."""
    counts = list(range(1, max(1, min(EACH, n_graphs // 2)) + 1))
    while (more := math.ceil(counts[-1] * BEYOND)) <= n_graphs // 10:
        counts.append(more)
    return counts


def _fewest(tried: dict[int, float]) -> int:
    best = max(tried.values(), default=0.0)
    return min(number for number, value in tried.items() if value >= NEAR_BEST * best) if best >= STRUCTURE else 1


def silhouette(distance: np.ndarray, family: np.ndarray) -> np.ndarray:
    """(G,) of each graph, (b - a) / max(a, b): a the mean distance to its own family, b to the nearest other; 0 if it is
    alone.
    """
    from sklearn.metrics import silhouette_samples

    if len(set(family.tolist())) == len(family):
        return np.zeros(len(family))
    values: np.ndarray = silhouette_samples(distance, family, metric="precomputed")
    return values


def _by_size(labels: np.ndarray) -> np.ndarray:
    """The families numbered by size, the largest first; of equal ones, by their first graph."""
    _, first, family, count = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    number = np.empty(len(count), dtype=np.int64)
    number[np.lexsort((first, -count))] = np.arange(len(count))
    return number[family]


def _medoid(distance: np.ndarray, mine: np.ndarray) -> int:
    members = np.where(mine)[0]
    return int(members[distance[np.ix_(members, members)].sum(1).argmin()])
