"""`circuit-tracer mcp`: tools for assistants, over the Model Context Protocol."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from circuit_tracer.cli.serve import FeaturesDir, Labels, Shown, chosen_labels, demo_features


def mcp(
    *,
    folder: Annotated[
        Path,
        typer.Option(
            "-o",
            "--folder",
            help="Folder of graphs, made if needed: what the tools read, and where they write new graphs.",
        ),
    ],
    chosen: Shown,
    features_dir: FeaturesDir = None,
    labels: Labels = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve HTTP at 127.0.0.1 instead of standard input and output.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of 127.0.0.1, with --http.")] = 8042,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Longest prompt that is read.")] = 512,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Longest that a call may take.")] = 300.0,
) -> None:
    """Serve tools to assistants: read graphs, trace prompts and test what graphs say, over the Model Context Protocol.

    An assistant starts this command itself and speaks to it by standard input and output; docs/reference/mcp.md shows how to
    add it. Without -t or --demo there is no model, and graphs are read alone.
    """
    from circuit_tracer.errors import InputError
    from circuit_tracer.extras import missing_extra
    from circuit_tracer.features.folder import INDEX, FeatureFolder
    from circuit_tracer.features.labels import read_labels

    try:
        from circuit_tracer.assistants.limits import Limits
        from circuit_tracer.assistants.server import make_server
        from circuit_tracer.assistants.serving import PATH, serve_http, serve_stdio
        from circuit_tracer.assistants.workplace import Model, Workplace, open_folder
    except ImportError as error:
        raise missing_extra("tools for assistants", error, "mcp") from error
    from circuit_tracer.viewer.server.running import HOST, listening_socket

    graphs = open_folder(folder)
    features = features_dir or (demo_features() if chosen.shipped else graphs.folder / "features")
    if features_dir is not None and not features_dir.is_dir():
        raise InputError(f"no folder of features at {features_dir}")
    called = chosen_labels(labels, chosen.shipped)
    if called is None:
        called = read_labels(features) if features is not None and features.is_dir() else {}
    records = FeatureFolder(features) if features is not None and (features / INDEX).is_file() else None
    model = Model(lambda: chosen.open(traces=True)) if chosen.given else None
    listening = listening_socket(port, or_another=False) if http else None
    server = make_server(Workplace(graphs, model, called, records, Limits(max_tokens, seconds)))
    if model is not None:
        model.open_soon()
    try:
        if listening is None:
            typer.echo(f"serving tools on {graphs.folder} by standard input and output", err=True)
            serve_stdio(server)
        else:
            typer.echo(f"serving tools on {graphs.folder} at http://{HOST}:{port}{PATH}; Ctrl-C ends it", err=True)
            serve_http(server, listening)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        _end()
    if model is not None and model.state == "opening":
        _end()


def _end() -> None:
    """End at once: a thread that waits for input, or is at work in torch, would keep the process. Files are always whole."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
