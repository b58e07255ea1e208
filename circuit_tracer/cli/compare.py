"""`circuit-tracer compare`: two graphs, or a graph and what an intervention makes of it, and an account of what changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.edit_options import EditOptions
from circuit_tracer.cli.serve import Shown, keep_known
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from circuit_tracer.graph import Graph
    from circuit_tracer.many.comparison import Comparison
    from circuit_tracer.many.comparison.schema import Node
    from circuit_tracer.replacement_model import ReplacementModel

NAMED: dict[str, Literal["same", "end", "pooled"]] = {"same": "same", "end": "end", "pooled": "pooled"}
ORDERS: dict[Literal["difference", "carried"], str] = {
    "difference": "by their edges onto the target",
    "carried": "along all paths",
}


def compare(
    graph: Annotated[Path, typer.Argument(autocompletion=graphs, help="Graph file: .safetensors.")],
    other: Annotated[
        Path | None,
        typer.Argument(
            autocompletion=graphs, help="Another: of another prompt, or of another model with the same transcoders."
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None, options.output("Write the comparison here: .html, a page with both graphs, or .json.")
    ] = None,
    target: Annotated[
        str | None,
        options.text("--target", help="A target of both graphs, by its text or as id:123; default: the likeliest."),
    ] = None,
    positions: Annotated[
        str,
        options.text(
            "--positions",
            help="Which position answers to which: the same number; the same from the end; pooled; or pairs such as 0:0,5:6.",
        ),
    ] = "same",
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="What features are called here: labels.json, or a folder of features."),
    ] = None,
    changes: EditOptions,
    chosen: Shown,
    thresholds: options.Thresholds,
    top: Annotated[int, typer.Option("--top", min=1, help="How many nodes to show.")] = 10,
    json: options.Json = False,
) -> None:
    """Say what changes from one graph to another, node by node, so that it adds up to the change of the target.

    Two files: two prompts, or a model and its fine-tune. One file and an edit, such as --ablate 1/45@6 --demo: the prompt
    before and after it.
    """
    edits = changes.read()
    if (other is None) == (not edits):
        raise InputError(
            "give a second graph to compare with, or one graph and an edit (--set, --scale, --ablate, --add, --take)"
        )
    if edits and not chosen.given:
        raise InputError("an edit is traced by the model: name its transcoders with -t, or use --demo")
    if output is not None and output.suffix not in (".html", ".json"):
        raise InputError(
            f"the comparison's file {output} ends in {output.suffix or 'nothing'}; end it in .html or .json"
        )
    pairs = NAMED[positions] if positions in NAMED else _pairs(positions)
    from circuit_tracer.files import require_writable_file
    from circuit_tracer.graph.files.native import as_graph
    from circuit_tracer.many.comparison import compare as compared

    if output is not None:
        require_writable_file(output)
    first = as_graph(graph)
    second = as_graph(other) if other is not None else _edited(first, chosen.open(), edits)
    for each in (first, second):
        keep_known(each, labels, chosen.shipped)
    found = compared(
        first,
        second,
        target=None if target is None else options.token(target),
        positions=pairs,
        node_threshold=thresholds.node_threshold,
        edge_threshold=thresholds.edge_threshold,
    )
    if output is not None:
        _write(found, output)
    typer.echo(options.dump(found.to_json()) if json else "\n".join(_lines(found, top, output)))


def _pairs(text: str) -> Mapping[int, int]:
    """Positions of "0:0,5:6"."""
    found: dict[int, int] = {}
    for pair in text.split(","):
        first, colon, second = pair.partition(":")
        if not (colon and first.strip().isdecimal() and second.strip().isdecimal()):
            raise InputError(
                f"--positions is {text!r}; use {', '.join(NAMED)}, or pairs of positions such as 0:0,5:6 (here: there)"
            )
        found[int(first)] = int(second)
    return found


def _edited(graph: Graph, model: ReplacementModel, edits: Any) -> Graph:
    """The graph's prompt traced under the edits, for the same targets and by the same settings."""
    from circuit_tracer.attribution.belonging import require_traced_with
    from circuit_tracer.interventions import attribute_edited

    if set(graph.targets.kind) != {"logit"}:
        raise InputError(
            "the graph's targets are not all tokens, so that they cannot be traced again from the file; use attribute_edited "
            "in Python with the targets it was traced for"
        )
    require_traced_with(graph, model)
    settings = graph.provenance.get("settings", {})
    kept = {name: settings[name] for name in ("zero_positions", "position", "max_feature_nodes") if name in settings}
    targets = graph.targets.token_id.tolist()
    return attribute_edited(graph.input_tokens, model, edits, attribution_targets=targets, **kept)


def _write(found: Comparison, path: Path) -> None:
    from circuit_tracer.files import atomic_write
    from circuit_tracer.viewer.comparison import write_comparison_page

    if path.suffix == ".html":
        write_comparison_page(found, path)
        return
    with atomic_write(path) as temporary:
        temporary.write_text(options.dump(found.to_json()) + "\n", encoding="utf-8")


def _lines(found: Comparison, top: int, output: Path | None) -> list[str]:
    lines = []
    for name, side in (("from", found.a), ("to", found.b)):
        edits = f", {'; '.join(side.edits)}" if side.edits else ""
        lines.append(f"{name:<11}{side.prompt!r} ({side.model}{edits}): {found.target!r} {side.value:.4g}")
    lines += [f"{'':<11}{sentence}" for sentence in found.verdict]
    lines.append(f"{'adds up to':<11}{found.accounted:+.6g} of {found.difference:+.6g} (off by {found.gap:.1e})")
    for kind, each in found.similarity.items():
        lines.append(
            f"{'alike':<11}influence of {kind}: weighted Jaccard {each.weighted_jaccard:.3f}, cosine {each.cosine:.3f}, "
            f"rank-biased overlap {each.rank_biased_overlap:.3f}"
        )
    for order, title in ORDERS.items():
        nodes = found.largest(top, order)
        if nodes:
            lines += ["", f"what changes it most, {title}:", f"{'node':<14}{'from':>10}{'to':>10}{'change':>10}  of"]
            lines += [_row(node, order) for node in nodes]
    return lines if output is None else [*lines, "", f"wrote      {output}"]


def _row(node: Node, order: str) -> str:
    """A node with what it gives the target, or, along paths, with its activations."""
    if order == "difference":
        before, after = f"{node.edge_a:.3f}", f"{node.edge_b:.3f}"
    else:
        before, after = (f"{value or 0.0:.3f}" for value in (node.activation_a, node.activation_b))
    only = {"a": " (went)", "b": " (new)", "both": ""}[node.within]
    return f"{node.id:<14}{before:>10}{after:>10}{getattr(node, order):>+10.3f}  {node.label or node.kind}{only}"
