"""`circuit-tracer aggregate`: what the graphs of a run have in common."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.many import Run
    from circuit_tracer.many.aggregate import Aggregate

SHOWN, SHOWN_FAMILIES = 5, 8
THRESHOLDS = (0.25, 0.5, 0.75, 0.9, 1.0)  # of the common circuit, that are printed


def aggregate(
    address: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its address (s3://...).")],
    *,
    label: Annotated[
        str, typer.Option("--label", metavar="COLUMN", help="The column of the prompts that groups them, or none.")
    ] = "label",
    positions: Annotated[
        str,
        typer.Option(
            "--positions",
            metavar="HOW",
            help="Features at other positions are the same (pooled), or not: by place from the end (end), or by the roles in "
            'a column, {"subject": 3, ...} a row.',
        ),
    ] = "pooled",
    pruning: options.Pruning,
    families: Annotated[
        int | None, typer.Option("--families", min=1, help="Families of prompts; default: as many as there are.")
    ] = None,
    names: options.FeatureNames = None,
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="Resamples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw them; needs matplotlib.")] = True,
    output: Annotated[
        str | None, options.output("Folder or address in which aggregate/ is written; default: the run's.")
    ] = None,
    json: options.Json = False,
) -> None:
    """What the graphs of a run have in common: features, edges, what separates labels, the common circuit, families of prompts.

    Writes tables (parquet), families.json and pictures into aggregate/ of the run.
    """
    from circuit_tracer.graph.figures import require_matplotlib
    from circuit_tracer.many import open_run
    from circuit_tracer.many.aggregate import FOLDER
    from circuit_tracer.many.aggregate import aggregate as aggregated
    from circuit_tracer.many.aggregate.pictures import draw
    from circuit_tracer.many.runs.store import Store

    if pictures:
        require_matplotlib()
    run = open_run(address)
    place = output or address
    Store.at(place).require_writable(FOLDER)
    with told() as report:
        found = aggregated(
            run,
            label=None if label == "none" else label,
            positions=positions,
            **asdict(pruning),
            families=families,
            names=_names(run, names),
            resamples=resamples,
            seed=seed,
            progress=lambda done: report("graphs", done, len(run.ids)),
        )
    files = found.write(place) + (draw(found, place) if pictures else [])
    summary = as_json(found, [f"{place.rstrip('/')}/{name}" for name in files])
    typer.echo(options.dump(summary) if json else as_text(summary))


def _names(run: Run, path: Path | None) -> dict[tuple[int, int], str]:
    """Those given; else of the embedded dictionary, if the run is of it."""
    from circuit_tracer.cli.serve import labels_of_run

    return labels_of_run(run.settings["opening"]["transcoders"], path) or {}


def as_json(found: Aggregate, files: list[str]) -> dict[str, Any]:
    """The most common, the surest, the largest, as plain values."""
    import numpy as np

    from circuit_tracer.many.aggregate.labels import speaking_for

    features, labels, view = found.features, found.labels, found.overview
    names = dict(zip(features["item"], features["name"], strict=True))
    common = np.lexsort((-features["influence"], -features["n_graphs"]))[:SHOWN]
    columns = ("item", "name", "frequency", "influence", "influence_low", "influence_high", "stability")
    tested = ("label", "item", "auc", "auc_low", "auc_high", "p", "q")
    surest = [row for label in dict.fromkeys(labels.get("label", ())) for row in speaking_for(labels, label, SHOWN)]
    return {
        "n_graphs": view["n_graphs"],
        "n_features": view["n_features"],
        "n_edges": view["n_edges"],
        "settings": view["settings"],
        "features": _rows(features, columns, common),
        "common": {name: values.tolist() for name, values in found.common.items()},
        "labels": [{**row, "name": names.get(row["item"], "")} for row in _rows(labels, tested, surest)],
        "families": [
            {"size": family["size"], "medoid": family["medoid"], "labels": family["labels"]}
            for family in view["families"]
        ],
        "files": files,
    }


def _rows(table: dict[str, Any], columns: tuple[str, ...], rows: Any) -> list[dict[str, Any]]:
    return [
        dict(zip(columns, (table[name][row : row + 1].tolist()[0] for name in columns), strict=True)) for row in rows
    ]


def as_text(summary: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"graphs     {summary['n_graphs']:,}",
        f"in any     {summary['n_features']:,} features, {summary['n_edges']:,} edges",
        "",
        f"{'in':>6}  {'influence':<22}most common features",
        *(
            f"{each['frequency']:>6.0%}  {each['influence']:.3f} ({each['influence_low']:.3f} to {each['influence_high']:.3f}) "
            f"{each['item']}  {each['name']}".rstrip()
            for each in summary["features"]
        ),
        "",
        f"{'at least in':>12}  {'features':>8}  {'edges':>7}  {'share of influence':>18}  {'under every pruning':>19}",
        *_curve(summary["common"]),
    ]
    if summary["labels"]:
        lines += ["", f"{'AUC':>5}  {'95 %':<14}{'q':<9}features of a label"]
        lines += [
            f"{each['auc']:>5.3f}  {each['auc_low']:.3f}-{each['auc_high']:.3f}   {each['q']:<9.2g}{each['label']}: "
            f"{each['item']}  {each['name']}".rstrip()
            for each in summary["labels"]
        ]
    families = summary["families"]
    lines += ["", f"families   {len(families)}" + ("" if len(families) > 1 else ": no groups stand out")]
    if len(families) > 1:
        for each in families[:SHOWN_FAMILIES]:
            labels = ", ".join(f"{name} {count}" for name, count in each["labels"].items())
            lines.append(f"{each['size']:>9}  such as {each['medoid']}" + (f" ({labels})" if labels else ""))
        if more := families[SHOWN_FAMILIES:]:
            lines.append(f"{sum(each['size'] for each in more):>9}  in {len(more)} more families")
    return "\n".join([*lines, "", *(f"wrote      {file}" for file in summary["files"])])


def _curve(common: dict[str, list[float]]) -> list[str]:
    lines = []
    for least in THRESHOLDS:
        row = next(row for row, value in enumerate(common["threshold"]) if value >= least - 1e-9)
        lines.append(
            f"{least:>12.0%}  {common['n_features'][row]:>8,}  {common['n_edges'][row]:>7,}  "
            f"{common['influence_features'][row]:>18.0%}  {common['steady_features'][row]:>9,} features"
        )
    return lines
