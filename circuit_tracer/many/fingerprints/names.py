"""What the numbers of a fingerprint are: one table. Tests hold the code and the package's README against it.

"Kept" is what `prune_graph` leaves at the thresholds given. Influence is a share of the weight of all targets. A mean or
maximum of nothing is 0, so that every number is finite. ``{l}`` stands for each layer.
"""

from __future__ import annotations

NAMES = {
    "logits.top": "weight of the heaviest target (for plain logits, the probability of the most probable token)",
    "logits.margin": "its distance to the second",
    "logits.entropy": "entropy of the targets' weights, all other tokens counted as one more outcome; nats",
    "logits.covered": "sum of the targets' weights",
    "logits.targets": "number of targets",
    "global.tokens": "tokens of the prompt",
    "global.active": "active features",
    "global.features": "features that are nodes",
    "global.edges": "edges",
    "global.kept_features": "kept features",
    "global.kept_errors": "kept error nodes",
    "global.kept_tokens": "tokens with a kept edge",
    "global.kept_edges": "kept edges",
    "global.replacement": "replacement score of the whole graph",
    "global.completeness": "completeness score of the whole graph",
    "global.strict_completeness": "the same over nodes with inputs",
    "global.nmse_mean": "error of the reconstruction on this prompt, mean over layers; only where the graph knows it",
    "global.nmse_max": "the same, of the worst layer",
    "node.activation_mean": "activation of kept features",
    "node.activation_std": "",
    "node.activation_max": "",
    "node.influence_mean": "influence of kept features",
    "node.influence_std": "",
    "node.influence_max": "",
    "node.effective_features": "exp of the entropy of kept features' influence: among how many it is spread",
    "node.effective_tokens": "the same of tokens' influence",
    "node.token_max": "influence of the most influential token",
    "node.error_max": "influence of the most influential error node",
    "node.last_position": "share of kept features' influence that is of features at the last position",
    "node.weight_mean": "absolute weight of kept edges",
    "node.weight_std": "",
    "node.weight_max": "",
    "node.negative": "share of the absolute weight of kept edges that is negative",
    "node.edge_layers": "layers that a kept edge crosses, mean",
    "node.edge_positions": "positions that a kept edge crosses, mean",
    "node.kept_layer_{l}": "kept features of the layer",
    "node.influence_layer_{l}": "influence of all features of the layer",
    "node.error_layer_{l}": "influence of all error nodes of the layer",
    "topology.nodes": "nodes with a kept edge; all that follows is of the graph that they form",
    "topology.density": "edges over ordered pairs of nodes",
    "topology.degree_mean": "edges over nodes",
    "topology.in_degree_std": "edges into a node",
    "topology.in_degree_max": "",
    "topology.out_degree_std": "edges out of a node",
    "topology.out_degree_max": "",
    "topology.clustering": "local clustering coefficient without directions, mean over nodes",
    "topology.transitivity": "share of pairs of neighbours of one node that are neighbours",
    "topology.components": "weakly connected components",
    "topology.path_reached": "share of (token, target) pairs with a path",
    "topology.path_shortest_mean": "edges of the shortest path of a pair that has one",
    "topology.path_shortest_max": "",
    "topology.path_longest": "edges of the longest path",
    "topology.path_weighted": "edges of paths from tokens to targets in the whole graph, mean weighted by influence",
    "topology.closeness": "1 / edges of the shortest path, 0 without one, mean over pairs (harmonic centrality of targets)",
    "topology.betweenness_mean": "share of pairs whose shortest paths run through a node (betweenness centrality)",
    "topology.betweenness_std": "",
    "topology.betweenness_max": "",
}
FAMILIES = ("logits", "global", "node", "topology")
OF_RECONSTRUCTION = ("global.nmse_mean", "global.nmse_max")


def names(n_layers: int, reconstruction: bool = True) -> list[str]:
    """The names of a fingerprint, in order, for a model of so many layers.

    Args:
        n_layers: L.
        reconstruction: Whether graphs know theirs.

    Returns:
        The names.
    """
    return [
        name.format(l=layer)
        for name in NAMES
        if reconstruction or name not in OF_RECONSTRUCTION
        for layer in (range(n_layers) if "{l}" in name else [0])
    ]


def family(name: str) -> str:
    """``logits``, ``global``, ``node`` or ``topology``."""
    return name.partition(".")[0]
