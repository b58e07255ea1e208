"""The first minutes: trace a two-hop prompt on the embedded model, say in words what was found, and leave files behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import FEATURES, MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.files import require_writable_folder
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.paths import strongest_paths
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.page import write_page

SLUG = "demo"
PATHS_SHOWN = 8
PAGE_NODE_THRESHOLD = 0.95  # a small graph can show more than the usual 80 % of the influence


def load_demo(dtype: torch.dtype = torch.float32) -> ReplacementModel:
    """The embedded language model with its cross-layer transcoder, from the package's own files."""
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu", dtype=dtype)


def main(folder: str | Path, prompt: str | None = None) -> Graph:
    """Trace a prompt, print what explains its answer, and write the graph (page, viewer JSON, native file, picture)."""
    target = require_writable_folder(folder)
    prompt = PROMPT if prompt is None else prompt
    start = time.perf_counter()
    model = load_demo()
    loaded = time.perf_counter()
    graph = attribute(prompt, model)
    traced = time.perf_counter()
    labels = load_labels()
    print(f"prompt      {prompt}")
    print(f"answer      {_targets(graph)}")
    print(f"time        {loaded - start:.2f} s to load, {traced - loaded:.2f} s to trace\n")
    _print_paths(graph, labels)
    _print_quality(graph)
    for name, what in write_files(graph, target, labels).items():
        print(f"wrote       {name}  ({what})")
    print(
        "\nnext        circuit-tracer demo --prompt '...'          another prompt of this small world\n"
        "            circuit-tracer attribute --help             your own model and transcoders"
    )
    return graph


def write_files(graph: Graph, folder: Path, labels: dict[tuple[int, int], str]) -> dict[str, str]:
    """Write the files of a graph; what was written, by path."""
    json_file = create_graph_files(graph, SLUG, folder, scan="circuit-tracing-demo", labels=labels)
    native = graph.save(folder / f"{SLUG}.safetensors")
    picture = folder / f"{SLUG}.svg"
    graph.plot(picture, labels=labels)
    options: dict[str, Any] = {"labels": labels, "slug": SLUG, "node_threshold": PAGE_NODE_THRESHOLD}
    page = write_page(graph, folder / f"{SLUG}.html", features=FeatureFolder(FEATURES), **options)
    return {
        str(page): "open it in a browser",
        str(json_file): "graph for the viewers",
        str(native): "everything, for Graph.load",
        str(picture): "picture",
    }


def describe_node(graph: Graph, node: int, labels: dict[tuple[int, int], str]) -> str:
    """One node in words: a token, a feature by its label, an error, or a target."""
    nodes, tokens = graph.nodes, graph.token_strings or []
    kind, position, layer = NodeKind(int(nodes.kind[node])), int(nodes.position[node]), int(nodes.layer[node])
    word = tokens[position].strip() if tokens else str(position)
    if kind is NodeKind.TOKEN:
        return f'"{word}"'
    if kind is NodeKind.ERROR:
        return f"error L{layer}@{word}"
    if kind is NodeKind.TARGET:
        return f"output {graph.targets.label[node - nodes.layout.target_start].strip()}"
    label = labels.get((layer, int(nodes.feature[node])), f"feature {int(nodes.feature[node])}")
    return f"[{label}] L{layer}@{word}"


def _targets(graph: Graph) -> str:
    pairs = zip(graph.targets.label, graph.targets.weight.tolist(), strict=True)
    return ", ".join(f"{label.strip()} {weight:.3f}" for label, weight in pairs)


def _print_paths(graph: Graph, labels: dict[tuple[int, int], str]) -> None:
    answer = graph.nodes.layout.target_start
    print(f"strongest paths to {describe_node(graph, answer, labels)} (share of its input)")
    paths = strongest_paths(graph, answer, k=PATHS_SHOWN)
    for path in paths:
        print(f"  {path.weight:+7.1%}  " + " -> ".join(describe_node(graph, node, labels) for node in path.nodes))


def _print_quality(graph: Graph) -> None:
    scores, quality = graph_scores(graph), graph.reconstruction
    n_features = len(graph.selected_features)
    print(
        f"\ngraph       {n_features} features, {len(graph.edges)} edges; worst sum-rule residual {graph.residual:.1e}"
    )
    print(f"scores      replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}")
    if quality is not None:
        nmse = ", ".join(f"{value:.3f}" for value in quality.nmse.tolist())
        print(f"transcoder  NMSE by layer {nmse}; {float(quality.l0.sum()):.1f} active features a token")
