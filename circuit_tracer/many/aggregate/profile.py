"""What one graph has, named so that other graphs have the same: features and edges with their influence and attribution.

An item is a feature (layer, index, role), all tokens ("input"), all targets ("output"), or an edge between two of these.
README.md says what the numbers are.

Letters: U features of this graph, V edges of it (with their ends named so), C settings of pruning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.effects import signed_effects
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import PrunePolicy, prune_graph

Places = Mapping[str, "int | Sequence[int]"]  # roles of a prompt: name -> positions, from the end if below 0
Positions = Literal["pooled", "end"] | Mapping[str, Places]

INPUT, OUTPUT = -1, -2  # layers of the two items that are no feature
ELSEWHERE = "other"  # the role of positions without a name


@dataclass(frozen=True, order=True, slots=True)
class Item:
    """A feature; or the tokens (layer ``INPUT``) or targets (``OUTPUT``) of a prompt, index 0. role: "" if pooled."""

    layer: int
    index: int
    role: str = ""

    def __str__(self) -> str:
        name = {INPUT: "input", OUTPUT: "output"}.get(self.layer, f"{self.layer}/{self.index}")
        return f"{name}@{self.role}" if self.role else name


class Setting(NamedTuple):
    """Thresholds of pruning."""

    node_threshold: float
    edge_threshold: float


@dataclass(frozen=True)
class Part:
    """Numbers of the features (n = U) or of the edges (n = V) of a graph.

    kept: (n, C) bool, by setting; the first is the one that the other columns are of, 0 where it does not keep. influence,
    attribution, activation: (n,) float64.
    """

    kept: np.ndarray
    influence: np.ndarray
    attribution: np.ndarray
    activation: np.ndarray


@dataclass(frozen=True)
class Profile:
    """A graph as others see it. items: what there is, ends of edges included. features: (U,) their places in items. edges:
    (V, 2) source and target, places in items.
    """

    items: list[Item]
    features: np.ndarray
    of_features: Part
    edges: np.ndarray
    of_edges: Part


def profile(graph: Graph, roles: Sequence[str] | None, settings: Sequence[Setting], policy: PrunePolicy) -> Profile:
    """What any of the settings keeps of a graph. roles: of its positions, P of them; None: pooled. O(C E)."""
    graph_edges, nodes, layout = graph.edges.to("cpu"), graph.nodes, graph.nodes.layout
    pruned = [prune_graph(graph, *setting, policy) for setting in settings]
    node_kept = torch.stack([each.node_mask.cpu() for each in pruned], 1)
    edge_kept = torch.stack([each.kept_edges.cpu() for each in pruned], 1)
    weights = torch.zeros(graph.n_nodes, dtype=torch.float64)
    weights[layout.targets] = graph.targets.weight.double().cpu()
    total = weights.abs().sum()
    scale = 1.0 / total if float(total) else 1.0
    influence = pruned[0].influence.cpu()
    flow = (influence + weights.abs()) / row_mass(graph_edges)
    effect, edge_effect = signed_effects(graph_edges, graph.blocks, nodes.activation.cpu(), weights * scale)

    items, place = _items(graph, roles, node_kept.any(1))
    features = torch.where(node_kept[layout.features].any(1))[0]
    unit, of_unit = torch.unique(place[features], return_inverse=True)
    node_part = _pooled(
        of_unit,
        len(unit),
        node_kept[features],
        influence[features] * scale,
        effect[features],
        nodes.activation.cpu()[features],
    )
    target = graph_edges.target
    ends = torch.stack([place[graph_edges.source], place[target]], 1)
    named = torch.where(edge_kept.any(1) & (ends >= 0).all(1))[0]
    pair, of_pair = torch.unique(ends[named] @ torch.tensor([[len(items)], [1]]), return_inverse=True)
    share = flow[target[named]] * graph_edges.weight.double().abs()[named] * scale
    edge_part = _pooled(of_pair[:, 0], len(pair), edge_kept[named], share, edge_effect[named], torch.zeros(len(named)))
    both = torch.stack([pair // len(items), pair % len(items)], 1)
    return Profile(items, unit.numpy(), node_part, both.numpy(), edge_part)


def _items(graph: Graph, roles: Sequence[str] | None, kept: Tensor) -> tuple[list[Item], Tensor]:
    """The items of the nodes that are kept (N,), sorted, and (N,) the place of each node's, -1 for errors and what is not
    kept.
    """
    kind, layer, index, position = (
        each.cpu() for each in (graph.nodes.kind, graph.nodes.layer, graph.nodes.feature, graph.nodes.position)
    )
    names = sorted({"", *(roles or ())})
    codes = torch.tensor([names.index(role) for role in roles or [""] * graph.n_pos], dtype=torch.int64)
    columns = torch.stack([layer, index, codes[position.clamp(min=0)]], 1)
    columns[kind == NodeKind.TOKEN, :2] = torch.tensor([INPUT, 0])
    columns[kind == NodeKind.TARGET] = torch.tensor([OUTPUT, 0, names.index("")])
    which = torch.where(kept & (kind != NodeKind.ERROR))[0]
    unique, inverse = torch.unique(columns[which], dim=0, return_inverse=True)
    place = torch.full((graph.n_nodes,), -1, dtype=torch.int64)
    place[which] = inverse
    return [Item(layer, index, names[code]) for layer, index, code in unique.tolist()], place


def _pooled(group: Tensor, count: int, kept: Tensor, influence: Tensor, effect: Tensor, activation: Tensor) -> Part:
    """Nodes or edges of one name together: sums of what the first setting keeps, the largest activation."""
    first = kept[:, 0].double()
    zeros, largest = torch.zeros(count, dtype=torch.float64), np.zeros(count)
    np.maximum.at(largest, group.numpy(), (activation.double() * first).numpy())
    times = torch.zeros(count, kept.shape[1], dtype=torch.int64).index_add_(0, group, kept.long())
    return Part(
        kept=(times > 0).numpy(),
        influence=zeros.index_add(0, group, influence * first).numpy(),
        attribution=zeros.index_add(0, group, effect * first).numpy(),
        activation=largest,
    )


def roles_of(id: str, graph: Graph, positions: Positions) -> list[str] | None:
    """The role of each position of a graph; None: pooled. Raises InputError for roles that do not fit the prompt."""
    n_pos = graph.n_pos
    if isinstance(positions, Mapping):
        return _named(id, n_pos, positions.get(id, {}))
    if positions not in ("pooled", "end"):
        raise InputError(f"positions is {shortened(positions)}; expected pooled, end, or a mapping of roles by id")
    return None if positions == "pooled" else [str(place - n_pos) for place in range(n_pos)]


def _named(id: str, n_pos: int, places: Places) -> list[str]:
    roles = [ELSEWHERE] * n_pos
    if not isinstance(places, Mapping):
        raise InputError(
            f"the roles of {id!r} are {shortened(places)}; expected a mapping from names to positions, such as "
            '{"subject": 3, "verb": [4, 5]}'
        )
    for name, where in places.items():
        for position in where if isinstance(where, Sequence) and not isinstance(where, str) else [where]:
            if not isinstance(position, int) or not -n_pos <= position < n_pos:
                raise InputError(
                    f"role {name!r} of {id!r} is at position {shortened(position)}; its prompt has {n_pos} tokens, expected "
                    f"{-n_pos} to {n_pos - 1}"
                )
            if roles[position] != ELSEWHERE:
                raise InputError(
                    f"position {position} of {id!r} is both {roles[position]!r} and {name!r}; give it one role"
                )
            roles[position] = str(name)
    return roles
