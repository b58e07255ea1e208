"""`circuit-tracer group`: the nodes of a graph in groups that do one thing each, and the circuit that they form."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.serve import Shown, keep_known
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuit_tracer.circuits import Circuit, Grouping

SHARE = 0.05  # of a group's input: smaller ones are not printed


def group(
    graph: Annotated[
        Path, typer.Argument(autocompletion=graphs, help="Graph file: .safetensors, or circuit-tracer's .pt.")
    ],
    *,
    output: Annotated[
        Path | None,
        options.output("Write the graph with its groups here, as .safetensors; default: into the graph file."),
    ] = None,
    chosen: Shown,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="What features are called here: labels.json, or a folder of features."),
    ] = None,
    pruning: options.Pruning,
    purity: Annotated[
        float | None,
        typer.Option(
            "--purity",
            min=0.0,
            max=1.0,
            help="How alike what members of a group do must be; lower: fewer groups.  [default: 0.85]",
        ),
    ] = None,
    max_layers: Annotated[
        int | None, typer.Option("--max-layers", min=0, help="Layers that a group may span.  [default: 4]")
    ] = None,
    max_positions: Annotated[
        int | None, typer.Option("--max-positions", min=0, help="Positions that a group may span.  [default: 1]")
    ] = None,
    json: options.Json = False,
) -> None:
    """Group the nodes of a graph that do one thing together.

    From the graph alone, or with the model (-t, -m or --demo) by what taking groups out of it does. The groups are named, their
    circuit is printed, and they are kept in the graph file, where the viewer finds them.
    """
    target = output or graph
    if target.suffix != ".safetensors":
        raise InputError(f"{target} cannot hold the groups; name a .safetensors file with -o")
    from circuit_tracer.circuits import Grouping, group_nodes, keep_grouping
    from circuit_tracer.circuits.naming import name_groups, titles
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.graph.files.native import as_graph
    from circuit_tracer.graph.words import is_of_neurons

    require_writable_folder(target.parent)
    subject = as_graph(graph)
    called = keep_known(subject, labels, chosen.shipped)
    model = chosen.open() if chosen.given else None
    given = {"purity": purity, "max_layers": max_layers, "max_positions": max_positions}
    cut: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    grouping = group_nodes(subject, model, labels=called, **asdict(pruning), **cut)
    grouping = name_groups(subject, grouping, labels=called, model=model)
    before = subject.grouping
    circuit = keep_grouping(subject, grouping)
    outdated = subject.story is not None and subject.grouping != before
    if outdated:
        subject.story = None  # it was told of other groups
    subject.save(target)
    total, called_by = float(subject.target_weights.sum()), titles(subject, Grouping(circuit.groups))
    left = "others" if is_of_neurons(subject) else "error"
    text = f"{as_text(grouping, circuit, called_by, total, left)}\n\nwrote      {target}"
    if outdated:
        typer.echo(
            "The graph's story was told of other groups and is gone: circuit-tracer story tells it anew.", err=True
        )
    typer.echo(options.dump({**grouping.to_json(), "circuit": circuit.to_json(called_by, total)}) if json else text)


def as_text(grouping: Grouping, circuit: Circuit, titles: Sequence[str], total: float, left: str) -> str:
    """What groups there are, and what reaches each, from the inputs up. total: the weight of all targets. left: the
    role of what is left over, of a dictionary its errors, of neurons the others.
    """
    score = grouping.score
    several = sum(len(each.members) > 1 for each in grouping)
    lines = [f"groups     {several} of several nodes, {len(grouping) - several} nodes alone"]
    if score is not None:
        how = "measured in the model" if score.measured else "by the graph alone"
        lines.append(f"purity     {score.purity:.3f} ({how}: how alike what members of a group do is, by influence)")
        if score.calibration is not None:
            lines.append(
                f"slope      {score.calibration:.3f}, measured over predicted effects of groups on the outputs"
            )
    lines += ["", f"{'influence':>9}  {'role':<9}group  <-  share of its input"]
    for number in circuit.order:
        inputs = circuit.inputs(number, SHARE)
        if not inputs and circuit.groups[number].role == "token" and not float(circuit.influence[number]):
            continue
        told = ", ".join(f"{titles[source]} {share:+.0%}" for source, share in inputs)
        role, share = circuit.groups[number].role, float(circuit.influence[number]) / total
        shown = "" if role == "logit" else f"{share:.1%}"
        lines.append(
            f"{shown:>9}  {left if role == 'error' else role:<9}{titles[number]}" + (f"  <-  {told}" if told else "")
        )
    return "\n".join(lines)
