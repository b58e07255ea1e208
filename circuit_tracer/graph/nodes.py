"""The nodes of a graph, in one fixed order: selected features | errors l*P+p | tokens p | targets.

Where a dictionary replaces attention too, errors of attention l*P+p follow those of MLPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.targets import TargetTable


class NodeKind(IntEnum):
    """What a node is. The numbers are stored in files; do not renumber."""

    FEATURE = 0
    ERROR = 1
    TOKEN = 2
    TARGET = 3


ATTENTION_ERROR = -2  # what stands for the feature of an error of attention; of other errors -1

KIND_NAMES = {NodeKind.FEATURE: "feature", NodeKind.ERROR: "error", NodeKind.TOKEN: "token", NodeKind.TARGET: "target"}


@dataclass(frozen=True)
class NodeLayout:
    """How many nodes there are of each kind, hence where each kind starts.

    `N = N_s + L * P + P + K`; with `attention`, whose errors are nodes too, `N_s + 2 * L * P + P + K`.
    """

    n_features: int
    n_layers: int
    n_pos: int
    n_targets: int
    attention: bool = False

    @property
    def error_start(self) -> int:
        return self.n_features

    @property
    def token_start(self) -> int:
        return self.n_features + (1 + self.attention) * self.n_layers * self.n_pos

    @property
    def target_start(self) -> int:
        return self.token_start + self.n_pos

    @property
    def n_nodes(self) -> int:
        return self.target_start + self.n_targets

    @property
    def features(self) -> slice:
        return slice(0, self.n_features)

    @property
    def errors(self) -> slice:
        return slice(self.error_start, self.token_start)

    @property
    def tokens(self) -> slice:
        return slice(self.token_start, self.target_start)

    @property
    def targets(self) -> slice:
        return slice(self.target_start, self.n_nodes)


@dataclass(frozen=True)
class NodeTable:
    """N nodes, column by column.

    Attributes:
        kind: int64, see ``NodeKind``.
        layer: int64; -1 for tokens, which lie below layer 0, and the read layer for targets (L for logits).
        position: int64.
        feature: int64; the index in its dictionary for features, -1 for errors, -2 for those of attention, the token id for
            tokens and targets.
        activation: Float (N,); 0 for all but features.
    """

    layout: NodeLayout
    kind: Tensor
    layer: Tensor
    position: Tensor
    feature: Tensor
    activation: Tensor

    def __len__(self) -> int:
        return self.layout.n_nodes

    def ids(self, which: Tensor | None = None) -> list[str]:
        """Names of the nodes in ``which`` (int64 numbers; default all), unique if the targets of a position are.

        features {l}_{f}_{p}, errors {l}_-1_{p}, those of attention {l}_-2_{p}, tokens E_{token}_{p}, targets {L+1}_{token}_{p}.
        """
        which = torch.arange(len(self), device=self.kind.device) if which is None else which
        names = {int(NodeKind.TOKEN): "E", int(NodeKind.TARGET): str(self.layout.n_layers + 1)}
        columns = (self.kind, self.layer, self.feature, self.position)
        return [
            f"{names.get(kind, layer)}_{feature}_{position}"
            for kind, layer, feature, position in zip(*(column[which].tolist() for column in columns), strict=True)
        ]

    def numbers(self, names: Sequence[str], whose: str) -> list[int]:
        """The numbers of nodes by their ids, in the order given. Raises InputError, which says whose ids they are, for one
        that no node has.
        """
        numbers = self._by_id
        missing = [name for name in names if name not in numbers]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{whose} names the node {shortened(missing[0])}{more}, which this graph does not have; its nodes are spelled "
                f"like {next(iter(numbers))!r} (graph.nodes.ids())"
            )
        return [numbers[name] for name in names]

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids())}

    @classmethod
    def build(
        cls,
        feature_rows: Tensor,
        activation: Tensor,
        input_tokens: Tensor,
        n_layers: int,
        targets: TargetTable,
        attention: bool = False,
    ) -> NodeTable:
        """Nodes from the selected features' (layer, position, index) rows (N_s, 3) and activations (N_s,)."""
        device = feature_rows.device
        n_pos, places = len(input_tokens), 1 + attention
        layout = NodeLayout(len(feature_rows), n_layers, n_pos, len(targets), attention)
        sizes = torch.tensor([layout.n_features, places * n_layers * n_pos, n_pos, layout.n_targets], device=device)
        positions = torch.arange(n_pos, device=device)
        error = torch.arange(-1, -1 - places, -1, device=device)  # -1, and -2
        return cls(
            layout=layout,
            kind=torch.arange(4, device=device).repeat_interleave(sizes),
            layer=torch.cat(
                [
                    feature_rows[:, 0],
                    torch.arange(n_layers, device=device).repeat_interleave(n_pos).repeat(places),
                    torch.full((n_pos,), -1, device=device),
                    targets.layer.to(device),
                ]
            ),
            position=torch.cat(
                [feature_rows[:, 1], positions.repeat(places * n_layers), positions, targets.position.to(device)]
            ),
            feature=torch.cat(
                [
                    feature_rows[:, 2],
                    error.repeat_interleave(n_layers * n_pos),
                    input_tokens.to(device).long(),
                    targets.token_id.to(device),
                ]
            ),
            activation=torch.cat(
                [activation, torch.zeros(layout.n_nodes - layout.n_features, dtype=activation.dtype, device=device)]
            ),
        )
