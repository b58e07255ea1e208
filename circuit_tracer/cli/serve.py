"""`circuit-tracer serve`: graphs of a folder, and a model to trace and test with, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import edit_options, options

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

PORT = 8041

Folder = Annotated[
    Path,
    typer.Option("--graph-file-dir", help="Folder of graphs ({slug}.json); made if there is a model to trace with."),
]
Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Port of 127.0.0.1; if it is taken, a free one is.")
]
FeaturesDir = Annotated[
    Path | None, typer.Option("--features-dir", help="Files of features; default: features/ in the folder of graphs.")
]
Open = Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")]


def serve(
    graph_file_dir: Folder,
    transcoder_set: edit_options.Transcoders = None,
    model: edit_options.Model = None,
    demo: edit_options.Demo = False,
    port: Port = PORT,
    features_dir: FeaturesDir = None,
    open_browser: Open = True,
    neuronpedia_secret: Annotated[
        str | None,
        typer.Option(
            "--neuronpedia-secret",
            envvar="CIRCUIT_TRACER_NEURONPEDIA_SECRET",
            help="Speak Neuronpedia's graph-server protocol to those who send this secret.",
        ),
    ] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Show the graphs of a folder in the browser; with -t or --demo, also trace, intervene and steer from there."""
    loaded = None
    if transcoder_set is not None or demo:
        from circuit_tracer.files import require_writable_folder

        require_writable_folder(graph_file_dir)
        loaded = edit_options.load_pair(transcoder_set, model, demo, device, dtype)
    run(graph_file_dir, port, features_dir, loaded, demo, open_browser, neuronpedia_secret)


def start_server(
    graph_file_dir: Folder, port: Port = PORT, features_dir: FeaturesDir = None, debug: options.Debug = False
) -> None:
    """Show the graphs of a folder: circuit-tracer's name for `serve`, without opening the browser."""
    run(graph_file_dir, port, features_dir)


def run(
    folder: Path,
    port: int,
    features_dir: Path | None,
    model: ReplacementModel | None = None,
    demo: bool = False,
    open_browser: bool = False,
    neuronpedia_secret: str | None = None,
) -> None:
    """Serve a folder until Ctrl-C. demo: the model is the embedded one, whose labels and features are at hand."""
    from circuit_tracer.viewer.server import serve as start

    labels, shipped = _demo_extras() if demo else (None, None)
    server = start(
        folder,
        None,
        features_dir or shipped,
        port,
        model=model,
        labels=labels,
        neuronpedia_secret=neuronpedia_secret,
        open_browser=open_browser,
    )
    other = "" if port in (0, server.port) else f" (port {port} is taken)"
    try:
        typer.echo(f"serving {folder} at {server.url}{other}; Ctrl-C ends it")
        server.wait()
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
    finally:
        server.stop()


def _demo_extras() -> tuple[Any, Path | None]:
    """Labels of the embedded dictionary, and its features if they are here."""
    from circuit_tracer.demo import demo_folder, load_labels

    shipped = demo_folder() / "features"
    return load_labels(), shipped if shipped.is_dir() else None
