"""`circuit-tracer demo`: the small model that ships with the package, and the recipe that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuit_tracer.cli import options

app = typer.Typer(help="Trace a prompt on the built-in small model.", invoke_without_command=True)


@app.callback()
def demo(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Another prompt about the demo's world.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the graph, its JSON and its picture.")
    ] = Path("out"),
    debug: options.Debug = False,
) -> None:
    """Trace a two-hop prompt on the small model that ships with the package."""
    if ctx.invoked_subcommand is None:
        from circuit_tracer.demo.show import main

        main(output, prompt)


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the trained model and transcoder.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of initialisation and data.")] = 0,
    debug: options.Debug = False,
) -> None:
    """Train the demo's model and transcoder again, and print the metrics."""
    from circuit_tracer.demo.recipe import train as run

    run(output, seed=seed)
