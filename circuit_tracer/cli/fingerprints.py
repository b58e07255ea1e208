"""`circuit-tracer fingerprints`: a run's graphs as vectors, and what can be predicted from them, beside the baselines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import quiet_loading
from circuit_tracer.progress import told


def fingerprints(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its address (s3://...).")],
    *,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="Predict this column, which has two values, or see --positive."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            "--positive", metavar="VALUE", help="The value to predict; default: the true one of true and false."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups", metavar="COLUMN", help="Rows with one value here are never learned from and tested on at once."
        ),
    ] = None,
    thresholds: options.Thresholds,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Parts of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of folds, classifiers and random dictionary.")] = 0,
    output: Annotated[
        str | None, options.output("Folder or address in which fingerprints/ is written; default: the run's.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a vector of numbers for each graph of a run, and say how well a label can be told from them.

    Always beside it: logits alone, a linear probe on the model's activations, and the same vector with a random dictionary, for
    which all prompts are traced once more. Tables go into fingerprints/ of the run.
    """
    from circuit_tracer.many import open_run
    from circuit_tracer.many.fingerprints import (
        FOLDER,
        evidence_of,
        matrix_of,
        predict,
        split,
        write_fingerprints,
        write_prediction,
    )
    from circuit_tracer.many.runs.store import Store

    subject, pruned = open_run(run), asdict(thresholds)
    place = subject.store if output is None else Store.at(output)
    place.require_writable(FOLDER)
    if label is None:
        found = matrix_of(subject, **pruned)
        file = write_fingerprints(place, found)
        said: dict[str, Any] = {"rows": len(found.ids), "numbers": len(found.names), "files": [file]}
        text = f"{len(found.ids):,} graphs, {len(found.names)} numbers each\n\nwrote      {file}"
    else:
        labels, of_group = subject.values(label), None if groups is None else subject.values(groups)
        asked: dict[str, Any] = {"positive": positive, "folds": folds, "seed": seed}
        split(subject.ids, labels, of_group, **asked)  # what cannot be predicted is refused before the work
        quiet_loading()
        with told() as report:
            evidence = evidence_of(
                subject, **pruned, seed=seed, progress=lambda stage, done: report(stage, done, len(subject.ids))
            )
        prediction = predict(evidence, labels, of_group, **asked)
        files = write_prediction(place, evidence, prediction)
        said = {**prediction.to_json(), "files": files}
        text = "\n".join([*prediction.lines(), "", *(f"wrote      {file}" for file in files)])
    typer.echo(options.dump(said) if json else text)
