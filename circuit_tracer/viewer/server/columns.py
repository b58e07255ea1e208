"""A graph's JSON as columns, and parts of it that a page can draw.

Shares are of a node's `input_mass`, the sum of its |inputs| in the whole graph; where a file does not say it, in the whole
file. Each node of a part carries it. N nodes, M links.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from circuit_tracer.errors import FileFormatError
from circuit_tracer.graph.files.read_json import typed_q_params

MOST_NODES, MOST_LINKS = 10_000, 100_000
NEIGHBOURS = 200  # of each node asked for, the strongest on either side
_ALWAYS = ("embedding", "logit")


class Columns:
    """Links of a document by node number. source, target: int64 (M,); weight, share: float64 (M,); place: int64 (M,), where
    they are in the document; mass: float64 (N,).

    Links that lead nowhere, or have no finite weight, are left out. Raises FileFormatError for what is no graph.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        try:
            self.number = {node["node_id"]: at for at, node in reversed(list(enumerate(document["nodes"])))}
            links = [
                (self.number[link["source"]], self.number[link["target"]], float(link["weight"]), at)
                for at, link in enumerate(document["links"])
                if link["source"] in self.number and link["target"] in self.number
            ]
            influence = [_number(node.get("influence")) for node in document["nodes"]]
            said = [_number(node.get("input_mass"), 0.0) for node in document["nodes"]]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FileFormatError(f"a node or link lacks a field or has one of a wrong type: {error!r}") from error
        table = np.array(links, dtype=np.float64).reshape(-1, 4)
        table = table[np.isfinite(table[:, 2])]
        self.source, self.target, self.weight = table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2]
        self.place = table[:, 3].astype(int)
        self.influence = np.array(influence)
        seen = np.bincount(self.target, np.abs(self.weight), minlength=len(influence))
        self.mass = np.maximum(seen, np.array(said))
        self.share = np.abs(self.weight) / np.maximum(self.mass[self.target], np.finfo(float).tiny)

    def part(
        self, most_nodes: int = MOST_NODES, most_links: int = MOST_LINKS, around: Iterable[str] = ()
    ) -> Mapping[str, Any]:
        """The document itself if it is small enough, else its most important part, with ``metadata.part``.

        In it are all tokens and outputs, what the saved view names, the nodes `around` with their strongest neighbours,
        and then the most influential nodes; links by their share, those of `around` first.
        """
        n_nodes, n_links = len(self.influence), len(self.weight)
        if n_nodes <= most_nodes and n_links <= most_links:
            return self.document
        centre = np.array(sorted({self.number[name] for name in around if name in self.number}), dtype=int)
        kept = self._choose(most_nodes, centre)
        links = np.flatnonzero(kept[self.source] & kept[self.target])
        near = np.isin(self.source[links], centre) | np.isin(self.target[links], centre)
        links = np.sort(links[np.lexsort((-self.share[links], ~near))[:most_links]])
        nodes = self.document["nodes"]
        return {
            **self.document,
            "metadata": {
                **self.document["metadata"],
                "part": {"nodes": int(kept.sum()), "of_nodes": n_nodes, "links": len(links), "of_links": n_links},
            },
            "nodes": [{**nodes[at], "input_mass": float(self.mass[at])} for at in np.flatnonzero(kept).tolist()],
            "links": [
                {**self.document["links"][place], "weight": weight}
                for place, weight in zip(self.place[links].tolist(), self.weight[links].tolist(), strict=True)
            ],
        }

    def _choose(self, most: int, centre: np.ndarray) -> np.ndarray:
        """bool (N,)."""
        view = typed_q_params(self.document.get("qParams") or {})
        labelled = [pair[0] for pair in view.get("clerps") or [] if isinstance(pair, list) and pair]
        groups = [name for group in view["supernodes"] for name in group[1:]]
        named = [*view["pinnedIds"], *groups, *labelled, view["clickedId"]]
        kept = np.zeros(len(self.influence), dtype=bool)
        kept[[self.number[name] for name in named if isinstance(name, str) and name in self.number]] = True
        kept[[at for at, node in enumerate(self.document["nodes"]) if node.get("feature_type") in _ALWAYS]] = True
        kept[centre] = True
        for node in centre.tolist():
            for here, other in ((self.target, self.source), (self.source, self.target)):
                links = np.flatnonzero(here == node)
                kept[other[links[np.argsort(-self.share[links], kind="stable")[:NEIGHBOURS]]]] = True
        order = np.argsort(self.influence, kind="stable")
        rest = order[~kept[order]]
        kept[rest[: max(0, most - int(kept.sum()))]] = True
        return kept


def _number(value: Any, unknown: float = 2.0) -> float:
    """Cumulative influence, of which an unknown one counts as least, or another number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else unknown
