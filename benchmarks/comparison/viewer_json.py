"""Compares the viewer JSON that both engines write for one prompt: nodes, their influence and labels, links."""

from __future__ import annotations

from collections import defaultdict
from math import isqrt
from typing import Any

from benchmarks.comparison.graphs import Check

LIMIT = 1e-4
Node = tuple[str, str, int, int]


def key_of(node: dict[str, Any]) -> Node:
    """What a node is, whatever its id: type, layer, feature, position."""
    return node["feature_type"], str(node["layer"]), int(node["feature"]), int(node["ctx_idx"])


def links_of(graph: dict[str, Any], ambiguous: set[Node]) -> dict[tuple[Node, Node], float]:
    """Link weights between nodes, without those that touch a node of `ambiguous`."""
    by_id: dict[str, list[Node]] = defaultdict(list)
    for node in graph["nodes"]:
        by_id[node["node_id"]].append(key_of(node))
    found = {}
    for link in graph["links"]:
        ends = by_id[link["source"]] + by_id[link["target"]]
        if len(ends) == 2 and not ambiguous & set(ends):
            found[ends[0], ends[1]] = link["weight"]
    return found


def shared_ids(graph: dict[str, Any]) -> set[Node]:
    """Nodes whose id another node has too."""
    by_id: dict[str, set[Node]] = defaultdict(set)
    for node in graph["nodes"]:
        by_id[node["node_id"]].add(key_of(node))
    return {key for keys in by_id.values() if len(keys) > 1 for key in keys}


def value(number: float | None) -> float:
    return -1.0 if number is None else float(number)


def compare_labels(theirs: dict[Node, dict], ours: dict[Node, dict], both: set[Node]) -> Check:
    targets = [key for key in both if key[0] == "logit"]
    differing = [key for key in targets if theirs[key]["clerp"] != ours[key]["clerp"]]
    quoted = [key for key in differing if theirs[key]["clerp"].count('"') > 2]
    known = "quoted-token" if differing and len(quoted) == len(differing) else None
    note = f"{len(targets)} target labels, {len(differing)} differ"
    return Check("viewer labels", not differing, len(differing), 0, known, note)


def compare_ids(theirs: dict[Node, dict], ours: dict[Node, dict], both: set[Node]) -> Check:
    """Ids may differ for errors only, jsNodeIds everywhere; ours must be unique."""
    unique = len({node["node_id"] for node in ours.values()}) == len(ours)
    differing = [key for key in both if theirs[key]["node_id"] != ours[key]["node_id"]]
    errors_only = all(key[0] == "mlp reconstruction error" for key in differing)
    known = "error-id" if differing and errors_only and unique else None
    return Check("viewer node ids", unique and not differing, len(differing), 0, known, f"{len(differing)} differ")


def record_key(node: Node) -> tuple[int, int, int, int]:
    """The key that compare.Nodes gives this node."""
    kind, layer, feature, position = node
    if kind == "cross layer transcoder":
        diagonal = (isqrt(8 * feature + 1) - 1) // 2  # undo Cantor's pairing of layer and index
        return 0, int(layer), position, feature - diagonal * (diagonal + 1) // 2
    if kind == "mlp reconstruction error":
        return 1, int(layer), position, -1
    return (2, -1, position, -1) if kind == "embedding" else (3, int(layer) - 1, position, feature)


def compare_graph_json(
    peer: dict[str, Any], ours: dict[str, Any], masks_rounded: bool, tied: set[tuple[int, int, int, int]]
) -> list[Check]:
    """`masks_rounded`: the pruning masks differed by rounding, so a few nodes and links may be in one file only.
    `tied`: nodes (compare.Nodes keys) whose cumulative influence may differ by their place among equals."""
    theirs = {key_of(node): node for node in peer["nodes"]}
    mine = {key_of(node): node for node in ours["nodes"]}
    both = theirs.keys() & mine.keys()
    missing = theirs.keys() ^ mine.keys()
    known = "rounding" if masks_rounded else None
    tied_here = {(*key[:3], -1) if key[0] == 2 else key for key in tied}  # a viewer token does not tell its id
    numbers = [
        abs(value(theirs[key].get(name)) - value(mine[key].get(name))) / max(1.0, abs(value(theirs[key].get(name))))
        for key in both
        for name in ("influence", "activation", "token_prob")
        if not (name == "influence" and record_key(key) in tied_here)
    ]
    ambiguous = shared_ids(peer)
    a, b = links_of(peer, ambiguous), links_of(ours, ambiguous)
    scale: dict[Node, float] = defaultdict(float)
    for (_, target), weight in a.items():
        scale[target] = max(scale[target], abs(weight))
    common = a.keys() & b.keys()
    lost = a.keys() ^ b.keys()
    worst = max((abs(a[link] - b[link]) / scale[link[1]] for link in common), default=0.0)
    flags = [key for key in both if bool(theirs[key]["is_target_logit"]) != bool(mine[key].get("is_target_logit"))]
    same_text = all(peer["metadata"][name] == ours["metadata"][name] for name in ("prompt", "prompt_tokens"))
    return [
        Check("viewer nodes", not missing, len(missing), 0, known if missing else None, f"{len(theirs)} nodes"),
        Check("viewer node values", max(numbers) <= LIMIT and not flags, max(numbers), LIMIT),
        compare_ids(theirs, mine, both),
        compare_labels(theirs, mine, both),
        Check("viewer links", not lost, len(lost), 0, known if lost else None, f"{len(a)} links"),
        Check("viewer link weights", worst <= LIMIT, worst, LIMIT, note=f"{len(ambiguous)} of their nodes share an id"),
        Check("viewer prompt", same_text),
    ]
