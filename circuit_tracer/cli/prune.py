"""`circuit-tracer prune`: prune a graph that was traced before, with other thresholds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.outputs import Outputs
from circuit_tracer.errors import InputError


def prune(
    graph: Annotated[
        Path, typer.Argument(autocompletion=graphs, help="Graph file: .safetensors, or circuit-tracer's .pt.")
    ],
    *,
    output: Annotated[Path | None, options.output("Write the pruned graph: .safetensors, or .pt.")] = None,
    slug: options.Slug = None,
    graph_file_dir: options.GraphFileDir = None,
    overwrite: options.Overwrite = False,
    pruning: options.Pruning,
    json: options.Json = False,
) -> None:
    """Prune a graph file again.

    Prints what is left, and writes it for a viewer or as a graph file.
    """
    if (slug is None) != (graph_file_dir is None):
        raise InputError("viewer files need both --slug and --graph-file-dir")
    pruned_file = Outputs(output, None, pruning).check([""])
    viewer = Outputs(None, graph_file_dir, pruning, overwrite=overwrite).check([slug or ""])
    from circuit_tracer.graph import graph_scores, prune_graph
    from circuit_tracer.graph.files.native import as_graph
    from circuit_tracer.graph.subgraph import subgraph
    from circuit_tracer.graph.words import feature_noun, is_of_neurons

    whole = as_graph(graph)
    result = prune_graph(whole, **asdict(pruning))
    layout, scores = whole.nodes.layout, graph_scores(whole, result.node_mask)
    files = pruned_file.write(subgraph(whole, result), "") + viewer.write(whole, slug or "")
    summary: dict[str, Any] = {
        "features": int(result.node_mask[layout.features].sum()),
        "features_before": layout.n_features,
        "errors": int(result.node_mask[layout.errors].sum()),
        "nodes": int(result.node_mask.sum()),
        "edges": int(result.kept_edges.sum()),
        "edges_before": len(whole.edges),
        "replacement_score": scores.replacement,
        "completeness_score": scores.completeness,
        "files": [str(path) for path in files],
    }
    typer.echo(
        options.dump(summary)
        if json
        else _text(summary, feature_noun(whole), "of other neurons" if is_of_neurons(whole) else "errors")
    )


def _text(summary: dict[str, Any], noun: str, others: str) -> str:
    kept = (
        f"{summary['nodes']:,}: {summary['features']:,} of {summary['features_before']:,} {noun}s, "
        f"{summary['errors']:,} {others}, all tokens and targets"
    )
    scores = f"replacement {summary['replacement_score']:.3f}, completeness {summary['completeness_score']:.3f}"
    lines = [
        ("nodes", kept),
        ("edges", f"{summary['edges']:,} of {summary['edges_before']:,}"),
        ("scores", f"{scores} (what was pruned counts as error)"),
        *(("wrote", path) for path in summary["files"]),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)
