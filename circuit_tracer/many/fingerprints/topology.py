"""The shape of a pruned graph: degrees, density, clustering, shortest paths from tokens to targets and what lies on them.

Definitions are those of networkx, whose functions take a tenth of a second and more for a graph of 300 nodes; products of
sparse matrices take some milliseconds. A test compares each number with networkx's.

Letters: V nodes with an edge, S tokens among them, K targets among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuit_tracer.extras import missing_extra

if TYPE_CHECKING:
    from circuit_tracer.graph.edges import Edges

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shortest:
    """Shortest paths, in edges, from each token.

    distance: (S, V), -1 where a node cannot be reached. between: (V,) how many (token, target) pairs have their shortest
    paths through a node, a pair with several paths counting by their share.
    """

    distance: Array
    between: Array


def topology(edges: Edges, tokens: range, targets: range) -> dict[str, float]:
    """The numbers named ``topology.*`` in the table of names, of the nodes that have an edge; all 0 if none has.

    tokens, targets: which nodes they are. O(V * S * L + sum of squared degrees). Raises InputError without scipy.
    """
    try:
        from scipy import sparse
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise missing_extra("fingerprints of graphs", error) from error

    target_E, source_E = edges.target.cpu().numpy(), edges.source.cpu().numpy()
    there_V, place = np.unique(np.concatenate([source_E, target_E]), return_inverse=True)
    size, count = len(there_V), len(source_E)
    source, target = place[:count], place[count:]
    # A[s, t] = 1 for an edge s -> t
    matrix_VV = sparse.csr_array((np.ones(count), (source, target)), shape=(size, size))
    of_tokens = np.flatnonzero((there_V >= tokens.start) & (there_V < tokens.stop))
    of_targets = np.flatnonzero((there_V >= targets.start) & (there_V < targets.stop))
    shortest = shortest_paths(matrix_VV, of_tokens, of_targets)
    pair_SK = shortest.distance[:, of_targets]
    reached = pair_SK[pair_SK > 0].astype(float)
    pairs = max(1, pair_SK.size)
    local_V, transitivity = clustering(matrix_VV)
    components = int(connected_components(matrix_VV, directed=False, return_labels=False)) if size else 0
    into, out_of = np.bincount(target, minlength=size), np.bincount(source, minlength=size)
    return {
        "topology.nodes": float(size),
        "topology.density": count / (size * (size - 1)) if size > 1 else 0.0,
        "topology.degree_mean": count / size if size else 0.0,
        **_spread("topology.in_degree", into),
        **_spread("topology.out_degree", out_of),
        "topology.clustering": float(local_V.mean()) if size else 0.0,
        "topology.transitivity": transitivity,
        "topology.components": float(components),
        "topology.path_reached": len(reached) / pairs,
        "topology.path_shortest_mean": float(reached.mean()) if len(reached) else 0.0,
        "topology.path_shortest_max": float(reached.max()) if len(reached) else 0.0,
        "topology.path_longest": float(longest_path(matrix_VV)),
        "topology.closeness": float((1 / reached).sum() / pairs),
        "topology.betweenness_mean": float(shortest.between.mean() / pairs) if size else 0.0,
        **_spread("topology.betweenness", shortest.between / pairs),
    }


def shortest_paths(matrix_VV: Any, sources: Array, targets: Array) -> Shortest:
    """Brandes' algorithm from all sources at once, one sparse product a length of paths; edges without weights.

    matrix_VV: scipy array, [s, t] = 1 for an edge s -> t. sources (S,), targets (K,): numbers of nodes.
    """
    size, rows = matrix_VV.shape[0], np.arange(len(sources))
    distance = np.full((len(sources), size), -1)
    paths = np.zeros((len(sources), size))  # how many shortest ones reach each node
    distance[rows, sources], paths[rows, sources] = 0, 1
    frontier, length = paths.copy(), 0
    while frontier.any():
        length += 1
        frontier = np.where(distance < 0, frontier @ matrix_VV, 0)
        distance[frontier > 0] = length
        paths += frontier
    is_target = np.zeros(size)
    is_target[targets] = 1
    passed_on = np.zeros_like(paths)  # what each node stands between, by source
    for done in range(length - 1, 0, -1):
        here = distance == done
        share = np.where(here, (is_target + passed_on) / np.where(here, paths, 1), 0)
        passed_on += np.where(distance == done - 1, paths * (share @ matrix_VV.T), 0)
    passed_on[rows, sources] = 0
    return Shortest(distance, passed_on.sum(0))


def clustering(matrix_VV: Any) -> tuple[Array, float]:
    """(V,) the share of a node's pairs of neighbours that are neighbours, 0 for fewer than two; and of all such pairs.

    Edges count in both directions.
    """
    both_VV = ((matrix_VV + matrix_VV.T) > 0).astype(float)
    degree = np.asarray(both_VV.sum(1)).ravel()
    closed = np.asarray((both_VV @ both_VV).multiply(both_VV).sum(1)).ravel()  # two a triangle
    pairs = degree * (degree - 1)
    local = np.divide(closed, pairs, out=np.zeros_like(pairs), where=pairs > 0)
    return local, float(closed.sum() / pairs.sum()) if pairs.sum() else 0.0


def longest_path(matrix_VV: Any) -> int:
    """Edges of the longest path of an acyclic graph."""
    begins, length = np.ones(matrix_VV.shape[0]), -1
    while begins.any():  # nodes from which a path of one edge more begins
        begins, length = ((matrix_VV @ begins) > 0).astype(float), length + 1
    return max(0, length)


def _spread(name: str, values: Array) -> dict[str, float]:
    """Standard deviation and maximum."""
    some = len(values) > 0
    return {f"{name}_std": float(values.std()) if some else 0.0, f"{name}_max": float(values.max()) if some else 0.0}
