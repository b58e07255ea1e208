"""Compare two graphs: two prompts, two models with one dictionary, or a prompt before and after an intervention.

found = compare(before, after, target="Austin")
found.difference, found.accounted          # the change of the target, and the sum of what each node's edge changes by
found.largest(10)                          # the nodes that change it most
"""

from __future__ import annotations

from pathlib import Path

import torch

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import prune_graph
from circuit_tracer.many.comparison.account import account_of, residual_of, shares_of
from circuit_tracer.many.comparison.alignment import Aligned, Alignment, Positions
from circuit_tracer.many.comparison.belonging import in_common
from circuit_tracer.many.comparison.listing import links_of, listed_nodes, nodes_of
from circuit_tracer.many.comparison.schema import Comparison, Rest, Share, Side
from circuit_tracer.many.comparison.similarity import similarity
from circuit_tracer.many.comparison.target import target_of, targets_of
from circuit_tracer.many.comparison.verdict import UNEXPLAINED, unexplained, verdict


@typed
def compare(
    a: Graph | str | Path,
    b: Graph | str | Path,
    *,
    target: str | int | None = None,
    positions: Positions = "same",
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    most: int = 50,
) -> Comparison:
    """What changes from graph `a` to graph `b` (graphs or their files): see `Comparison`; the formulas are in many/README.md.

    Args:
        a: A graph, or the path of its file.
        b: The other.
        target: What the account is of: the label of a target of both graphs, a token's id, or the id in `a` of a feature
            that is a node of both. None: of the targets of both the one with the largest weight.
        positions: Which place of b answers to one of a: the "same" number; the same from the "end"; a map {position in a:
            position in b}; "pooled": any, nodes summed over places.
        node_threshold: How both graphs are pruned for the list of nodes.
        edge_threshold: The same of edges.
        most: How many of the nodes that differ most are in the list besides.

    Returns:
        The account of the difference, and the nodes that differ.

    Raises:
        InputError: For graphs without a target in common, or whose files hold no balance.
        CompatibilityError: For graphs of different dictionaries or sizes.

    Examples:
        >>> from circuit_tracer import attribute
        >>> from circuit_tracer.many.comparison import compare
        >>> other = attribute(PROMPT.replace("Dallas", "Portland"), model, attribution_targets=["Austin"])
        >>> found = compare(graph, other)
        >>> found.target, abs(found.gap) < 1e-3
        ('Austin', True)
    """
    if most < 0:
        raise InputError(f"most is {most}; at least 0 nodes can be listed")
    first, second = as_graph(a), as_graph(b)
    same = in_common(first, second)
    aligned = Alignment.of(first, second, positions)
    chosen = target_of(aligned, target)
    account = account_of(aligned, chosen)
    shares = shares_of(aligned, chosen, account)
    both = aligned.a, aligned.b
    sides = [_side(side, chosen, sum(each)) for side, each in zip(both, _sums(shares), strict=True)]
    pruned = [prune_graph(graph, node_threshold, edge_threshold) for graph in (first, second)]
    pooled = positions == "pooled"
    listed = listed_nodes(aligned, chosen, account, pruned, most)
    nodes = nodes_of(aligned, account, listed, pooled)
    difference, accounted = sides[1].value - sides[0].value, sum(share.difference for share in shares)
    target_node = int(torch.nonzero(listed == chosen))
    label = nodes[target_node].label or nodes[target_node].id
    left_out = torch.ones(len(aligned), dtype=torch.bool)
    left_out[listed] = False
    share = unexplained(shares)
    return Comparison(
        a=sides[0],
        b=sides[1],
        same=same,
        positions=positions if isinstance(positions, str) else "map",
        columns=aligned.columns,
        n_layers=first.n_layers,
        target=label,
        target_node=target_node,
        others=[name for name, node in targets_of(aligned).items() if node != chosen],
        difference=difference,
        accounted=accounted,
        gap=difference - accounted,
        unexplained=share,
        conclusive=share <= UNEXPLAINED,
        verdict=verdict(label, sides[0], sides[1], shares, same),
        shares=shares,
        nodes=nodes,
        links=links_of(aligned, listed, chosen, pruned),
        rest=Rest(
            int(left_out.sum()),
            float(account.difference[left_out].sum()),
            float(account.difference[left_out].abs().sum()),
        ),
        similarity={
            "features": similarity(*(side.influence[aligned.is_kind(NodeKind.FEATURE)] for side in both)),
            "nodes": similarity(*(side.influence[~aligned.is_kind(NodeKind.TARGET)] for side in both)),
        },
    )


def _sums(shares: list[Share]) -> tuple[list[float], list[float]]:
    return [share.a for share in shares], [share.b for share in shares]


def _side(side: Aligned, target: int, shares: float) -> Side:
    graph, node = side.graph, int(side.node[target])
    first = graph.nodes.layout.target_start
    return Side(
        prompt=graph.input_string,
        model=graph.cfg.model_name or "unknown",
        fingerprint=graph.provenance.get("fingerprint", {}).get("model"),
        edits=[str(edit) for edit in graph.provenance.get("edits", [])],
        value=side.balance(target, "pre_activation"),
        probability=float(graph.targets.weight[node - first]) if node >= first else None,
        residual=residual_of(side, target, shares),
        n_features=graph.nodes.layout.n_features,
        n_nodes=graph.n_nodes,
        n_edges=len(graph.edges),
    )
