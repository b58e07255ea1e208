"""Compares two records (see common/harness.py) of one prompt: the peer's and ours. A check has a name, a worst value, a limit.

Edges are compared row by row: the largest difference in a row over the largest edge of that row in the peer's graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

Array = np.ndarray
Record = dict[str, Array]

EDGE_LIMIT = 1e-4
ACTIVATION_LIMIT = 1e-4
PROBABILITY_LIMIT = 1e-4
INFLUENCE_LIMIT = 1e-4
SCORE_LIMIT = 1e-4
# Both engines round; a feature, node or edge this near its threshold (relative) may fall on either side.
FEATURE_MARGIN = 1e-4
PRUNING_MARGIN = 1e-3
TIE = 1e-4


@dataclass
class Check:
    """`known` names an entry of known_differences.KNOWN that explains what differs; without one `ok` decides."""

    name: str
    ok: bool
    worst: float = 0.0
    limit: float = 0.0
    known: str | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.ok or self.known is not None


@dataclass
class Nodes:
    """Node keys of a record in its own order: (kind, layer, position, index), unique; kinds 0 feature .. 3 target."""

    keys: list[tuple[int, int, int, int]]
    n_features: int
    n_errors: int
    P: int
    K: int
    rows: Array = field(init=False)  # bool (N,): nodes that have inputs

    def __post_init__(self) -> None:
        self.rows = np.zeros(len(self.keys), dtype=bool)
        self.rows[: self.n_features] = True
        self.rows[len(self.keys) - self.K :] = True


def nodes_of(record: Record, n_layers: int) -> Nodes:
    P, K = len(record["ids"]), len(record["logit_ids"])
    chosen = record["active"][record["selected"]]
    keys = [(0, int(layer), int(position), int(index)) for layer, position, index in chosen]
    keys += [(1, layer, position, -1) for layer in range(n_layers) for position in range(P)]
    keys += [(2, -1, position, int(token)) for position, token in enumerate(record["ids"])]
    keys += [(3, n_layers, P - 1, int(token)) for token in record["logit_ids"]]
    if len(keys) != len(record["row_ptr"]) - 1:
        raise ValueError(f"record has {len(record['row_ptr']) - 1} rows, its node table {len(keys)}")
    return Nodes(keys, len(chosen), n_layers * P, P, K)


def dense(record: Record) -> Array:
    """The adjacency as float64 (N, N), rows are targets."""
    N = len(record["row_ptr"]) - 1
    made = np.zeros((N, N))
    made[np.repeat(np.arange(N), np.diff(record["row_ptr"])), record["source"]] = record["weight"]
    return made


def common_order(peer: Nodes, ours: Nodes) -> tuple[Array, Array]:
    """Indices into both records of the nodes that both have, in the peer's order."""
    at = {key: i for i, key in enumerate(ours.keys)}
    pairs = [(i, at[key]) for i, key in enumerate(peer.keys) if key in at]
    return np.array([i for i, _ in pairs]), np.array([j for _, j in pairs])


def compare_tokens(peer: Record, ours: Record) -> Check:
    return Check("token ids", np.array_equal(peer["ids"], ours["ids"]))


def active_of(record: Record) -> dict[tuple[int, int, int], float]:
    """(layer, position, index) -> activation."""
    keys, values = record["active"].tolist(), record["activations"].tolist()
    return {(layer, position, index): value for (layer, position, index), value in zip(keys, values, strict=True)}


def flipped_features(peer: Record, ours: Record) -> set[tuple[int, int, int]]:
    """Features that are active in one record only."""
    return set(active_of(peer).keys() ^ active_of(ours).keys())


def compare_active(peer: Record, ours: Record, thresholds: Array | None) -> list[Check]:
    """Active features as sets, and the activations of those in both. `thresholds` (L, F) explains flips by rounding."""
    theirs, mine = active_of(peer), active_of(ours)
    only = {key: (theirs | mine)[key] for key in flipped_features(peer, ours)}
    sorted_alike = np.array_equal(peer["active"], ours["active"]) or bool(only)
    margins = [np.inf]
    if thresholds is not None and only:
        limits = {key: thresholds[key[0], key[2]] for key in only}
        margins = [abs(value - limits[key]) / limits[key] for key, value in only.items()]
    rounding = bool(only) and max(margins) <= FEATURE_MARGIN
    both = [key for key in theirs if key in mine]
    a, b = np.array([theirs[key] for key in both]), np.array([mine[key] for key in both])
    worst = float((np.abs(a - b) / np.abs(a).max()).max()) if both else 0.0
    known = "rounding" if rounding else None
    note = f"{len(theirs)} active, {len(only)} in one only"
    return [
        Check("active features", not only and sorted_alike, len(only), 0, known, note),
        Check("activations", worst <= ACTIVATION_LIMIT, worst, ACTIVATION_LIMIT),
    ]


def compare_targets(peer: Record, ours: Record) -> list[Check]:
    same = np.array_equal(peer["logit_ids"], ours["logit_ids"])
    text = str(peer["logit_tokens"]) == str(ours["logit_tokens"])
    worst = float(np.abs(peer["logit_probs"] / ours["logit_probs"] - 1).max()) if same else np.inf
    return [
        Check("logit targets", same and text, note=f"{len(peer['logit_ids'])} targets"),
        Check("logit probabilities", worst <= PROBABILITY_LIMIT, worst, PROBABILITY_LIMIT),
    ]


def fold_flipped(adjacency: Array, nodes: Nodes, only: set[tuple[int, int, int]], budgeted: bool) -> Array:
    """The adjacency where a feature that is active in one engine only has joined the error nodes of its position.

    What such a feature contributes in one graph is error in the other, at its own layer and, cross-layer, at later
    ones: the sum over the errors of the position and the feature is the same in both. It becomes layer 0's column.
    With a budget the feature may have no column, and then that sum is unknown: the errors of its position are left out.
    """
    folded = adjacency.copy()
    for position in {key[1] for key in only}:
        errors = nodes.n_features + np.arange(position, nodes.n_errors, nodes.P)
        joined = [i for i, key in enumerate(nodes.keys[: nodes.n_features]) if key[1:] in only and key[2] == position]
        total = 0 if budgeted else folded[:, [*errors, *joined]].sum(1)
        folded[:, errors] = 0
        folded[:, errors[0]] = total
    return folded


def compare_edges(peer: Array, ours: Array, rows: Array) -> Check:
    """`peer`, `ours`: the same nodes in the same order; `rows`: bool, which have inputs."""
    scale = np.abs(peer).max(1)
    difference = np.abs(peer - ours).max(1)
    empty = scale == 0
    relative = np.where(empty, np.where(difference > 0, np.inf, 0.0), difference / np.where(empty, 1, scale))
    worst = float(relative.max())
    count = int((peer[rows] != 0).sum())
    return Check("edges", worst <= EDGE_LIMIT, worst, EDGE_LIMIT, note=f"{int(rows.sum())} rows, {count} edges")


def compare_selection(peer: Record, ours: Record, budgeted: bool) -> Check:
    theirs = {tuple(key) for key in peer["active"][peer["selected"]].tolist()}
    mine = {tuple(key) for key in ours["active"][ours["selected"]].tolist()}
    overlap = len(theirs & mine) / max(len(theirs | mine), 1)
    note = f"{len(theirs)} and {len(mine)}, shared {len(theirs & mine)}, Jaccard {overlap:.3f}"
    known = "selection" if budgeted and len(theirs) == len(mine) else None
    if not budgeted and theirs ^ mine == flipped_features(peer, ours):
        known = "rounding"  # reported, and judged, under "active features"
    return Check("expanded features", theirs == mine, 1 - overlap, 0, known, note)


def influence_of(adjacency: Array, weights: Array) -> Array:
    """sum over k >= 1 of w M^k, M the adjacency with rows of absolute values summing to one."""
    M = np.abs(adjacency)
    M /= np.maximum(M.sum(1, keepdims=True), 1e-10)
    total, current = np.zeros(len(M)), weights
    while True:
        current = current @ M
        if not current.any():
            return total
        total += current


def cut(scores: Array, share: float) -> float:
    """The smallest score kept when the largest scores that make up `share` of the total are kept."""
    ordered = np.sort(scores, axis=None)[::-1]
    crossing = int(np.searchsorted(np.cumsum(ordered) / ordered.sum(), share))
    return float(ordered[min(crossing, len(ordered) - 1)])


def compare_pruning(peer: Record, ours: Record, adjacency: Array, nodes: Nodes) -> list[Check]:
    """Both masks. What differs must be near the threshold, or follow from something that is."""
    N = len(adjacency)
    weights = np.zeros(N)
    weights[-nodes.K :] = peer["logit_probs"]
    influence = influence_of(adjacency, weights)
    node_cut = cut(influence, 0.8)
    kept = influence >= node_cut
    kept[N - nodes.K - nodes.P :] = True
    pruned = adjacency * kept[:, None] * kept[None, :]
    M = np.abs(pruned)
    M /= np.maximum(M.sum(1, keepdims=True), 1e-10)
    edge_scores = M * (influence_of(pruned, weights) + weights)[:, None]
    edge_cut = cut(edge_scores, 0.98)

    differing = np.flatnonzero(peer["node_mask"] != ours["node_mask"])
    theirs = set(zip(peer["kept_target"].tolist(), peer["kept_source"].tolist(), strict=True))
    mine = set(zip(ours["kept_target"].tolist(), ours["kept_source"].tolist(), strict=True))
    edges = theirs ^ mine
    near_nodes = int((np.abs(influence[differing] / node_cut - 1) <= PRUNING_MARGIN).sum())
    near_edges = sum(abs(edge_scores[pair] / edge_cut - 1) <= PRUNING_MARGIN for pair in edges)
    explained = near_nodes + near_edges > 0 and len(edges) <= PRUNING_MARGIN * len(theirs) + 3
    known = "rounding" if explained else None
    node_note = f"{int(peer['node_mask'].sum())} kept, {len(differing)} differ ({near_nodes} at the threshold)"
    edge_note = f"{len(theirs)} kept, {len(edges)} differ ({near_edges} at the threshold)"
    return [
        Check("node mask", len(differing) == 0, len(differing), 0, known if len(differing) else None, node_note),
        Check("edge mask", not edges, len(edges), 0, known if edges else None, edge_note),
    ]


def cumulative_excess(peer: Record, ours: Record) -> Array:
    """(N,) how far our cumulative influence is outside of what the peer's ranks allow.

    A node's value is the share held by all nodes down to its rank, so two nodes of equal influence, in whichever order
    rounding puts them, differ by a whole share. Allowed is what any order of the nodes within TIE of it would give.
    """
    influence = peer["influence"]
    order = np.sort(influence)[::-1]
    held = np.concatenate([[0.0], np.cumsum(order)]) / order.sum()
    larger = np.searchsorted(-order, -influence * (1 + TIE), side="left")
    not_smaller = np.searchsorted(-order, -influence * (1 - TIE), side="right")
    low, high = held[larger] + influence * (1 - TIE) / order.sum(), held[not_smaller]
    return np.maximum(0, np.maximum(low - ours["cumulative"], ours["cumulative"] - high))


def tied_nodes(peer: Record, ours: Record, n_layers: int) -> set[tuple[int, int, int, int]]:
    """Keys of the nodes whose cumulative influence differs only because of their place among equals."""
    differs = np.abs(peer["cumulative"] - ours["cumulative"]) > INFLUENCE_LIMIT
    tied = differs & (cumulative_excess(peer, ours) <= INFLUENCE_LIMIT)
    keys = nodes_of(peer, n_layers).keys
    return {keys[i] for i in np.flatnonzero(tied)}


def compare_influence(peer: Record, ours: Record) -> list[Check]:
    worst = float(np.abs(peer["influence"] - ours["influence"]).max() / peer["influence"].max())
    cumulative = float(cumulative_excess(peer, ours).max())
    scores = float(np.abs(peer["scores"] - ours["scores"]).max())
    note = "replacement {:.4f}, completeness {:.4f}".format(*peer["scores"])
    return [
        Check("influence", worst <= INFLUENCE_LIMIT, worst, INFLUENCE_LIMIT),
        Check("cumulative influence", cumulative <= INFLUENCE_LIMIT, cumulative, INFLUENCE_LIMIT),
        Check("scores", scores <= SCORE_LIMIT, scores, SCORE_LIMIT, note=note),
    ]


def compare_records(peer: Record, ours: Record, meta: dict[str, Any], thresholds: Array | None = None) -> list[Check]:
    """All checks of one prompt that need the records only. With a budget (max_feature_nodes) in `meta`, graphs have
    different nodes: edges are compared between the nodes of both, influence and masks are not."""
    checks = [compare_tokens(peer, ours), *compare_active(peer, ours, thresholds), *compare_targets(peer, ours)]
    if not checks[0].ok or not checks[3].ok:
        return checks
    budgeted = meta["max_feature_nodes"] is not None
    checks.append(compare_selection(peer, ours, budgeted))
    peer_nodes, our_nodes = nodes_of(peer, meta["n_layers"]), nodes_of(ours, meta["n_layers"])
    i, j = common_order(peer_nodes, our_nodes)
    A, B = dense(peer), dense(ours)
    if only := flipped_features(peer, ours):
        A, B = (fold_flipped(graph, nodes, only, budgeted) for graph, nodes in ((A, peer_nodes), (B, our_nodes)))
    checks.append(compare_edges(A[np.ix_(i, i)], B[np.ix_(j, j)], peer_nodes.rows[i]))
    if peer_nodes.keys == our_nodes.keys:
        checks += [*compare_influence(peer, ours), *compare_pruning(peer, ours, A, peer_nodes)]
    return checks


def thresholds_of(folder: Path) -> np.ndarray | None:
    """(L, F) JumpReLU thresholds of a native CLT or per-layer folder; None where it has none."""
    file, key = "layer_{}.safetensors", "activation_function.threshold"
    if (folder / "W_enc_0.safetensors").exists():
        file, key = "W_enc_{}.safetensors", "threshold_{}"
    found = []
    while (path := folder / file.format(len(found))).exists():
        with safe_open(path, framework="pt") as opened:
            name = key.format(len(found))
            if name not in opened.keys():  # noqa: SIM118  (a safetensors handle is not a mapping)
                return None
            found.append(opened.get_tensor(name).float().numpy())
    return np.stack(found) if found else None
