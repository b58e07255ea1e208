"""`circuit-tracer serve`: graphs of a folder, and a model to trace and test with, in the browser."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from circuit_tracer.graph import Graph
    from circuit_tracer.probes.probe import Probe
    from circuit_tracer.replacement_model import ReplacementModel

PORT = 8041
STOP_SECONDS = 1.0  # that a trace may take to end once Ctrl-C was pressed

Folder = Annotated[
    Path,
    typer.Option(
        "--graph-file-dir",
        help="Folder of graphs ({slug}.json); made if there is a model to trace with. Or the folder of a run.",
    ),
]
Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Port of 127.0.0.1; if it is taken, a free one is.")
]
FeaturesDir = Annotated[
    Path | None, typer.Option("--features-dir", help="Files of features; default: features/ in the folder of graphs.")
]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Labels for graphs made here: labels.json, or a folder of features."),
]
Open = Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")]


@dataclass(frozen=True)
class Shown(ModelOptions):
    """A model to trace with, if one is named."""

    required = False


def serve(
    *,
    graph_file_dir: Folder,
    chosen: Shown,
    port: Port = PORT,
    features_dir: FeaturesDir = None,
    labels: Labels = None,
    open_browser: Open = True,
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", help="Probe file, or a folder of them, for texts sent to api/monitor. Repeatable."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="L/F>X", help="A feature with a threshold, for such texts. Repeatable."),
    ] = None,
    neuronpedia_secret: Annotated[
        str | None,
        typer.Option(
            "--neuronpedia-secret",
            envvar="CIRCUIT_TRACER_NEURONPEDIA_SECRET",
            help="Speak Neuronpedia's graph-server protocol to those who send this secret.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the graphs of a folder in the browser; with -t or --demo, also trace, intervene and steer from there."""
    loaded = None
    probes = _probes(probe, feature, chosen.given)
    if chosen.given:
        from circuit_tracer.files import require_writable_folder

        require_writable_folder(graph_file_dir)
        loaded = chosen.open()
    run(
        graph_file_dir,
        port,
        features_dir,
        loaded,
        chosen.shipped,
        open_browser,
        neuronpedia_secret,
        labels,
        probes=probes,
        said=options.dump if json else None,
    )


def start_server(
    graph_file_dir: Folder, port: Port = PORT, features_dir: FeaturesDir = None, json: options.Json = False
) -> None:
    """Show the graphs of a folder: circuit-tracer's name for `serve`, without opening the browser."""
    run(graph_file_dir, port, features_dir, said=options.dump if json else None)


def run(
    folder: Path,
    port: int,
    features_dir: Path | None,
    model: ReplacementModel | None = None,
    demo: bool = False,
    open_browser: bool = False,
    neuronpedia_secret: str | None = None,
    labels: Path | None = None,
    quiet: bool = False,
    probes: Sequence[Probe] = (),
    said: Callable[[dict[str, str]], str] | None = None,
) -> None:
    """Serve a folder until Ctrl-C. demo: the model is the embedded one, whose features are at hand.

    labels: a file or folder of them; default: the embedded model's own, or else those of the folder of features. quiet: leave
    standard output to JSON. probes: watch texts that are sent to the server. said: makes a line of where the server answers,
    instead of words.
    """
    from circuit_tracer.viewer.server import serve as start
    from circuit_tracer.viewer.server.runs import is_run

    shipped = demo_features() if demo else None
    called = chosen_labels(labels, demo)
    if called is None and features_dir is None and is_run(folder):
        from circuit_tracer.many import open_run

        called = labels_of_run(open_run(folder).settings["opening"]["transcoders"])
    server = start(
        folder,
        None,
        features_dir or shipped,
        port,
        model=model,
        labels=called,
        neuronpedia_secret=neuronpedia_secret,
        probes=probes,
        open_browser=open_browser,
    )
    other = "" if port in (0, server.port) else f" (port {port} is taken)"
    try:
        if said is not None:
            typer.echo(said({"folder": str(folder), "url": server.url}))
        else:
            typer.echo(f"serving {folder} at {server.url}{other}; Ctrl-C ends it", err=quiet)
        server.wait()
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
    finally:
        if not server.stop(STOP_SECONDS):
            # A thread that is still at work in torch would be torn down by force, and abort. Files are whole at any moment.
            sys.stdout.flush()
            os._exit(0)


def _probes(files: list[str] | None, features: list[str] | None, model: bool) -> list[Probe]:
    """Read before the model is loaded."""
    if not files and not features:
        return []
    if not model:
        raise InputError("--probe and --feature watch what a model reads: name it with -t, or use --demo")
    from circuit_tracer.probes.monitor import feature_watch, named_probes

    return [*named_probes(files or ()), *map(feature_watch, features or ())]


def chosen_labels(path: Path | None, demo: bool) -> dict[tuple[int, int], str] | None:
    """Those of a file or folder; without one, those of the embedded dictionary if that is what is used."""
    if path is not None:
        from circuit_tracer.features.labels import chosen_labels as read

        return read(path)
    if demo:
        from circuit_tracer.demo import load_labels

        return load_labels()
    return None


def labels_of_run(transcoders: str, path: Path | None = None) -> dict[tuple[int, int], str] | None:
    """Those of a file or folder; without one, those of the embedded dictionary, if the run's manifest names that."""
    from circuit_tracer.demo import TRANSCODER
    from circuit_tracer.many.runs.manifest import portable

    return chosen_labels(path, transcoders == portable(TRANSCODER))


def keep_known(
    graph: Graph, labels: Path | None, demo: bool, features: Path | None = None
) -> dict[tuple[int, int], str]:
    """Put what a command knows of features into the graph that it will write; returns all labels, the given ones first.

    labels: a file, or a folder of features, whose examples are kept too. features: a folder of features. demo: those of the
    embedded dictionary.
    """
    from circuit_tracer.features.kept import keep_features

    called = chosen_labels(labels, demo) or {}
    folder = next((path for path in (features, labels) if path is not None and path.is_dir()), None)
    keep_features(graph, folder or (demo_features() if demo else None), called)
    return {**graph.labels, **called}


def demo_features() -> Path | None:
    """Features of the embedded dictionary, if they are here."""
    from circuit_tracer.demo import demo_folder

    shipped = demo_folder() / "features"
    return shipped if shipped.is_dir() else None
