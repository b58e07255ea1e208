"""Graphs as networkx DiGraphs, with plain Python scalars only, so that GraphML and node-link JSON can be written.

Graph attributes: input_string, vocab_size, n_layers; and as JSON text: input_tokens, token_strings, cfg, scan,
provenance, parts (of the dictionary). Nodes are named as in the viewers' files. Node attributes: kind (feature | error |
token | target), layer, position, feature, activation (features), order (place in the graph); for targets label, weight,
target_kind; if the balance is known bias, unselected, unselected_mass, pre_activation. Edges run from source to target and
carry weight, and heads as JSON text where the graph knows which attention heads they run through.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError
from circuit_tracer.files import parse_json
from circuit_tracer.graph.balance import RowBalance
from circuit_tracer.graph.checks import require_ids
from circuit_tracer.graph.config import GraphConfig
from circuit_tracer.graph.dictionary_parts import ATTENTION, parts_of
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import ATTENTION_ERROR, KIND_NAMES, NodeKind
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.targets import LogitTarget, TargetTable

if TYPE_CHECKING:
    import networkx

_JSON_ATTRIBUTES = ("input_tokens", "token_strings", "cfg", "scan", "provenance", "parts")
_BALANCE = ("bias", "unselected", "unselected_mass", "pre_activation")


def to_networkx(graph: Graph, pruned: PruneResult | None = None) -> networkx.DiGraph:
    """The graph, or what ``pruned`` leaves of it.

    Active features that were not selected, the reconstruction and a validation report are not carried over.

    Args:
        graph: The attribution graph.
        pruned: What to leave of it; None: all.

    Returns:
        Nodes by id with `kind`, `layer`, `position` and others; edges from source to target with `weight`.

    Raises:
        InputError: If two targets would have the same name.

    Examples:
        >>> from circuit_tracer import prune_graph
        >>> from circuit_tracer.graph.files import to_networkx
        >>> small = to_networkx(graph, prune_graph(graph))
        >>> small.nodes["5_101_8"]["kind"]
        'target'
    """
    import networkx as nx

    names = node_ids(graph)
    if len(set(names)) != len(names):
        raise InputError("two targets have the same id and position; give them different ids to name nodes by them")
    result = nx.DiGraph(
        input_string=graph.input_string,
        vocab_size=graph.vocab_size,
        n_layers=graph.n_layers,
        input_tokens=json.dumps(graph.input_tokens.tolist()),
        token_strings=json.dumps(graph.token_strings),
        cfg=json.dumps(graph.cfg.to_dict()),
        scan=json.dumps(graph.scan),
        provenance=json.dumps(graph.provenance),
        parts=json.dumps([part.to_json() for part in graph.parts]),
    )
    keep = set(range(graph.n_nodes)) if pruned is None else set(torch.where(pruned.node_mask)[0].tolist())
    result.add_nodes_from((names[i], row) for i, row in enumerate(_node_rows(graph)) if i in keep)
    edges = graph.edges if pruned is None else pruned.pruned_edges
    result.add_weighted_edges_from((names[s], names[t], w) for t, s, w in edges)
    if graph.edge_heads is not None:
        place = graph.edge_heads.find(edges.source, edges.target)
        known = torch.nonzero(place >= 0).flatten()
        pairs = zip(edges.source[known].tolist(), edges.target[known].tolist(), strict=True)
        for (source, target), row in zip(pairs, graph.edge_heads.rows(place[known]), strict=True):
            result.edges[names[source], names[target]]["heads"] = json.dumps(row.to_json())
    return result


def from_networkx(source: networkx.DiGraph) -> Graph:
    """The graph that ``to_networkx`` made, possibly with nodes or edges removed since (tokens, targets and errors that are
    missing come back without edges).

    Args:
        source: Made by `to_networkx`.

    Returns:
        The graph.

    Raises:
        FileFormatError: If attributes are missing or nodes are unknown.
    """
    try:
        return _assemble(source)
    except (LookupError, TypeError, AttributeError, ValueError, CircuitTracerError, RuntimeError) as error:
        raise FileFormatError(
            "this networkx graph was not made by to_networkx, or lost an attribute: "
            f"{type(error).__name__} {str(error)[:300]}"
        ) from error


def _node_rows(graph: Graph) -> list[dict[str, Any]]:
    nodes = graph.nodes
    columns = (nodes.kind, nodes.layer, nodes.position, nodes.feature, nodes.activation)
    rows: list[dict[str, Any]] = []
    for order, (kind, layer, position, feature, activation) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        row = {"kind": KIND_NAMES[kind], "layer": layer, "position": position, "feature": feature, "order": order}
        if kind == NodeKind.FEATURE:
            row["activation"] = activation
        rows.append(row)
    targets = graph.targets
    for row, label, weight, kind in zip(
        rows[nodes.layout.target_start :], targets.label, targets.weight.tolist(), targets.kind, strict=True
    ):
        row.update(label=label, weight=weight, target_kind=kind)
    if graph.balance is not None:
        for name in _BALANCE:
            for row, value in zip(rows, getattr(graph.balance, name).tolist(), strict=True):
                row[name] = value
    return rows


def _assemble(source: networkx.DiGraph) -> Graph:
    header = {name: parse_json(source.graph[name], name, halves=True) for name in _JSON_ATTRIBUTES}
    if GraphConfig.of(header["cfg"]).n_layers != source.graph["n_layers"]:
        raise ValueError("n_layers is not the one in cfg")
    n_layers, n_pos = source.graph["n_layers"], len(header["input_tokens"])
    ordered = sorted(source.nodes(data=True), key=lambda item: item[1]["order"])
    features = [row for _, row in ordered if row["kind"] == "feature"]
    targets = [row for _, row in ordered if row["kind"] == "target"]
    n_features = len(features)
    parts = parts_of(header["parts"])
    n_errors = (1 + (parts[-1].place == ATTENTION)) * n_layers
    n_nodes = n_features + (n_errors + 1) * n_pos + len(targets)
    index, seen = {}, {"feature": 0, "target": n_nodes - len(targets)}
    for name, row in ordered:
        if row["kind"] not in KIND_NAMES.values():
            raise ValueError(f"{name} is of the kind {row['kind']!r}")
        if row["kind"] in seen:
            index[name] = seen[row["kind"]]
            seen[row["kind"]] += 1
        else:
            line = row["layer"] + (n_layers if row["feature"] == ATTENTION_ERROR else 0)
            line = line if row["kind"] == "error" else n_errors
            index[name] = n_features + line * n_pos + row["position"]
    table = TargetTable(
        label=[row["label"] for row in targets],
        layer=_ints(row["layer"] for row in targets),
        position=_ints(row["position"] for row in targets),
        weight=torch.tensor([row["weight"] for row in targets]),
        token_id=_ints(row["feature"] for row in targets),
        kind=[row["target_kind"] for row in targets],
    )
    triples = [(index[t], index[s], w) for s, t, w in source.edges(data="weight")]
    rows = _ints(row[name] for row in features for name in ("layer", "position", "feature"))
    return Graph(
        input_string=source.graph["input_string"],
        input_tokens=_ints(header["input_tokens"]),
        active_features=rows.reshape(-1, 3),
        adjacency_matrix=Edges.from_coo(
            _ints(t for t, _, _ in triples),
            _ints(s for _, s, _ in triples),
            torch.tensor([w for _, _, w in triples], dtype=torch.float32),
            n_nodes,
        ),
        cfg=header["cfg"],
        selected_features=torch.arange(n_features),
        activation_values=torch.tensor([row["activation"] for row in features], dtype=torch.float32),
        logit_targets=[LogitTarget(row["label"], row["feature"]) for row in targets],
        logit_probabilities=table.weight,
        scan=header["scan"],
        vocab_size=source.graph["vocab_size"],
        balance=_balance(ordered, index, n_nodes),
        targets=table,
        token_strings=header["token_strings"],
        provenance=header["provenance"],
        parts=parts,
    )


def _balance(ordered: list[tuple[str, dict[str, Any]]], index: dict[str, int], n_nodes: int) -> RowBalance | None:
    if not all("bias" in row for _, row in ordered):
        return None
    columns = {name: torch.zeros(n_nodes, dtype=torch.float64) for name in _BALANCE}
    for name, row in ordered:
        for column in _BALANCE:
            columns[column][index[name]] = row[column]
    return RowBalance(**columns)


def _ints(values: Any) -> Tensor:
    whole = list(values)
    require_ids("a number that counts or names", whole)
    return torch.tensor(whole, dtype=torch.int64)
