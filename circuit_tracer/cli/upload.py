"""`circuit-tracer upload`: a graph, and its features, to Neuronpedia."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.outputs import is_viewer_json, refuse_thresholds
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.graph.files.view import View


def upload(
    ctx: typer.Context,
    *,
    graph: Annotated[
        Path,
        typer.Argument(
            autocompletion=graphs, help="Graph: .safetensors, circuit-tracer's .pt, or JSON exported for Neuronpedia."
        ),
    ],
    model_id: Annotated[
        str | None, typer.Option("--model-id", help="Neuronpedia's name of the model, such as gemma-2-2b.")
    ] = None,
    source_set: Annotated[
        str | None, typer.Option("--source-set", help="Its name of the transcoders, where it has their features.")
    ] = None,
    slug: Annotated[str | None, typer.Option("--slug", help="Name of the graph; default: that of the file.")] = None,
    view: Annotated[
        str | None,
        typer.Option("--view", help="Link to a viewer's page whose pins, supernodes and labels it shall have."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Folder of built features: their labels, and with --with-features they too."),
    ] = None,
    with_features: Annotated[
        bool, typer.Option("--with-features", help="Send the features of the graph to --source-set as well.")
    ] = False,
    thresholds: options.Thresholds,
    host: Annotated[str | None, typer.Option("--host", help="Another Neuronpedia; or NEURONPEDIA_HOST.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and send nothing.")] = False,
    json: options.Json = False,
) -> None:
    """Upload a graph to Neuronpedia and print its link.

    The key is in NEURONPEDIA_API_KEY. What Neuronpedia would refuse or show blank is said before anything is sent.
    """
    from circuit_tracer.features.folder import FeatureFolder
    from circuit_tracer.features.labels import read_labels
    from circuit_tracer.graph.files.read_json import features_of
    from circuit_tracer.graph.files.view import View
    from circuit_tracer.neuronpedia import Neuronpedia
    from circuit_tracer.viewer.upload import Parcel, graph_link, upload_features, upload_graph

    if with_features and (features is None or source_set is None):
        raise InputError("--with-features needs --features FOLDER and --source-set NAME")
    labels = {} if features is None else read_labels(features)
    chosen = None if view is None else View.of_link(view)
    if is_viewer_json(graph):
        refuse_thresholds(ctx, graph)
        _refuse_said({"--model-id": model_id, "--source-set": source_set, "--slug": slug}, graph)
        document = _exported(graph, chosen, labels)
    else:
        document = _document(graph, model_id, source_set, slug, chosen, labels, thresholds)
    parcel, server = Parcel.of(document), Neuronpedia.from_environment(host)
    size = f"{len(parcel.data):,} bytes, {len(document['nodes'])} nodes, {len(document['links'])} links"
    found = {
        "slug": parcel.slug,
        "model_id": parcel.model_id,
        "bytes": len(parcel.data),
        "nodes": len(document["nodes"]),
        "links": len(document["links"]),
        "sent": not dry_run,
    }
    if dry_run:
        if json:
            typer.echo(options.dump({**found, "features": 0, "link": graph_link(server, parcel)}))
            return
        typer.echo(f"would upload {parcel.slug} for {parcel.model_id} ({size}) to {graph_link(server, parcel)}")
        return
    sent = 0
    if with_features and features is not None and source_set is not None:
        places = set(features_of(document))
        sent = upload_features(server, FeatureFolder(features), parcel.model_id, source_set, places, labels)
        typer.echo(f"uploaded {sent} features to {source_set}", err=json)
    link = upload_graph(server, parcel)
    typer.echo(
        options.dump({**found, "features": sent, "link": link}) if json else f"uploaded {parcel.slug} ({size}): {link}"
    )


def _refuse_said(given: dict[str, str | None], graph: Path) -> None:
    """Refuse options whose values an exported file holds."""
    if idle := [name for name, value in given.items() if value]:
        raise InputError(f"{graph} says that itself: leave {', '.join(idle)} out, or give the graph's own file")


def _exported(graph: Path, view: View | None, labels: dict[tuple[int, int], str]) -> Any:
    """An exported file: as it is, but for what other programs wrote so that viewers do not show it, a view that is asked for,
    and labels where it has none.
    """
    from circuit_tracer.graph.files.read_json import load_viewer_json
    from circuit_tracer.graph.files.repair import repaired
    from circuit_tracer.viewer.document import labelled, with_view

    mended, repairs = repaired(load_viewer_json(graph))
    if repairs:
        typer.echo(f"mended before it is sent: {'; '.join(repairs)}", err=True)
    document = labelled(mended, labels)
    return document if view is None else with_view(document, view)


def _document(
    graph: Path,
    model_id: str | None,
    source_set: str | None,
    slug: str | None,
    view: View | None,
    labels: dict[tuple[int, int], str],
    thresholds: options.Thresholds,
) -> Any:
    """The graph as Neuronpedia wants it."""
    import json

    from circuit_tracer.graph.files.native import as_graph
    from circuit_tracer.graph.files.viewer_json import graph_document

    if model_id is None:
        raise InputError("Neuronpedia keeps graphs by model: name one of its ids with --model-id, such as gemma-2-2b")
    details = {} if source_set is None else {"neuronpedia_source_set": source_set}
    made = graph_document(
        as_graph(graph),
        slug or graph.stem,
        model_id,
        **asdict(thresholds),
        target="neuronpedia",
        labels=labels,
        feature_details=details,
        view=view,
    )
    return json.loads(made.text)
