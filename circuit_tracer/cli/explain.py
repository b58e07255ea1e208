"""`circuit-tracer explain`: which heads carry the edges of a graph, and why a head looks where it looks."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.attention import EdgeExplanation, ScoreExplanation
    from circuit_tracer.graph.edge_heads import EdgeHeads, HeadWeight
    from circuit_tracer.graph.graph import Graph

SHOWN = 5  # heads, contributors and pairs of each list


def explain(
    graph: Annotated[Path, typer.Argument(help="Graph file: .safetensors, or circuit-tracer's .pt.")],
    *,
    edge: Annotated[
        list[str] | None,
        typer.Option(
            "--edge", metavar="SOURCE:TARGET", help="An edge to split over heads, by the ids of its nodes. Repeatable."
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            metavar="L5H3:QUERY:KEY[:OTHER]",
            help="Why a head looks at a key: from what its query and key hold. OTHER: rather than at another key, or at the "
            "rest. Repeatable.",
        ),
    ] = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Strongest heads kept of each edge of the graph.")] = 3,
    paths: Annotated[int, typer.Option("--paths", min=0, help="Whole paths of heads listed of an --edge.")] = 10,
    pairs: Annotated[bool, typer.Option("--pairs/--no-pairs", help="Take the pairs behind a --score apart.")] = True,
    output: Annotated[
        Path | None,
        options.output("Write the graph with what was found here, as .safetensors; default: into the graph file."),
    ] = None,
    chosen: ModelOptions,
    pruning: options.Pruning,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Explain attention: heads of edges, and why heads look.

    --edge splits an edge over the heads that it runs through; --score takes apart the score that makes a head look at a token.
    Without either, every edge of the pruned graph is split. The heads of these edges, and scores, are kept in the
    graph file, where the viewer finds them.
    """
    from circuit_tracer.files import require_writable_folder
    from circuit_tracer.graph.files.native import as_graph

    every = not edge and not score
    target = output or graph
    keeps = every or bool(score) or output is not None
    if keeps and target.suffix != ".safetensors":
        raise InputError(f"{target} cannot hold what is found; name a .safetensors file with -o")
    places, ends = [_place(text) for text in score or ()], [_ends(text) for text in edge or ()]
    if keeps:
        require_writable_folder(target.parent)
    subject = as_graph(graph)
    model = chosen.open(verbose)
    from circuit_tracer.attention import explain_edge, explain_edges, explain_score
    from circuit_tracer.graph.pruning import prune_graph

    found: dict[str, Any] = {}
    texts = []
    if every:
        pruned = prune_graph(subject, pruning.node_threshold, pruning.edge_threshold, pruning.policy)
        heads = explain_edges(subject, model, keep, pruned)
        found["heads"] = [_counted(each) for each in _by_head(heads)]
        texts.append(_all_edges(heads))
    if ends:
        edges = [explain_edge(subject, *pair, model, paths=paths) for pair in ends]
        found["edges"] = [each.to_dict() for each in edges]
        texts += [_edge(each, subject) for each in edges]
    if places:
        scores = [explain_score(subject, model, *place, pairs=pairs) for place in places]
        new = {each.place: each for each in (each.kept() for each in scores)}
        subject.scores = [*(each for each in subject.scores if each.place not in new), *new.values()]
        found["scores"] = [each.to_dict() for each in scores]
        texts += [_score(each) for each in scores]
    if keeps:
        subject.save(target)
        texts.append(f"wrote      {target}")
    typer.echo(options.dump(found) if json else "\n\n".join(texts))


def _ends(text: str) -> tuple[str, str]:
    """The ids of an edge's two nodes."""
    source, colon, target = text.partition(":")
    if not (source and colon and target):
        raise InputError(f"--edge is {text!r}; write SOURCE:TARGET, ids of nodes such as 0_17_4:3_25_9")
    return source, target


def _place(text: str) -> tuple[int, int, int, int, int | str | None]:
    """Layer, head, query, key and what the key is compared with."""
    from circuit_tracer.attribution.target_text import parse_attention

    target = parse_attention(text.removeprefix("attn:"))
    if target.side != "both":
        raise InputError(f"--score {text!r} names a side; both are explained, so leave :{target.side} out")
    return target.place


def _by_head(heads: EdgeHeads) -> list[tuple[int, int, int, int]]:
    """(layer, head, edges of which it is the strongest first head, the same of last heads), most named first."""
    counts: dict[tuple[int, int], list[int]] = {}
    for side, table in enumerate((heads.first, heads.last)):
        for layer, head in table[:, 0].tolist():
            if layer >= 0:
                counts.setdefault((layer, head), [0, 0])[side] += 1
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    return [(layer, head, first, last) for (layer, head), (first, last) in ordered]


def _counted(row: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("layer", "head", "first", "last"), row, strict=True))


def _all_edges(heads: EdgeHeads) -> str:
    through = int((heads.first[:, :1, 0] >= 0).sum())
    lines = [f"edges      {len(heads):,}, of which {through:,} run through heads", ""]
    lines.append(f"{'head':<10}{'first of':>10}{'last of':>10}")
    lines += [
        f"{f'L{layer}H{head}':<10}{first:>10,}{last:>10,}" for layer, head, first, last in _by_head(heads)[: 3 * SHOWN]
    ]
    return "\n".join(lines)


def _edge(found: EdgeExplanation, graph: Graph) -> str:
    heads = found.strongest(SHOWN)
    lines = [
        f"edge       {found.names[0]} -> {found.names[1]}  {found.weight:+.4g}",
        f"direct     {found.direct:+.4g}",
        f"first      {_heads(heads['first'])}",
        f"last       {_heads(heads['last'])}",
        f"through    {_heads(heads['through'])}",
        f"hops       {found.mean_hops:.2f} on average; "
        + ", ".join(f"{number}: {weight:+.3g}" for number, weight in enumerate(found.hops.tolist()) if weight),
    ]
    for path in found.paths:
        places = [f"{graph.token_texts[at]!r}@{at}" for at in path.positions]
        steps = "".join(f" -L{layer}H{head}-> {at}" for (layer, head), at in zip(path.heads, places[1:], strict=True))
        lines.append(f"path       {path.weight:+.4g}  {places[0]}{steps}")
    lines.append(f"rest       {found.rest.weight:+.4g} of paths that are not listed")
    return "\n".join([*lines, f"residual   {found.residual:.1e}"])


def _heads(heads: list[HeadWeight]) -> str:
    return "  ".join(f"L{each.layer}H{each.head} {each.weight:+.3g}" for each in heads) or "no head"


def _score(found: ScoreExplanation) -> str:
    lines = [f"score      {found.label}  {found.score:+.4g}, attention {exp(found.log_attention):.3f}"]
    for name, side in (("query", found.query_side), ("key", found.key_side)):
        parts = ", ".join(f"{kind}s {weight:+.3g}" for kind, weight in side.parts.items() if weight)
        lines.append(f"{name:<10} {parts}")
        lines += [f"           {each.weight:+.4g}  {each.id}" for each in side.strongest(SHOWN)]
    if found.pairs is not None:
        lines.append("pairs      query's and key's")
        lines += [f"           {weight:+.4g}  {query}  {key}" for query, key, weight in found.pairs.top(SHOWN)]
    return "\n".join([*lines, f"residual   {found.residual:.1e}"])
