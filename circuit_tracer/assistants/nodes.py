"""Nodes of a pruned graph as answers show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuit_tracer.assistants.answers import Node
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.viewer.server.columns import Columns

KINDS = {
    "cross layer transcoder": "feature",
    "lorsa": "feature",
    "mlp reconstruction error": "error",
    "lorsa error": "error",
    "embedding": "token",
    "logit": "output",
}


def kind_of(node: Mapping[str, Any]) -> str:
    """What a node is; what a file of others says where we have no word for it."""
    said = str(node.get("feature_type"))
    return KINDS.get(said, said)


def number_of(columns: Columns, name: str) -> int:
    """The number of a node by its id. Raises InputError for one that the pruned graph does not have."""
    if name not in columns.number:
        raise InputError(
            f"the pruned graph has no node {shortened(name)}; top_nodes lists its {len(columns.number)} nodes, and pruning "
            "may have cut it"
        )
    return int(columns.number[name])


class NodeReader:
    """Makes answers of a graph's nodes. labels: for features that the file has no name for."""

    def __init__(self, columns: Columns, labels: Mapping[tuple[int, int], str]) -> None:
        self.columns, self.labels = columns, labels
        tokens = columns.document["metadata"].get("prompt_tokens")
        self.tokens = [str(token) for token in tokens] if isinstance(tokens, list) else []

    def __call__(self, number: int) -> Node:
        """The node of this number."""
        node = self.columns.document["nodes"][number]
        kind, parts = kind_of(node), str(node["node_id"]).split("_")
        inside = kind in ("feature", "error")
        layer, feature = (_integer(part) for part in parts[:2]) if len(parts) == 3 else (None, None)
        position = node.get("ctx_idx")
        placed = isinstance(position, int) and 0 <= position < len(self.tokens)
        label = str(node.get("clerp") or "")
        if not label and kind == "feature" and layer is not None and feature is not None:
            label = self.labels.get((layer, feature), "")
        return Node(
            id=str(node["node_id"]),
            kind=kind,
            layer=layer if inside else None,
            position=position if isinstance(position, int) else None,
            feature=feature if kind == "feature" else None,
            token=self.tokens[position] if placed else None,
            label=label,
            activation=_finite(node.get("activation")),
            cumulative_influence=_finite(node.get("influence")),
        )


def _integer(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 10 else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None
