"""`circuit-tracer explain`: which heads carry the edges of a graph, and why a head looks where it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.cli.serve import keep_known
from circuit_tracer.errors import InputError


def explain(
    graph: Annotated[
        Path, typer.Argument(autocompletion=graphs, help="Graph file: .safetensors, or circuit-tracer's .pt.")
    ],
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
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="What features are called here: labels.json, or a folder of features."),
    ] = None,
    chosen: ModelOptions,
    pruning: options.Pruning,
    json: options.Json = False,
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
    called = keep_known(subject, labels, chosen.shipped)
    model = chosen.open(traces=True)
    from circuit_tracer.attention import explain_edge, explain_edges, explain_score
    from circuit_tracer.cli.explain_text import all_edges, count_by_head, one_edge, one_score, rows_of
    from circuit_tracer.graph.node_words import NodeWords
    from circuit_tracer.graph.pruning import prune_graph

    words = NodeWords(subject, called)
    found: dict[str, Any] = {}
    texts = []
    if every:
        pruned = prune_graph(subject, pruning.node_threshold, pruning.edge_threshold, pruning.policy)
        heads = explain_edges(subject, model, keep, pruned)
        columns = ("layer", "head", "first", "last")
        found["heads"] = [dict(zip(columns, each, strict=True)) for each in count_by_head(heads)]
        found["edges"] = rows_of(heads, subject)
        texts.append(all_edges(heads, pruned.influence, words))
    if ends:
        edges = [explain_edge(subject, *pair, model, paths=paths) for pair in ends]
        found["edges"] = [each.to_dict() for each in edges]
        texts += [one_edge(each, words) for each in edges]
    if places:
        scores = [explain_score(subject, model, *place, pairs=pairs) for place in places]
        new = {each.place: each for each in (each.kept() for each in scores)}
        subject.scores = [*(each for each in subject.scores if each.place not in new), *new.values()]
        found["scores"] = [each.to_dict() for each in scores]
        texts += [one_score(each, words) for each in scores]
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
