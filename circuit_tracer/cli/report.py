"""`circuit-tracer report`: what a run says of a model, for somebody who must decide."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import quiet_loading
from circuit_tracer.progress import told


def report(
    run: Annotated[str, typer.Argument(help="Folder or address of a run that circuit-tracer run made.")],
    *,
    label: Annotated[str, typer.Option("--label", help="Column whose values are told apart, or none.")] = "label",
    expected: Annotated[
        str | None, typer.Option("--expected", help="Column of right answers, compared with the most probable token.")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option("--groups", help="Column of rows that belong together, such as variants of one prompt."),
    ] = None,
    steered: Annotated[int, typer.Option("--steered", min=1, help="Prompts that a group is steered on, at most.")] = 40,
    validated: Annotated[int, typer.Option("--validated", min=0, help="Graphs tested by intervention.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Seed of halves, samples and resamples.")] = 0,
    names: options.FeatureNames = None,
    device: Annotated[str | None, typer.Option("--device", help="A device of the run's kind.")] = None,
    output: Annotated[
        str | None,
        options.output("Folder or address for report.html and report.json; default: report/ in the run."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Rates of behaviour, how far graphs can be trusted, features that separate labels, what steering them does."""
    from circuit_tracer.cli.serve import labels_of_run
    from circuit_tracer.many import open_run
    from circuit_tracer.many.report import Options, as_html, make_report
    from circuit_tracer.many.runs.store import Store

    quiet_loading()
    opened = open_run(run)
    place, folder = (opened.store, "report/") if output is None else (Store.at(output), "")
    place.require_writable(folder)
    model = opened.open_model(device)
    asked = Options(None if label == "none" else label, expected, groups, steered, validated, seed)
    with told() as progress:
        named = labels_of_run(opened.settings["opening"]["transcoders"], names)
        made = make_report(opened, model, asked, progress, named)
    text, page = options.dump(made.to_json()), as_html(made, f"Report on {PurePath(run).name}")
    for name, content in (("report.html", page), ("report.json", text)):
        place.write(folder + name, content.encode())
    wrote = [f"wrote      {place.where(folder + name)}" for name in ("report.html", "report.json")]
    typer.echo(text if json else "\n".join([*made.conclusions, "", *wrote]))
