"""`circuit-tracer validate`: test a graph by the interventions that it predicts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.cli.serve import keep_known
from circuit_tracer.errors import InputError
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph
    from circuit_tracer.graph.validation import Measures, ValidationReport
    from circuit_tracer.transcoders.base import Transcoders


def validate(
    graph: Annotated[
        Path, typer.Argument(autocompletion=graphs, help="Graph file: .safetensors, or circuit-tracer's .pt.")
    ],
    *,
    output: Annotated[
        Path | None,
        options.output("Write the graph with its report here, as .safetensors; default: into the graph file."),
    ] = None,
    chosen: ModelOptions,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", help="NAME=FOLDER: measure another dictionary beside, such as a per-layer one."),
    ] = None,
    random_control: Annotated[
        bool, typer.Option("--random-control/--no-random-control", help="Measure a random dictionary beside.")
    ] = True,
    groups: Annotated[
        bool | None,
        typer.Option(
            "--groups/--no-groups",
            help="Take groups of nodes out at once too; default: the groups that the graph keeps.",
        ),
    ] = None,
    supernodes: Annotated[
        Path | None, typer.Option("--supernodes", help="The groups: those saved in a viewer's graph file.")
    ] = None,
    pruning: options.Pruning,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random directions, sets and dictionaries.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Interventions to a pass.")] = 16,
    json: options.Json = False,
) -> None:
    """Test a graph: ablate every kept node, perturb, remove the circuit, vary what was chosen, compare with controls.

    The report is printed, and kept in the graph file, where the viewer finds it.
    """
    target = output or graph
    if target.suffix != ".safetensors":
        raise InputError(f"{target} cannot hold the report; name a .safetensors file with -o")
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.graph.files.native import as_graph
    from circuit_tracer.interventions import validate as test

    require_writable_folder(target.parent)
    subject = as_graph(graph)
    keep_known(subject, None, chosen.shipped)
    grouped = read_groups(subject, groups, supernodes)
    loaded = chosen.open(traces=True)
    kept = f"interrupted: no report is kept, and {target} is as it was"
    with options.interruption(kept), told() as progress:
        report = test(
            subject,
            loaded,
            **asdict(pruning),
            controls=_controls(control, chosen),
            random_control=random_control,
            groups=grouped,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    subject.save(target)
    typer.echo(options.dump(report.to_json()) if json else f"{as_text(report)}\n\nwrote      {target}")


def read_groups(graph: Graph, wanted: bool | None, file: Path | None) -> dict[str, list[str]] | None:
    """Node ids by name of the groups to test: of features and errors; None: none."""
    if file is not None:
        from circuit_tracer.graph.files.read_json import from_json

        saved = from_json(file).graph["q_params"]["supernodes"]
        if not saved:
            raise InputError(f"{file} holds no supernode; group nodes in the viewer and save the view")
        if len({name for name, *_ in saved}) < len(saved):
            raise InputError(f"{file} has two supernodes of one name; give them different names in the viewer")
        return {name: members for name, *members in saved}
    from circuit_tracer.circuits import kept_grouping
    from circuit_tracer.circuits.naming import titles

    grouping = kept_grouping(graph) if wanted is not False else None
    if grouping is None:
        if wanted:
            raise InputError("the graph keeps no groups; group its nodes first: circuit-tracer group GRAPH")
        return None
    named = zip(titles(graph, grouping), grouping, strict=True)
    return {title: [*group.members] for title, group in named if group.role not in ("token", "logit")}


def _controls(texts: list[str] | None, chosen: ModelOptions) -> dict[str, Transcoders]:
    found = {}
    for text in texts or ():
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--control is {text!r}; write NAME=FOLDER, such as per-layer=transcoders/plt")
        found[name] = chosen.dictionary(folder)[0]
    return found


def as_text(report: ValidationReport) -> str:
    """The report for people: tables first, words last."""
    rows = {"graph": report.graph, **report.controls}
    lines = [
        f"prompt     {report.prompt!r}",
        f"target     {report.measure} of {report.target!r}: {report.graph.circuit['live'].clean:.3f}",
        f"kept       {report.graph.n_features:,} features, {report.graph.n_nodes:,} nodes, {report.graph.n_edges:,} edges "
        f"at {report.node_threshold:g} and {report.edge_threshold:g}; {report.graph.dictionary}",
        "",
        _line("predicted against measured", "edges", "slope", "nodes", "paths", "influence", "KL"),
    ]
    for name, measures in rows.items():
        for condition, effects in measures.effects.items():
            edges, nodes, paths = effects.edges, effects.nodes, effects.paths
            numbers = (
                edges.spearman,
                edges.slope,
                nodes.spearman,
                paths.spearman,
                effects.influence,
                effects.divergence,
            )
            lines.append(_line(f"  {name}, {condition}", *numbers))
    for title, stream in (("change of residual stream", True), ("change of MLP outputs", False)):
        if not (distances := _distances(rows)):  # neurons and their random control are not perturbed
            continue
        lines += ["", _line(title, *distances)]
        for name, measures in rows.items():
            for curve in (each for each in measures.curves if each.cosine):
                cosine, nmse = (curve.cosine, curve.nmse) if stream else (curve.mlp_cosine, curve.mlp_nmse)
                lines.append(_line(f"  {name}, {curve.kind}: cosine", *cosine))
                lines.append(_line(f"  {name}, {curve.kind}: NMSE", *nmse))
    lines += ["", _line(f"{report.measure} of the target", "clean", "without", "others", "only", "nothing")]
    for name, measures in rows.items():
        for condition, each in measures.circuit.items():
            chances = (each.clean, each.without, each.without_others, each.only, each.nothing)
            lines.append(_line(f"  {name}, {condition}", *chances))
    lines += ["", _line("shares", "explained", "errors", "unselected", "attention", "residual")]
    lines += [_shares(name, measures) for name, measures in rows.items()]
    lines += [
        "",
        _line("stability", "nodes", "edges"),
        _line("  thresholds", report.stability.nodes, report.stability.edges),
    ]
    lines += [_line(f"  {each.rows} rows", each.nodes, each.edges) for each in report.stability.rows]
    lines += _grouped(report) + _heads(report) + _scores(report)
    lines += ["", *report.verdict, "", *(report.distrust or ["Nothing was found that speaks against it."])]
    return "\n".join([*lines, "", f"time       {report.seconds:.1f} s"])


def _grouped(report: ValidationReport) -> list[str]:
    if report.groups is None:
        return []
    test = report.groups
    lines = ["", _line("groups taken out at once", "frozen", "paths say", "live", "members", "left", "random")]
    for each in sorted(test.effects, key=lambda effect: -abs(effect.measured["live"] or 0)):
        live, random = each.measured["live"], each.random
        values = (each.measured["constrained"], each.predicted["paths"], live, each.singles, each.left["live"])
        lines.append(_line(f"  {_shortened(each.name)}", *values, None if random is None else random.left))
    lines += [
        "",
        _line(f"{report.measure}, groups together", "clean", "without", "others", "only", "others", "nothing"),
    ]
    for condition, one in test.circuit.items():
        chances = (one.clean, one.without, one.without_others, one.only, one.only_others, one.nothing)
        lines.append(_line(f"  {condition}", *chances))
    return lines


def _shortened(title: str, width: int = 28) -> str:
    """A group's name, cut to the table."""
    return title if len(title) <= width else f"{title[: width - 1]}…"


def _heads(report: ValidationReport) -> list[str]:
    if report.heads is None:
        return []
    lines = ["", _line("heads of edges", "count", "Spearman", "slope", "worst")]
    for part, agreements in report.heads.agreement.items():
        for condition, each in agreements.items():
            lines.append(_line(f"  {part}, {condition}", str(each.count), each.spearman, each.slope, each.worst))
    return lines


def _scores(report: ValidationReport) -> list[str]:
    if report.scores is None:
        return []
    lines = ["", _line("nodes in scores of attention", "count", "Spearman", "slope", "worst")]
    for condition, each in report.scores.agreement.items():
        lines.append(_line(f"  {condition}", str(each.count), each.spearman, each.slope, each.worst))
    return lines


def _distances(rows: dict[str, Measures]) -> list[str]:
    reached = max((len(curve.count) for measures in rows.values() for curve in measures.curves), default=0)
    return [f"+{passed}" for passed in range(1, reached + 1)]


def _shares(name: str, measures: Measures) -> str:
    shares = measures.accounting
    residual = "-" if shares.residual is None else f"{shares.residual:.1e}"
    return _line(f"  {name}", shares.explained, shares.errors, shares.unselected, shares.attention, residual)


def _line(title: str, *cells: Any) -> str:
    shown = (each if isinstance(each, str) else "-" if each is None else f"{each:.3g}" for each in cells)
    return f"{title:<32}" + "".join(f"{each:>11}" for each in shown)
