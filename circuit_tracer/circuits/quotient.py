"""The circuit of a grouping: groups as nodes, the sums of the edges between them, and what is left of their inputs.

For every group T with inputs, exactly:

    sum of edges from other groups + inside + outside + bias = pre_activation       (each the sum over T's members)

Derivations: README.md. Letters: N nodes of the graph, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.circuits.profiles import node_profiles
from circuit_tracer.circuits.supernodes import Grouping, Supernode, members_of
from circuit_tracer.graph.files.keeping import keep_nodes
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.pruning import PruneResult, prune_graph
from circuit_tracer.graph.shares import group_shares, input_shares


@dataclass(frozen=True)
class Circuit:
    """All nodes of the pruned graph, in groups; a node of no group is one by itself, unnamed.

    Attributes:
        groups: G, in the graph's order of their first members.
        nodes: Their members' numbers in the graph.
        edges: float64 (G, G), row = target: sums of the edges that pruning kept, 0 on the diagonal.
        shares: (G, G), the same as signed shares of the target's whole input from outside of it (`graph/shares.py`).
        influence: (G,) on the targets that passes through the group, a path counted once (again if it comes back through a
            node that was cut).
        inside: (G,) sum of the edges from members to members.
        outside: (G,) what else comes in: from nodes that pruning cut, along edges that it cut, and from features that were
            not selected.
        bias: (G,) sums of the members'; None for graphs that do not keep them (outside then lacks unselected features).
        pre_activation: (G,) sums of the members'; None for graphs that do not keep them (outside then lacks unselected
            features).
        acyclic: Whether no path leaves a group and comes back; groups made by hand may not be so.
        order: Numbers of the groups, readers after what they read (by mean layer if there are circles).
    """

    groups: tuple[Supernode, ...]
    nodes: tuple[tuple[int, ...], ...]
    edges: Tensor
    shares: Tensor
    influence: Tensor
    inside: Tensor
    outside: Tensor
    bias: Tensor | None
    pre_activation: Tensor | None
    acyclic: bool
    order: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def inputs(self, group: int, least: float = 0.0) -> list[tuple[int, float]]:
        """(source, share) of its inputs from other groups, largest first; least: in size."""
        row = self.shares[group].tolist()
        found = [(source, share) for source, share in enumerate(row) if share and abs(share) >= least]
        return sorted(found, key=lambda pair: (-abs(pair[1]), pair[0]))

    def to_json(self, titles: Sequence[str], total: float) -> list[dict[str, Any]]:
        """The groups as plain values, readers after what they read. titles: what each group is called (`naming.titles`). total:
        the weight of all targets, of which influence is a share.
        """
        return [
            {
                "title": titles[number],
                "role": self.groups[number].role,
                "members": list(self.groups[number].members),
                "influence": float(self.influence[number]) / total,
                "inputs": [[titles[source], share] for source, share in self.inputs(number)],
            }
            for number in self.order
        ]


@typed
@torch.no_grad()
def contract(graph: Graph, grouping: Grouping, pruned: PruneResult | None = None) -> Circuit:
    """The circuit of a grouping.

    O(E + G * G).

    Args:
        graph: The attribution graph.
        grouping: Its groups (`group_nodes`).
        pruned: Default: at the thresholds that the grouping was made with; nodes of groups that were cut come back with
            their edges.

    Returns:
        The circuit: edges among groups (G, G), shares, influence, and what comes in from outside.

    Raises:
        InputError: For a node that the graph does not have.

    Examples:
        >>> from circuit_tracer.circuits import contract, group_nodes
        >>> contract(graph, group_nodes(graph)).acyclic
        True
    """
    if pruned is None:
        pruned = pruned_as(graph, grouping.settings)
    given = [(group, tuple(sorted(members_of(graph, group)))) for group in grouping]
    chosen = torch.zeros(graph.n_nodes, dtype=torch.bool, device=graph.device)
    chosen[[node for _, nodes in given for node in nodes]] = True
    pruned = keep_nodes(graph, pruned, chosen)
    if bool((pruned.node_mask & ~chosen).any()):
        given += _alone(graph, pruned, chosen)
    given.sort(key=lambda pair: min(pair[1]))
    nodes = tuple(members for _, members in given)
    return _contracted(graph, pruned, tuple(group for group, _ in given), nodes)


def pruned_as(graph: Graph, settings: Mapping[str, Any], **given: float | None) -> PruneResult:
    """The graph pruned at the thresholds that a grouping was made with, but for those that are ``given`` and not None."""
    names = ("node_threshold", "edge_threshold", "policy")
    used: dict[str, Any] = {name: settings[name] for name in names if name in settings}
    return prune_graph(graph, **used | {name: value for name, value in given.items() if value is not None})


def _contracted(
    graph: Graph, pruned: PruneResult, groups: tuple[Supernode, ...], nodes: tuple[tuple[int, ...], ...]
) -> Circuit:
    kept, n_groups = pruned.pruned_edges, len(groups)
    owner = torch.full((graph.n_nodes,), -1, dtype=torch.int64)
    for number, members in enumerate(nodes):
        owner[list(members)] = number
    target, source, weight = owner[kept.target.cpu()], owner[kept.source.cpu()], kept.weight.cpu().double()
    flat = torch.zeros(n_groups * n_groups, dtype=torch.float64).index_add_(0, target * n_groups + source, weight)
    edges = flat.view(n_groups, n_groups)
    inside = edges.diagonal().clone()
    edges.fill_diagonal_(0)
    balance = graph.balance
    whole = graph.edges.row_sum(graph.edges.weight)
    total = _sums(whole if balance is None else whole + balance.unselected.double(), owner, n_groups)
    reads = edges.new_zeros(edges.shape, dtype=torch.bool)
    reads[target, source] = True
    reads.fill_diagonal_(False)
    order, acyclic = _order(reads, [_mean_layer(graph, members) for members in nodes])
    return Circuit(
        groups=groups,
        nodes=nodes,
        edges=edges,
        shares=group_shares(kept, nodes, row_mass(graph.edges)).cpu(),
        influence=_influence(graph, pruned, owner, n_groups),
        inside=inside,
        outside=total - edges.sum(1) - inside,
        bias=None if balance is None else _sums(balance.bias, owner, n_groups),
        pre_activation=None if balance is None else _sums(balance.pre_activation, owner, n_groups),
        acyclic=acyclic,
        order=order,
    )


def _alone(graph: Graph, pruned: PruneResult, chosen: Tensor) -> list[tuple[Supernode, tuple[int, ...]]]:
    """A group of one for each node that is in none, and its number."""
    profiles = node_profiles(graph, pruned)
    ids = graph.nodes.ids(profiles.nodes.to(graph.device))
    rows = zip(profiles.nodes.tolist(), ids, profiles.roles, strict=True)
    return [(Supernode("", role, (name,)), (node,)) for node, name, role in rows if not chosen[node]]


def _sums(values: Tensor, owner: Tensor, n_groups: int) -> Tensor:
    """(G,) float64 of values (N,) of the groups' members."""
    mine = owner >= 0
    return torch.zeros(n_groups, dtype=torch.float64).index_add_(0, owner[mine], values.cpu().double()[mine])


def _influence(graph: Graph, pruned: PruneResult, owner: Tensor, n_groups: int) -> Tensor:
    """(G,) the members' influence, less what runs on to another member."""
    edges, flow = graph.edges, (pruned.influence + graph.target_weights).cpu()
    target, source = edges.target.cpu(), edges.source.cpu()
    passed = input_shares(edges).abs().cpu() * flow[target]
    inner = (owner[target] >= 0) & (owner[target] == owner[source])
    twice = torch.zeros(n_groups, dtype=torch.float64).index_add_(0, owner[target[inner]], passed[inner])
    return _sums(pruned.influence, owner, n_groups) - twice


def _mean_layer(graph: Graph, members: Iterable[int]) -> float:
    return float(graph.nodes.layer[list(members)].double().mean())


def _order(reads: Tensor, layer: list[float]) -> tuple[tuple[int, ...], bool]:
    """Numbers of the groups from the inputs up, and whether that is possible."""
    below = {target: torch.nonzero(row).flatten().tolist() for target, row in enumerate(reads)}
    try:
        return tuple(_steps(below, layer)), True
    except CycleError:
        return tuple(sorted(range(len(layer)), key=lambda group: (layer[group], group))), False


def _steps(below: Mapping[int, list[int]], layer: list[float]) -> Iterator[int]:
    sorter = TopologicalSorter(below)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda group: (layer[group], group))
        yield from ready
        sorter.done(*ready)
