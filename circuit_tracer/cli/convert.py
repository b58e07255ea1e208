"""`circuit-tracer convert`: graphs between file formats, transcoders of any layout to the native one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.loading import HookOptions
from circuit_tracer.cli.outputs import given_options, may_replace
from circuit_tracer.errors import InputError

_OF_VIEWERS = (
    "node_threshold",
    "edge_threshold",
    "policy",
    "target",
    "scan",
    "source_set",
    "labels",
    "view",
    "overwrite",
)


def convert(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="IN", autocompletion=graphs, help="Graph file; or folder or hub id of transcoders.")
    ],
    *,
    output: Annotated[Path, options.output("File, whose ending says the format; of transcoders, a folder.")],
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
    overwrite: options.Overwrite = False,
    hooks: HookOptions,
    json: options.Json = False,
) -> dict[str, str]:
    """Convert a graph file, or transcoders.

    Graphs: .safetensors (native), .pt (circuit-tracer), .graphml and node-link JSON (networkx), and, to write only, .json for
    viewers, pruned by the thresholds. Transcoders of any known layout become native files and a config.yaml.
    """
    idle = given_options(ctx, _OF_VIEWERS)
    if not options.means_a_file(source):
        if idle:
            raise InputError(f"{', '.join(idle)}: these are of a viewer's .json, and {source} is no graph file")
        options.say_written([_transcoders(source, output, hooks)], json)
        return {"kind": "transcoders"}
    from circuit_tracer.files import require_writable_file
    from circuit_tracer.graph.files.formats import format_of, read_graph, write_graph

    kind = to or ("viewer" if output.suffix == ".json" else format_of(output))
    if idle and kind != "viewer":
        raise InputError(
            f"{', '.join(idle)}: these are of a viewer's .json, and {output} becomes {kind}; leave them out"
        )
    require_writable_file(output)
    if kind != "viewer":
        write_graph(read_graph(Path(source)), output, kind)
    else:
        from circuit_tracer.features.labels import chosen_labels
        from circuit_tracer.graph.files.view import View

        named = {} if labels is None else chosen_labels(labels)
        chosen = None if view is None else View.of_link(view)
        if not overwrite:
            may_replace(output.parent, [output.stem])
        output = read_graph(Path(source)).to_json(
            output.stem,
            output.parent,
            **asdict(pruning),
            target=target,
            scan=scan,
            feature_details={} if source_set is None else {"neuronpedia_source_set": source_set},
            labels=named,
            view=chosen,
        )
    options.say_written([output], json)
    return {}


def _transcoders(source: str, output: Path, hooks: HookOptions) -> Path:
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.transcoders.loading import save_transcoders

    require_writable_folder(output)
    transcoders, config = hooks.dictionary(source)
    save_transcoders(transcoders, output, config.get("model_name"))
    return output
