"""`circuit-tracer view`: a graph, or a run over many prompts, as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.outputs import given_options, is_viewer_json, name_of, refuse_thresholds
from circuit_tracer.errors import FileFormatError, InputError


def view(
    ctx: typer.Context,
    *,
    graph: Annotated[
        str | None,
        typer.Argument(
            autocompletion=graphs,
            help="Graph: .safetensors, circuit-tracer's .pt, or a viewer's .json (or .json.gz), shown as it is; or the folder "
            "or address of a run. Without one the page offers to open a file.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        options.output(
            "The page to write; default: beside the graph (of an address: here), with its name, as .html; else viewer.html."
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = False,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features",
            help="Folder of built features: examples, and labels where the graph has none, enter the page.",
        ),
    ] = None,
    thresholds: options.Thresholds,
    json: options.Json = False,
) -> dict[str, str]:
    """Write a graph, or a run with its graphs, as one page that opens offline, viewer and all.

    A grouped graph is pruned as it was for its groups, if no thresholds are given.
    """
    from circuit_tracer.files.places import is_address

    of_run = graph is not None and (is_address(graph) or Path(graph).is_dir())
    if graph is None:
        page = _write_empty(output or Path("viewer.html"), features)
    elif of_run:
        page = _write_run(graph, output, features, thresholds)
    else:
        page = _write(ctx, Path(graph), output, features, thresholds)
    options.say_written([page], json)
    if open_page:
        typer.launch(str(page))
    return {"kind": "run"} if of_run else {}


def _write_empty(output: Path, features: Path | None) -> Path:
    """A page that opens graphs. Raises InputError for features, which are of one graph."""
    from circuit_tracer.files import atomic_write
    from circuit_tracer.viewer.page import empty_page

    if features is not None:
        raise InputError("--features has no effect without a graph: name the graph too")
    with atomic_write(output) as temporary:
        temporary.write_text(empty_page(), encoding="utf-8")
    return output


def _write(
    ctx: typer.Context, graph: Path, output: Path | None, features: Path | None, thresholds: options.Thresholds
) -> Path:
    from circuit_tracer.features.folder import FeatureFolder
    from circuit_tracer.features.labels import read_labels
    from circuit_tracer.graph.files.native import as_graph
    from circuit_tracer.graph.graph import Graph
    from circuit_tracer.viewer.document import grouped_at
    from circuit_tracer.viewer.page import write_page

    if is_viewer_json(graph):
        refuse_thresholds(ctx, graph)
    shown = _showable(graph) if is_viewer_json(graph) else as_graph(graph)
    given = {name: value for name, value in asdict(thresholds).items() if given_options(ctx, [name])}
    if isinstance(shown, Graph):
        _say_of_groups(grouped_at(shown), given)
    return write_page(
        shown,
        output or graph.with_name(f"{name_of(graph)}.html"),
        features=None if features is None else FeatureFolder(features),
        labels=None if features is None else read_labels(features),
        slug=name_of(graph),
        **given,
    )


def _say_of_groups(made_at: Mapping[str, Any], given: Mapping[str, float]) -> None:
    """That shares among groups are others than in their picture and story, where the page is pruned otherwise."""
    others = {name: made_at[name] for name, value in given.items() if made_at.get(name, value) != value}
    if others:
        made = " and ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in others.items())
        typer.echo(
            f"the groups were made at {made}: they stay as they are, and shares among them may differ from those of their "
            f"picture and story; `circuit-tracer group` with the thresholds given here groups the nodes anew",
            err=True,
        )


def _write_run(run: str, output: Path | None, features: Path | None, thresholds: options.Thresholds) -> Path:
    from circuit_tracer.cli.serve import labels_of_run
    from circuit_tracer.many import open_run
    from circuit_tracer.viewer.run import write_run_page

    found = open_run(run)
    labels = labels_of_run(found.settings["opening"]["transcoders"], features)
    return write_run_page(found, output or _beside(run), labels=labels, **asdict(thresholds))


def _beside(run: str) -> Path:
    """Where the page of a run goes: beside its folder, or, of one at an address, here."""
    from circuit_tracer.files.places import is_address

    folder = run.rstrip("/").rpartition("/")[2] if is_address(run) else Path(run).absolute()
    return Path(f"{folder}.html")


def _showable(path: Path) -> dict[str, Any]:
    """Viewer JSON that a page can show. Raises FileFormatError for other."""
    from circuit_tracer.graph.files.read_json import load_viewer_json
    from circuit_tracer.viewer.document import unshowable

    document = load_viewer_json(path)
    if problems := unshowable(document):
        raise FileFormatError(
            f"a page could show nothing of {path}: {'; '.join(problems)}. Export the graph again from its own file "
            "(circuit-tracer convert GRAPH.safetensors -o OUT.json), or mend the file"
        )
    return document
