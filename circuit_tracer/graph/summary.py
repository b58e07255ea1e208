"""What a graph amounts to, as plain values."""

from __future__ import annotations

from typing import Any

from circuit_tracer.graph.files.viewer_json import interruption
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.scores import graph_scores


def summarise(graph: Graph) -> dict[str, Any]:
    """Targets, sizes, scores, reconstruction and worst residual of a graph, as JSON values."""
    layout, targets, scores = graph.nodes.layout, graph.targets, graph_scores(graph)
    rows = zip(
        targets.label, targets.token_id.tolist(), targets.position.tolist(), targets.weight.tolist(), strict=True
    )
    summary: dict[str, Any] = {
        "prompt": graph.input_string,
        "model": graph.cfg.model_name,
        "scan": graph.scan,
        "n_tokens": graph.n_pos,
        "targets": [
            {"text": text, "id": token, "position": position, "weight": weight}
            for text, token, position, weight in rows
        ],
        "active_features": len(graph.active_features),
        "feature_nodes": layout.n_features,
        "nodes": layout.n_nodes,
        "edges": len(graph.edges),
        "replacement_score": scores.replacement,
        "completeness_score": scores.completeness,
        "strict_completeness_score": scores.strict_completeness,
        "worst_residual": graph.residual,
    }
    if graph.reconstruction is not None:
        summary["nmse"] = graph.reconstruction.nmse.tolist()
        summary["l0"] = graph.reconstruction.l0.tolist()
    if (kind := graph.provenance.get("transcoder", {}).get("kind")) is not None:
        summary["kind"] = kind
    for name in ("seconds", "interrupted", "memory_plan", "neurons", "warnings"):
        if name in graph.provenance:
            summary[name] = graph.provenance[name]
    if summary.get("interrupted"):
        summary["done"] = interruption(graph)
        summary["can_go_on"] = graph.unfinished is not None
    return summary
