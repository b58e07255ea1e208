"""Pruned graphs as JSON for the viewers: ours, circuit-tracer's, Anthropic's and Neuronpedia's."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.files import atomic_write, parse_json, require_writable_folder
from circuit_tracer.graph.dictionary_parts import ATTENTION, DEFAULT, part_numbers
from circuit_tracer.graph.files.graph_index import add_to_index, read_index, writing_graphs
from circuit_tracer.graph.files.hand_made import GROUPED, HandMade, chosen_digest, hand_made, set_aside_if_lost
from circuit_tracer.graph.files.keeping import keep_nodes, nodes_named
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.files.node_ids import cantor_pair, node_ids
from circuit_tracer.graph.files.qk_tracing import with_scores
from circuit_tracer.graph.files.read_json import sealed_graph
from circuit_tracer.graph.files.validate import ExportTarget, upload_size_problems, validate_parts
from circuit_tracer.graph.files.view import View
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import ATTENTION_ERROR, NodeKind
from circuit_tracer.graph.pruning import PrunePolicy, PruneResult, prune_graph
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.graph.words import feature_name, is_of_neurons, left_over
from circuit_tracer.version import package_version

Labels = Mapping[str, str] | Mapping[tuple[int, int], str]

FEATURE_TYPES = {
    NodeKind.FEATURE: "cross layer transcoder",
    NodeKind.ERROR: "mlp reconstruction error",
    NodeKind.TOKEN: "embedding",
    NodeKind.TARGET: "logit",
}
# Of attention, whether it is autoencoders or Lorsa that replace it: the names that viewers know.
ATTENTION_TYPES = {NodeKind.FEATURE: "lorsa", NodeKind.ERROR: "lorsa error"}
_SETTINGS = ("max_n_logits", "desired_logit_prob", "batch_size", "max_feature_nodes")
_WEIGHTS_A_PIECE = 100_000


class GraphDocument(NamedTuple):
    """Viewer JSON: the metadata by themselves, and the text of the whole document."""

    metadata: dict[str, Any]
    text: str


@typed
def create_graph_files(
    graph_or_path: Graph | str | Path,
    slug: str,
    output_path: str | Path,
    scan: str | list[str] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    *,
    policy: PrunePolicy = "circuit-tracer",
    target: ExportTarget = "local",
    labels: Labels | None = None,
    token_strings: Sequence[str] | None = None,
    feature_details: Mapping[str, str] | None = None,
    info: Mapping[str, Any] | None = None,
    view: View | None = None,
) -> Path:
    """Prune a graph and write ``{slug}.json`` and its entry in ``graph-metadata.json``.

    Needs no network. The files replace older ones only when complete; pins, supernodes and labels that people put into an
    older one of the same graph move into the new one, and what cannot is said and kept in a file beside it.

    Args:
        graph_or_path: A graph, or a native or ``.pt`` file.
        slug: Name of the files, and of the graph in viewers.
        output_path: A folder, made if needed; checked before any work.
        scan: Identifies the transcoders, default the graph's, else the model's name; for ``target`` "neuronpedia" it must
            be one of its model ids.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        policy: How nodes are kept: "circuit-tracer" or "paper" (`prune_graph`).
        target: "local", or "neuronpedia" for its rules of uploading.
        labels: Texts for nodes, by node id or by (layer, index) of features; they come before those that the graph keeps.
        token_strings: P texts, for graphs that do not hold them (those of circuit-tracer).
        feature_details: As the schema describes them.
        info: As the schema describes them.
        view: Pinned nodes and supernodes to open with; its labels come before ``labels``.

    Returns:
        The path of `{slug}.json`.

    Raises:
        InputError: For anything that a viewer would not show, naming all of it, before a file is written.
        ResourceError: If the disk is full.

    Examples:
        >>> from circuit_tracer import create_graph_files
        >>> create_graph_files(graph, "dallas", "graphs").name
        'dallas.json'
    """
    check_slug(slug)
    folder = require_writable_folder(output_path)
    read_index(folder)
    graph = as_graph(graph_or_path)
    path = folder / f"{slug}.json"
    with writing_graphs(folder):
        before = hand_made(folder, slug)
        document = graph_document(
            graph,
            slug,
            scan,
            node_threshold,
            edge_threshold,
            policy=policy,
            target=target,
            labels=labels,
            token_strings=token_strings,
            feature_details=feature_details,
            info=info,
            view=view,
            keep=() if before is None or view is not None else before.nodes,
        )
        content = parse_json(document.text, slug, halves=True)
        if before:
            content["qParams"] |= _moved(before, content, view)
        with atomic_write(path) as temporary:
            temporary.write_text(_dump(sealed_graph(content)), encoding="utf-8")
        listed = {name: value for name, value in document.metadata.items() if name != "story"}  # it is long
        add_to_index(folder, listed)
    return path


def _moved(before: HandMade, document: dict[str, Any], view: View | None) -> dict[str, Any]:
    """What people put into a file, for the qParams of a document that takes its place."""
    if view is not None:
        set_aside_if_lost(before, ["the view given takes the place of the one that was"])
        return {}
    q_params, lost = before.moved(document["metadata"], {node["node_id"] for node in document["nodes"]})
    set_aside_if_lost(before, lost)
    return q_params


@typed
def graph_document(
    graph: Graph,
    slug: str,
    scan: str | list[str] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    *,
    policy: PrunePolicy = "circuit-tracer",
    target: ExportTarget = "local",
    labels: Labels | None = None,
    token_strings: Sequence[str] | None = None,
    feature_details: Mapping[str, str] | None = None,
    info: Mapping[str, Any] | None = None,
    view: View | None = None,
    keep: Iterable[str] = (),
) -> GraphDocument:
    """What ``create_graph_files`` writes, without writing it; the same options and errors.

    keep: ids of nodes that stay whatever the thresholds; those that the graph does not have are passed over.
    """
    check_slug(slug)
    tokens = _token_strings(graph, token_strings)
    grouped: dict[str, str] = {}
    if view is None and graph.grouping is not None:
        view = View.of_grouping(graph.grouping)
        keep, grouped = (*keep, *view.nodes), {GROUPED: chosen_digest(view.q_params())}
    kept = nodes_named(graph, keep)
    pruned = keep_nodes(graph, prune_graph(graph, node_threshold, edge_threshold, policy), kept)
    thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold, "policy": policy}
    metadata = _metadata(graph, slug, scan, tokens, thresholds, feature_details or {}, info or {}) | grouped
    return GraphDocument(metadata, viewer_json(graph, pruned, metadata, labels, target, view or View(), kept))


def viewer_json(
    graph: Graph,
    pruned: PruneResult,
    metadata: dict[str, Any],
    labels: Labels | None = None,
    target: ExportTarget = "local",
    view: View = View(),  # noqa: B008 - it is frozen
    kept: torch.Tensor | None = None,
) -> str:
    """The whole document as compact JSON: nodes with an edge left, all tokens and targets, and the edges that are left.

    kept: bool (N,), nodes that are written even without an edge. Of scores of attention that the graph keeps: `qk_tracing.py`.

    Where a graph has features of several dictionaries, a feature's "dictionary" and "dictionary_index" say which it is of,
    and its number there. Node ``influence`` is cumulative (small is important), link weights are signed and unnormalised.
    ``input_mass`` of a node is the sum of its |inputs| in the whole graph, of which viewers show links as shares. Links of
    edges whose heads the graph knows (``edge_heads``) have "heads": {"direct", "hops" (their mean number), "first" and
    "last": [[layer, head, weight]...]}.
    Raises InputError
    with everything that ``validate`` finds wrong.
    """
    edges = pruned.pruned_edges
    link_target, link_source = edges.target, edges.source
    present = torch.zeros_like(pruned.node_mask) if kept is None else kept.clone()
    present[link_target] = True
    present[link_source] = True
    present[graph.nodes.layout.token_start :] = True
    which = torch.where(present)[0]
    ids = node_ids(graph, which)
    by_any: dict[Any, str] = {**graph.labels, **(labels or {}), **view.labels}
    nodes = node_dicts(graph, which, ids, pruned.cumulative_scores, by_any)
    scores = with_scores(graph, nodes, by_any)
    place = torch.cumsum(present, 0) - 1
    names = np.array(ids, dtype=object)
    sources = names[place[link_source].cpu().numpy()].tolist()
    targets = names[place[link_target].cpu().numpy()].tolist()
    weights = edges.weight.cpu().numpy()
    q_params = view.q_params()
    problems = validate_parts(metadata, q_params, nodes, sources, targets, weights.tolist(), target)
    if missing := sorted({*view.nodes, *filter(None, [view.clicked])} - set(ids)):
        problems.append(
            f"nodes of the view are not in the pruned graph ({', '.join(missing[:5])}); raise the thresholds"
        )
    if not problems:
        text = (
            f'{{"metadata":{_dump(metadata)},"qParams":{_dump(q_params)},"nodes":{_dump(nodes)},'
            f'"links":[{_links_text(sources, targets, weights, _heads_texts(graph, link_source, link_target))}]'
            + "".join(f',"{name}":{_dump(value)}' for name, value in scores.items())
            + "}"
        )
        problems = upload_size_problems(len(text.encode())) if target == "neuronpedia" else []
    if problems:
        raise InputError("this graph cannot be exported: " + "; ".join(problems))
    return text


def interruption(graph: Graph) -> str:
    """How far an interrupted trace came, in words."""
    done, wanted = graph.provenance.get("features") or (len(graph.selected_features), None)
    return f"{done:,} of {wanted:,} features" if wanted else f"{done:,} features"


def scan_name(scan: list[str]) -> str:
    """One stable name for a list of scans, one a layer."""
    return "custom-" + hashlib.sha256("\n".join(scan).encode()).hexdigest()[:16]


def check_slug(slug: str) -> None:
    if (
        not slug
        or slug.startswith(".")
        or re.search(r'[/\\:*?"<>|\x00-\x1f\ud800-\udfff]', slug)
        or slug == "graph-metadata"
        or len(slug.encode()) > 200
    ):
        raise InputError(
            f"slug {shortened(slug)} cannot name a file; use at most 200 letters, digits, '_', '-' and '.'"
        )


def _token_strings(graph: Graph, given: Sequence[str] | None) -> list[str]:
    tokens = list(given) if given is not None else graph.token_strings
    if tokens is None:
        tokens = _decode_offline(graph)
    if len(tokens) != graph.n_pos:
        raise InputError(f"{len(tokens)} token strings for {graph.n_pos} tokens; give one for each, BOS included")
    return tokens


def _decode_offline(graph: Graph) -> list[str]:
    from transformers import AutoTokenizer

    name = graph.cfg.tokenizer_name or graph.cfg.model_name
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the graph holds token ids but no token texts, and the tokenizer {name!r} is not on this machine; "
            "pass token_strings=[...], one text a token"
        ) from error
    return [str(tokenizer.decode([token])) for token in graph.input_tokens.tolist()]


def _metadata(
    graph: Graph,
    slug: str,
    scan: str | list[str] | None,
    tokens: list[str],
    thresholds: dict[str, Any],
    feature_details: Mapping[str, str],
    info: Mapping[str, Any],
) -> dict[str, Any]:
    scan = scan or graph.scan or graph.cfg.model_name or "unknown"
    scores = graph_scores(graph)
    metadata: dict[str, Any] = {
        "slug": slug,
        "scan": scan_name(scan) if isinstance(scan, list) else scan,
        "prompt_tokens": tokens,
        "prompt": graph.input_string,
        "node_threshold": thresholds["node_threshold"],
        "transcoder_list": scan if isinstance(scan, list) else [],
    }
    if graph.parts != DEFAULT:
        metadata["dictionaries"] = [part.to_json() for part in graph.parts]
    if feature_details:
        metadata["feature_details"] = dict(feature_details)
    if "feature_json_base_url" not in feature_details:
        metadata["schema_version"] = 1
    generator = {"name": "circuit-tracing", "version": package_version()}
    metadata["info"] = {"generator": generator, "create_time_ms": int(time.time() * 1000), **info}
    if "neuronpedia_source_set" in feature_details:
        metadata["info"].setdefault("neuronpedia_source_set", feature_details["neuronpedia_source_set"])
    used = graph.provenance.get("settings", {})
    settings = {name: used[name] for name in _SETTINGS if used.get(name) is not None}
    if settings:
        metadata["generation_settings"] = settings
    metadata["pruning_settings"] = thresholds
    if graph.provenance.get("interrupted"):
        metadata["interrupted"] = interruption(graph)
    if is_of_neurons(graph):
        metadata["left_over"] = left_over(graph)
    if graph.provenance.get("warnings"):
        metadata["warnings"] = graph.provenance["warnings"]
    if graph.validation is not None:
        metadata["validation"] = graph.validation.summary()
    if graph.story is not None:
        metadata["story"] = graph.story
    named = {
        "replacement_score": scores.replacement,
        "completeness_score": scores.completeness,
        "sum_rule_residual": graph.residual,
    }
    metadata.update({name: value for name, value in named.items() if value is not None and np.isfinite(value)})
    return metadata


def node_dicts(
    graph: Graph, which: torch.Tensor, ids: list[str], ranks: torch.Tensor, by_any: dict[Any, str]
) -> list[dict[str, Any]]:
    """The nodes in ``which`` as viewers read them; ids: their names, ranks: (N,), by_any: labels by name or (layer, index)."""
    nodes, neurons = graph.nodes, is_of_neurons(graph)

    def unnamed(layer: int, feature: int) -> str:
        return feature_name(graph, layer, feature) if neurons else ""

    columns = (nodes.kind, nodes.layer, nodes.position, nodes.feature)
    influence = _shortest(ranks[which].clamp(max=1.0).cpu().numpy())
    mass = graph.edges.row_sum(graph.edges.weight.abs())[which].tolist()
    parts = graph.parts
    numbers = part_numbers(parts, nodes.feature[which]).tolist()
    activation = _shortest(nodes.activation[which].float().cpu().numpy())
    rows: list[dict[str, Any]] = []
    for name, kind, layer, position, feature, cumulative, value, inputs, order, number in zip(
        ids,
        *(column[which].tolist() for column in columns),
        influence,
        activation,
        mass,
        which.tolist(),
        numbers,
        strict=True,
    ):
        of_attention = feature == ATTENTION_ERROR or (kind == NodeKind.FEATURE and parts[number].place == ATTENTION)
        row: dict[str, Any] = {
            "node_id": name,
            "feature": feature,
            "layer": str(layer),
            "ctx_idx": position,
            "feature_type": (ATTENTION_TYPES if of_attention else FEATURE_TYPES)[kind],
            "jsNodeId": name,
            "clerp": by_any.get(name, ""),
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "influence": None,
            "activation": None,
        }
        if kind == NodeKind.TARGET:
            row.update(_target_fields(graph, order - nodes.layout.target_start))
        else:
            row["influence"] = cumulative
        if kind == NodeKind.FEATURE:
            row["feature"] = cantor_pair(layer, feature)
            row["activation"] = value
            row["clerp"] = row["clerp"] or by_any.get((layer, feature), "")
            if len(parts) > 1:
                row |= {"dictionary": parts[number].name, "dictionary_index": feature - parts[number].first}
            if not of_attention:
                row["clerp"] = row["clerp"] or unnamed(layer, feature)
        elif kind == NodeKind.ERROR and neurons and not of_attention:
            row["clerp"] = row["clerp"] or left_over(graph)
        elif kind == NodeKind.TOKEN:
            row.update(layer="E", feature=position)
        if inputs:
            row["input_mass"] = float(f"{inputs:.7g}")
        rows.append(row)
    return rows


def _target_fields(graph: Graph, rank: int) -> dict[str, Any]:
    label = graph.targets.label[rank].replace('"', "\N{RIGHT DOUBLE QUOTATION MARK}")
    weight = float(graph.targets.weight[rank])
    fields = {
        "layer": str(graph.n_layers + 1),
        "clerp": f'Output "{label}" (p={abs(weight):.3f})',
        "token_prob": abs(weight),
        "is_target_logit": rank == 0,
        "token": graph.targets.label[rank],
    }
    if graph.targets.kind[rank] != "logit":
        fields |= {"target_kind": graph.targets.kind[rank], "weight": weight}
    return fields


def _shortest(values: np.ndarray) -> list[float]:
    """Floats with as few digits as their own precision needs."""
    return [float(text) for text in values.astype(str).tolist()]


def _heads_texts(graph: Graph, source: torch.Tensor, target: torch.Tensor) -> list[str]:
    """What each link says more: the heads that it runs through, where the graph knows them."""
    if graph.edge_heads is None:
        return [""] * len(source)
    place = graph.edge_heads.find(source, target)
    known = place >= 0
    texts = iter(f',"heads":{_dump(row.to_json())}' for row in graph.edge_heads.rows(place[known]))
    return [next(texts) if there else "" for there in known.tolist()]


def _links_text(sources: list[str], targets: list[str], weights: np.ndarray, heads: list[str]) -> str:
    pieces = []
    for start in range(0, len(weights), _WEIGHTS_A_PIECE):
        part = slice(start, start + _WEIGHTS_A_PIECE)
        pieces.append(
            ",".join(
                f'{{"source":"{source}","target":"{target}","weight":{weight}{more}}}'
                for source, target, weight, more in zip(
                    sources[part], targets[part], weights[part].astype(str).tolist(), heads[part], strict=True
                )
            )
        )
    return ",".join(pieces)


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
