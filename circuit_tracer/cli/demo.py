"""`circuit-tracer demo`: the small model that ships with the package, and the recipe that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.frame import add, flat, new_app
from circuit_tracer.cli.loading import quiet_loading

app = new_app(help="Trace a prompt on the built-in small model.", invoke_without_command=True)


@app.callback()
@flat
def demo(
    ctx: typer.Context,
    prompt: Annotated[str | None, options.text("-p", "--prompt", help="Another prompt about the demo's world.")] = None,
    swap: Annotated[
        str | None,
        typer.Option(
            "--swap",
            metavar="NAME",
            help="State or country whose features are put in the place of those that the prompt is about.  [default: "
            "California]",
        ),
    ] = None,
    output: Annotated[Path, options.output("Folder for the graph, its story and its picture.")] = Path("out"),
    json: options.Json = False,
) -> None:
    """Trace a two-hop prompt on the small model that ships with the package, and tell what it did, with the evidence."""
    if ctx.invoked_subcommand is None:
        from circuit_tracer.demo.show import main

        quiet_loading()
        with options.only_json(json):
            shown = main(output, prompt, swap)
        if json:
            from circuit_tracer.graph.summary import summarise

            told = {"slug": shown.slug, **summarise(shown.graph), "story": shown.graph.story, "files": shown.files}
            typer.echo(options.dump(told))


@add(app)
def train(
    output: Annotated[Path, options.output("Folder for the trained model and transcoder.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Model seed; default: that of the shipped one.")] = None,
    transcoder_seed: Annotated[
        int | None, typer.Option("--transcoder-seed", help="Transcoder seed; default: that of the shipped one.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Train the demo's model and transcoder again (many minutes on one core), and print the metrics."""
    from circuit_tracer.demo.recipe import train as run

    seeds: dict[str, Any] = {"seed": seed, "transcoder_seed": transcoder_seed}
    with options.only_json(json):
        metrics = run(output, **{name: number for name, number in seeds.items() if number is not None})
    if json:
        typer.echo(options.dump({"metrics": metrics, "files": [str(output)]}))


@add(app)
def features(
    folder: Annotated[
        Path, typer.Argument(help="Folder with model, transcoder and labels.json, as `demo train` writes it.")
    ],
    json: options.Json = False,
) -> None:
    """Build the demo's feature pages again, into FOLDER/features (seconds; `demo train` does it too)."""
    from circuit_tracer.demo.features import build_demo_features

    quiet_loading()
    options.say_written([build_demo_features(folder)], json)
