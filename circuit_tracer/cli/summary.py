"""What a graph amounts to, as plain values and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


def summarise(graph: Graph) -> dict[str, Any]:
    """Targets, sizes, scores, reconstruction and worst residual of a graph, as JSON values."""
    from circuit_tracer.graph import graph_scores
    from circuit_tracer.graph.files.viewer_json import interruption

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


def as_text(summary: dict[str, Any], files: Sequence[Path] = (), verbose: bool = False) -> str:
    """The summary for people, a line each."""
    targets = "  ".join(f"{target['text']!r} {target['weight']:.3f}" for target in summary["targets"])
    active, noun, scored = summary["active_features"], "features", ""
    if "neurons" in summary:
        scored = " (other neurons count as errors)"
        noun = "features and neurons"
    if summary.get("kind") == "neurons":
        active, noun = summary["neurons"]["of"], "neurons"
    lines = [
        ("prompt", repr(summary["prompt"])),
        ("targets", targets),
        (
            "nodes",
            f"{summary['feature_nodes']:,} of {active:,} active {noun}, {summary['nodes']:,} in all, "
            f"{summary['edges']:,} edges",
        ),
        (
            "scores",
            f"replacement {summary['replacement_score']:.3f}, completeness {summary['completeness_score']:.3f}{scored}",
        ),
    ]
    if summary.get("interrupted"):
        more = "; attribute --resume goes on" if summary["can_go_on"] else ""
        lines.insert(0, ("state", f"interrupted: {summary['done']} have their edges{more}"))
    if "neurons" in summary:
        of, share = summary["neurons"]["of"], summary["neurons"]["share_of_effect"]
        kept = f"the nodes hold {share:.1%} of the effects of all {of:,}; the rest are in other neurons"
        lines.append(("neurons", kept))
    elif "nmse" in summary:
        nmse, l0 = summary["nmse"], summary["l0"]
        worst = max(range(len(nmse)), key=nmse.__getitem__)
        lines.append(
            (
                "transcoder",
                f"NMSE {sum(nmse) / len(nmse):.3f} on average, {nmse[worst]:.3f} in layer {worst}; "
                f"L0 {sum(l0) / len(l0):.1f} a layer and position",
            )
        )
    if summary["worst_residual"] is not None:
        lines.append(("residual", f"{summary['worst_residual']:.1e}, the worst of any row (relative)"))
    if verbose and "memory_plan" in summary:
        lines.append(("memory", summary["memory_plan"]))
    lines += [("warning", text) for text in summary.get("warnings", ())]
    if "seconds" in summary:
        lines.append(("time", f"{summary['seconds']:.2f} s"))
    lines += [("wrote", str(path)) for path in files]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)
