"""What a side of a score is made of: every active feature, error and token, in the order of a graph's nodes, then constants.

Letters: N active features, L layers, P positions, S = N + L P + P, B kinds of constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.attribution.prompt import CONSTANTS
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.attention_scores import bias_id
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import KIND_NAMES, NodeTable

BIASES = ("own", *CONSTANTS)  # own: of the side's projection and norms
BIAS = 3  # the number of their kind; those of nodes are NodeKind's
KINDS = {**{int(kind): name for kind, name in KIND_NAMES.items()}, BIAS: "bias"}


@dataclass(frozen=True)
class ScoreSources:
    """S + B columns, numbered; the same ones on both sides, but that constants are named after their side's position.

    nodes: all active features as if they were nodes. layer: of the head.
    """

    nodes: NodeTable
    layer: int

    @classmethod
    def of(cls, graph: Graph, layer: int) -> ScoreSources:
        """Those of a graph's prompt, for a head of a layer."""
        columns = (graph.active_features.cpu().long(), graph.activation_values.cpu(), graph.input_tokens.cpu())
        return cls(NodeTable.build(*columns, graph.n_layers, graph.targets.to("cpu")), layer)

    @property
    def n_nodes(self) -> int:
        """S."""
        return self.nodes.layout.target_start

    def __len__(self) -> int:
        return self.n_nodes + len(BIASES)

    def kinds(self, columns: Tensor) -> Tensor:
        """(n,) numbers that `KINDS` names."""
        kinds = torch.cat([self.nodes.kind[: self.n_nodes], torch.full((len(BIASES),), BIAS)])
        return kinds[columns]

    def ids(self, columns: Tensor, position: int) -> list[str]:
        """Names of columns (n,): the ids of nodes; of constants, {l}_bias_{kind}_{p} at the position of their side."""
        is_node = columns < self.n_nodes
        names = iter(self.nodes.ids(columns[is_node]))
        return [
            next(names) if node else bias_id(self.layer, BIASES[column - self.n_nodes], position)
            for column, node in zip(columns.tolist(), is_node.tolist(), strict=True)
        ]

    def column(self, source: int | str, position: int) -> int:
        """The column of a number, an id, or of a kind of constants by its name. Raises InputError."""
        if not isinstance(source, str):
            if not 0 <= whole(source, "a source") < len(self):
                raise InputError(f"source {source} does not exist; this score has sources 0 to {len(self) - 1}")
            return int(source)
        if source in BIASES:
            return self.n_nodes + BIASES.index(source)
        if (found := self._columns.get(source)) is None:
            found = {bias_id(self.layer, name, position): self.n_nodes + at for at, name in enumerate(BIASES)}.get(
                source
            )
        if found is None:
            raise InputError(
                f"{shortened(source)} is no active feature, error or token of this prompt, and no constant of this side; ids "
                f"are such as {self.nodes.ids(torch.tensor([0]))[0]!r} and {bias_id(self.layer, BIASES[0], position)!r}"
            )
        return found

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.nodes.ids(torch.arange(self.n_nodes)))}
