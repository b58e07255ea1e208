"""What reaches each node of a pruned graph, what it reaches, and the role that follows: from the graph's own matrices.

With M[t,s] the share |A[t,s]| of t's whole input, I the influence and w the weights of the targets, an edge t <- s carries
M[t,s] (I_t + w_t) of the influence on the targets (signed by A here). Derivations: README.md.

Letters: N nodes of the graph, n nodes of the pruned graph, S sources (tokens and errors) among them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.circuits.supernodes import Role
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.shares import input_shares

READS_INPUT = 0.5  # of its input straight from tokens: a node detects, whatever it does
SAYS, DETECTS = 2 / 3, 1 / 3  # of its influence straight to the targets: above it a node says, below it detects

_TINY = torch.finfo(torch.float64).tiny
_ASIDE = re.compile(r"\([^)]*\)")
_WORD = re.compile(r"[^\W_]+")
_COMMON = frozenset(
    ("a", "about", "after", "an", "and", "asked", "before", "for", "in", "is", "it", "of", "on", "or", "say", "says", "that",
     "the", "to", "with")
)  # fmt: skip


@dataclass(frozen=True)
class Profiles:
    """Of the n nodes of a pruned graph, in the graph's order.

    nodes: (n,) numbers in the graph. edges: (n, n) bool, row = target: the edges that pruning kept; the rest is of all edges
    among the nodes. sent: (n, n), row s: the influence that s sends along each edge to a reader, signed. received: (n, S) the
    influence of each source on the node, rows of sum 1, or 0 for a source. influence: (n,) on the targets. direct: (n,) the
    share of it that goes straight to targets. roles: one a node.
    """

    nodes: Tensor
    edges: Tensor
    sent: Tensor
    received: Tensor
    influence: Tensor
    direct: Tensor
    roles: list[Role]

    @property
    def groupable(self) -> Tensor:
        """(n,) bool: features and errors; tokens and targets stay alone."""
        return torch.tensor([role not in ("token", "logit") for role in self.roles])


def node_profiles(graph: Graph, pruned: PruneResult, labels: Mapping[Any, str] | None = None) -> Profiles:
    """The profiles of what pruning kept. labels: texts by node id or (layer, index), as `create_graph_files` takes them.

    O(E + n * n * S) time, n * n numbers of memory.
    """
    mask = pruned.node_mask.cpu()
    nodes = torch.nonzero(mask).flatten()
    place = torch.cumsum(mask, 0) - 1
    edges, kept = graph.edges.to("cpu"), pruned.kept_edges.cpu()
    inside = mask[edges.target] & mask[edges.source]
    shares = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    shares[place[edges.target[inside]], place[edges.source[inside]]] = input_shares(edges)[inside]
    there = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    there[place[edges.target[kept]], place[edges.source[kept]]] = True
    flow = (pruned.influence + graph.target_weights).cpu()[nodes]
    sent = (shares * flow[:, None]).T
    kinds = graph.nodes.kind.cpu()[nodes]
    straight = sent[:, kinds == NodeKind.TARGET].abs().sum(1)
    direct = straight / sent.abs().sum(1).clamp(min=_TINY)
    shares = shares.abs()
    return Profiles(
        nodes=nodes,
        edges=there,
        sent=sent,
        received=_received(shares, kinds, graph, pruned, place),
        influence=pruned.influence.cpu()[nodes],
        direct=direct,
        roles=_roles(graph, nodes, shares[:, kinds == NodeKind.TOKEN].sum(1), direct, labels or {}),
    )


def _received(shares: Tensor, kinds: Tensor, graph: Graph, pruned: PruneResult, place: Tensor) -> Tensor:
    """(n, S) rows of sum 1: along all paths among the nodes, from the bottom up."""
    sources = torch.nonzero((kinds == NodeKind.TOKEN) | (kinds == NodeKind.ERROR)).flatten()
    found = torch.zeros(len(kinds), len(sources), dtype=torch.float64)
    found[sources, torch.arange(len(sources))] = 1.0
    mask = pruned.node_mask.cpu()
    for block in reversed(graph.blocks):
        rows = torch.arange(block.start, block.stop) if isinstance(block, range) else block.cpu()
        rows = place[rows[mask[rows]]]
        rows = rows[~torch.isin(rows, sources)]
        found[rows] = shares[rows] @ found
    found[sources] = 0.0
    return found / found.sum(1, keepdim=True).clamp(min=_TINY)


def _roles(graph: Graph, nodes: Tensor, from_tokens: Tensor, direct: Tensor, labels: Mapping[Any, str]) -> list[Role]:
    """A label that says "say ..." says; else what the matrices tell, of nodes where outputs are read."""
    table, ids = graph.nodes, graph.nodes.ids(nodes)
    read_at = set(graph.targets.position.tolist())
    fixed: dict[NodeKind, Role] = {NodeKind.TOKEN: "token", NodeKind.ERROR: "error", NodeKind.TARGET: "logit"}
    roles: list[Role] = []
    for row, (node, name) in enumerate(zip(nodes.tolist(), ids, strict=True)):
        kind = NodeKind(int(table.kind[node]))
        label = label_of(labels, name, int(table.layer[node]), int(table.feature[node]))
        if kind in fixed:
            roles.append(fixed[kind])
        elif label.lower().startswith(("say ", "says ")):
            roles.append("says")
        elif int(table.position[node]) not in read_at or float(from_tokens[row]) >= READS_INPUT:
            roles.append("detects")
        else:
            share = float(direct[row])
            roles.append("says" if share >= SAYS else "detects" if share <= DETECTS else "mixed")
    return roles


def likeness(profiles: Profiles, subjects: Sequence[frozenset[str]]) -> Tensor:
    """(n, n) in 0..1: how alike two nodes are. The harmonic mean of the overlaps of what they send and of what they receive
    (errors: of what they send); of two with subjects, the mean of that and of how far the subjects agree.
    """
    sends, receives = overlap(profiles.sent, profiles.sent), overlap(profiles.received, profiles.received)
    found = harmonic(sends, receives)
    errors = torch.tensor([role == "error" for role in profiles.roles])
    found[errors] = sends[errors]
    told = torch.tensor([row for row, words in enumerate(subjects) if words], dtype=torch.int64)
    if len(told):
        agree = _agreement([subjects[row] for row in told.tolist()])
        found[told[:, None], told] = (found[told[:, None], told] + agree) / 2
    return found


def kept_apart(
    profiles: Profiles, subjects: Sequence[frozenset[str]], position: Tensor, read_at: Collection[int]
) -> Tensor:
    """(n, n) bool: pairs that are never in one group. All of tokens and targets; errors and features, and errors of two
    positions; nodes where outputs are read and nodes elsewhere; a detector and a sayer ("mixed" goes with either); two sayers
    of different things, by labels that share no word.

    subjects: one a node. position: (n,). read_at: positions of targets.
    """
    detects, says, mixed, errors = (
        torch.tensor([role == each for role in profiles.roles]) for each in ("detects", "says", "mixed", "error")
    )
    features = detects | says | mixed
    here = position[:, None] == position
    prompt = ~torch.isin(position, torch.tensor(sorted(read_at), dtype=position.dtype))
    together = (features[:, None] & features & (here | (prompt[:, None] & prompt))) | (errors[:, None] & errors & here)
    opposed = (detects[:, None] & says) | (says[:, None] & detects)
    named = [row for row, words in enumerate(subjects) if words and profiles.roles[row] == "says"]
    which = torch.tensor(named, dtype=torch.int64)
    if named:
        opposed[which[:, None], which] |= _agreement([subjects[row] for row in named]) == 0
    return ~together | opposed


def _agreement(subjects: Sequence[frozenset[str]]) -> Tensor:
    """(m, m) words that two share, over those of the shorter."""
    places = {word: place for place, word in enumerate(sorted(frozenset().union(*subjects)))}
    has = torch.zeros(len(subjects), len(places), dtype=torch.float64)
    for row, words in enumerate(subjects):
        has[row, [places[word] for word in words]] = 1
    count = has.sum(1)
    return has @ has.T / torch.minimum(count[:, None], count)


def overlap(rows: Tensor, others: Tensor) -> Tensor:
    """(a, b) share of two rows, each scaled to a sum of sizes of 1, that is on the same places with the same sign; 1 for two
    empty rows. rows: (a, n), others: (b, n).
    """
    sizes = [each.abs().sum(1) for each in (rows, others)]
    left, right = (each / size.clamp(min=_TINY)[:, None] for each, size in zip((rows, others), sizes, strict=True))
    empty = (sizes[0] == 0)[:, None] != (sizes[1] == 0)
    return (1 - torch.cdist(left, right, p=1) / 2).clamp(0, 1).masked_fill(empty, 0)


def harmonic(one: Tensor, other: Tensor) -> Tensor:
    """The harmonic mean, 0 where both are."""
    return 2 * one * other / (one + other).clamp(min=_TINY)


def label_of(labels: Mapping[Any, str], name: str, layer: int, feature: int) -> str:
    """A node's label, by its id or by its feature; "" for none."""
    return labels.get(name) or labels.get((layer, feature)) or ""


def subject(label: str) -> frozenset[str]:
    """The words that a label is about: "Texas (places)" and "say Texas" are about {"texas"}; none for a "mixed" one."""
    if label.lower().startswith("mixed"):
        return frozenset()
    words = frozenset(_WORD.findall(_ASIDE.sub(" ", label).lower()))
    return words - _COMMON or words
