"""`circuit-tracer convert`: graphs between file formats, transcoders of any layout to the native one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import HookOptions


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Graph file; or folder or hub id of transcoders.")],
    *,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File (its ending says the format), or folder.")],
    to: Annotated[
        Literal["native", "pt", "viewer", "graphml", "node-link"] | None,
        typer.Option("--to", help="Format of a graph file, where its ending does not say; .json is the viewers'."),
    ] = None,
    pruning: options.Pruning,
    target: Annotated[
        Literal["local", "neuronpedia"],
        typer.Option("--for", help="Which viewers a .json is for: neuronpedia has stricter rules, which are checked."),
    ] = "local",
    scan: Annotated[
        str | None,
        typer.Option("--scan", help="Name of the transcoders in a .json; Neuronpedia's id of the model with --for."),
    ] = None,
    source_set: Annotated[
        str | None, typer.Option("--source-set", help="Neuronpedia's name of the transcoders, for a .json.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Labels for a .json: labels.json, or a folder of features.")
    ] = None,
    view: Annotated[
        str | None, typer.Option("--view", help="Link to a viewer's page whose pins and supernodes a .json shall have.")
    ] = None,
    hooks: HookOptions,
) -> None:
    """Convert a graph file, or transcoders.

    Graphs: .safetensors (native), .pt (circuit-tracer), .graphml and node-link JSON (networkx), and, to write only, .json for
    viewers, pruned by the thresholds. Transcoders of any known layout become native files and a config.yaml.
    """
    from circuit_tracer.files import require_writable_folder

    if not Path(source).is_file():
        require_writable_folder(output)
        from circuit_tracer.transcoders.loading import save_transcoders

        transcoders, config = hooks.dictionary(source)
        save_transcoders(transcoders, output, config.get("model_name"))
    else:
        from circuit_tracer.graph.files.formats import format_of, read_graph, write_graph

        kind = to or ("viewer" if output.suffix == ".json" else format_of(output))
        require_writable_folder(output.parent)
        graph = read_graph(Path(source))
        if kind == "viewer":
            from circuit_tracer.features.labels import read_labels
            from circuit_tracer.graph.files.view import View

            output = graph.to_json(
                output.stem,
                output.parent,
                **asdict(pruning),
                target=target,
                scan=scan,
                feature_details={} if source_set is None else {"neuronpedia_source_set": source_set},
                labels={} if labels is None else read_labels(labels),
                view=None if view is None else View.from_url(view),
            )
        else:
            write_graph(graph, output, kind)
    typer.echo(f"wrote {output}")
