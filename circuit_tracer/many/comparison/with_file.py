"""A viewer's file beside a whole graph of the same prompt: is what the file says so here too?

found = compare_with_file(fetched.document, graph)
print(*found.verdict, sep="\\n")

A viewer's file is pruned, so that it has no account of its target (`compare` takes two whole graphs). But node ids name a
layer, a feature and a position, and mean the same in every trace of one prompt with one dictionary. So each node and each link
of the file is looked up in the whole graph, where nothing is pruned away; and the graph is pruned as the file was, to see who
keeps what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError, shortened
from circuit_tracer.graph.files.read_json import from_json, prompt_tokens
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import prune_graph

if TYPE_CHECKING:
    import networkx

NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98  # of files that do not say theirs: circuit-tracer's


@dataclass(frozen=True)
class Kept:
    """Nodes of a kind that both keep, that the file alone keeps, and that the graph alone keeps, pruned alike."""

    both: int
    file: int
    graph: int


@dataclass(frozen=True)
class FileFeature:
    """A feature of the file: its id, its label there, its activation there and here (None: not active here)."""

    id: str
    label: str
    there: float | None
    here: float | None


@dataclass(frozen=True)
class FileLink:
    """A link of the file, with its weight there and here (0 where the graph has no such edge)."""

    source: str
    target: str
    there: float
    here: float


@dataclass(frozen=True)
class FileComparison:
    """What a file says, and what the graph says of the same.

    Attributes:
        features: All of the file's.
        links: Those of the file between nodes that both have.
        inactive: Features of the file that are not active here.
        unselected: Those that are active but no nodes here.
        targets: Of either, (text, probability there or None, here or None).
        kept: By kind of node.
        weight_correlation: Pearson's, of the weights of `links`, None for fewer than three.
        weight_change: Σ|here - there| / Σ|there| over them.
        verdict: In sentences.
    """

    features: list[FileFeature]
    links: list[FileLink]
    inactive: list[str]
    unselected: list[str]
    targets: list[tuple[str, float | None, float | None]]
    kept: dict[str, Kept]
    weight_correlation: float | None
    weight_change: float
    verdict: list[str]

    def largest(self, count: int) -> list[FileLink]:
        """The links whose weights differ most."""
        return sorted(self.links, key=lambda link: -abs(link.here - link.there))[:count]


def compare_with_file(
    document: Mapping[str, Any],
    graph: Graph,
    *,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
) -> FileComparison:
    """Look up everything that a viewer's document says in a whole graph of its prompt: see `FileComparison`.

    Args:
        document: As `load_viewer_json` or `fetch_graph` give it.
        graph: Of the same tokens, with the same dictionary.
        node_threshold: How the graph is pruned to see which nodes both keep; by default as the file says it was.
        edge_threshold: How the graph is pruned to see which nodes both keep; by default as the file says it was.

    Returns:
        What both say, and in sentences whether the file's claims hold here.

    Raises:
        CompatibilityError: For a graph of another prompt.
        InputError: For a file without features.
        FileFormatError: For one that is no graph.
    """
    theirs = from_json(dict(document))
    _require_one_prompt(theirs, graph)
    names = graph.nodes.ids()
    features = _features(theirs, dict(zip(names, graph.nodes.activation.tolist(), strict=True)))
    if not features:
        raise InputError(
            "the file has no features, so that there is nothing to look up; was it made by a graph viewer?"
        )
    links = _links(theirs, graph, {name: place for place, name in enumerate(names)})
    active = {f"{layer}_{index}_{position}" for layer, position, index in graph.active_features.tolist()}
    missing = [feature.id for feature in features if feature.here is None]
    node, edge = _thresholds(theirs.graph["metadata"], node_threshold, edge_threshold)
    there, here = (torch.tensor([getattr(link, side) for link in links]) for side in ("there", "here"))
    total = float(there.abs().sum())
    found = FileComparison(
        features=features,
        links=links,
        inactive=[name for name in missing if name not in active],
        unselected=[name for name in missing if name in active],
        targets=_targets(theirs, graph),
        kept=_kept(theirs, graph, node, edge),
        weight_correlation=_correlation(there, here),
        weight_change=float((here - there).abs().sum()) / total if total else 0.0,
        verdict=[],
    )
    found.verdict.extend(_verdict(found, node, edge))
    return found


def _require_one_prompt(theirs: networkx.DiGraph, graph: Graph) -> None:
    """By the tokens' ids, which their nodes are named by; a file that lacks some is compared by those that it has."""
    tokens = prompt_tokens(theirs.graph["metadata"])
    wrong = [
        name
        for name, node in theirs.nodes.items()
        if node["kind"] == "token"
        and (
            node["position"] >= graph.n_pos
            or name != f"E_{int(graph.input_tokens[node['position']])}_{node['position']}"
        )
    ]
    if wrong or (tokens and len(tokens) != graph.n_pos):
        raise CompatibilityError(
            f"the file is of another prompt than the graph: {len(tokens)} tokens {shortened(tokens, 200)} there, "
            f"{graph.n_pos} tokens {shortened(graph.token_texts, 200)} here. Trace the file's own tokens: "
            "attribute(fetched.token_ids, model), with model.prepend_bos = False if they have no special token in front"
        )


def _features(theirs: networkx.DiGraph, here: Mapping[str, float]) -> list[FileFeature]:
    return [
        FileFeature(name, str(node.get("clerp", "")), _number(name, node, "activation"), here.get(name))
        for name, node in theirs.nodes.items()
        if node["kind"] in ("feature", "attention feature")
    ]


def _number(name: str, node: Mapping[str, Any], field: str) -> float | None:
    """What a node of the file says, if it says it."""
    value = node.get(field)
    if value is None or isinstance(value, int | float):
        return value
    raise FileFormatError(f"the file's node {name} has {field} {shortened(value)}; expected a number")


def _links(theirs: networkx.DiGraph, graph: Graph, number: Mapping[str, int]) -> list[FileLink]:
    """Those between nodes that both have."""
    shared = [link for link in theirs.edges(data="weight") if link[0] in number and link[1] in number]
    source, target = (torch.tensor([number[link[end]] for link in shared], dtype=torch.int64) for end in (0, 1))
    place = graph.edges.find(source.to(graph.device), target.to(graph.device))
    here = torch.where(place >= 0, graph.edges.weight[place.clamp_min(0)], 0.0).tolist() if shared else []
    return [FileLink(link[0], link[1], link[2], weight) for link, weight in zip(shared, here, strict=True)]


def _targets(theirs: networkx.DiGraph, graph: Graph) -> list[tuple[str, float | None, float | None]]:
    layout = graph.nodes.layout
    names = graph.nodes.ids(torch.arange(layout.target_start, len(graph.nodes)))
    here = dict(zip(names, zip(graph.targets.label, graph.targets.weight.tolist(), strict=True), strict=True))
    there = {name: _number(name, node, "token_prob") for name, node in theirs.nodes.items() if node["kind"] == "target"}
    text = {name: str(node.get("clerp", name)) for name, node in theirs.nodes.items()}
    return [
        (here[name][0] if name in here else text[name], there.get(name), here[name][1] if name in here else None)
        for name in dict.fromkeys((*there, *here))
    ]


def _kept(theirs: networkx.DiGraph, graph: Graph, node_threshold: float, edge_threshold: float) -> dict[str, Kept]:
    mask = prune_graph(graph, node_threshold, edge_threshold).node_mask
    which = torch.nonzero(mask).flatten()
    names, kinds = graph.nodes.ids(which), graph.nodes.kind[which].tolist()
    found = {}
    for kind in (NodeKind.FEATURE, NodeKind.ERROR):
        ours = {name for name, each in zip(names, kinds, strict=True) if each == kind}
        word = kind.name.lower()
        file = {name for name, node in theirs.nodes.items() if node["kind"] in (word, f"attention {word}")}
        found[word] = Kept(len(ours & file), len(file - ours), len(ours - file))
    return found


def _thresholds(metadata: Mapping[str, Any], node: float | None, edge: float | None) -> tuple[float, float]:
    settings = metadata.get("pruning_settings")
    settings = settings if isinstance(settings, Mapping) else {}
    said = (settings.get("node_threshold", metadata.get("node_threshold")), settings.get("edge_threshold"))
    usual = (NODE_THRESHOLD, EDGE_THRESHOLD)
    chosen = [
        given if given is not None else float(value) if isinstance(value, int | float) and 0 < value <= 1 else default
        for given, value, default in zip((node, edge), said, usual, strict=True)
    ]
    return chosen[0], chosen[1]


def _correlation(a: Tensor, b: Tensor) -> float | None:
    if len(a) < 3 or not float(a.std()) or not float(b.std()):
        return None
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def _verdict(found: FileComparison, node_threshold: float, edge_threshold: float) -> list[str]:
    total, feature = len(found.features), found.kept["feature"]
    said = [f"{total - len(found.inactive) - len(found.unselected)} of the file's {total} features are nodes here."]
    if found.inactive:
        said.append(
            f"{len(found.inactive)} are not active here: other weights or number formats, or another dictionary."
        )
    if found.unselected:
        said.append(f"{len(found.unselected)} are active but no nodes: trace with more feature nodes.")
    pairs = [(each.there, each.here) for each in found.features if each.there and each.here is not None]
    if pairs:
        worst = max(abs(here - there) / abs(there) for there, here in pairs)
        said.append(f"Activations differ by {worst:.1%} at most.")
    if found.links:
        alike = "" if found.weight_correlation is None else f", correlation {found.weight_correlation:.4f}"
        said.append(f"Of {len(found.links)} links, weights differ by {found.weight_change:.1%} of their mass{alike}.")
    said.append(
        f"Pruned as the file ({node_threshold:g} of nodes, {edge_threshold:g} of edges): {feature.both} features are kept by "
        f"both, {feature.file} by the file alone, {feature.graph} by the graph alone."
    )
    return said
