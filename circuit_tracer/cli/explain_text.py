"""What `circuit-tracer explain` says to people."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any

from circuit_tracer.graph.influence import edge_influence

if TYPE_CHECKING:
    from torch import Tensor

    from circuit_tracer.attention import EdgeExplanation, ScoreExplanation
    from circuit_tracer.graph.edge_heads import EdgeHeads, HeadWeight
    from circuit_tracer.graph.graph import Graph
    from circuit_tracer.graph.node_words import NodeWords

SHOWN = 5  # heads, contributors and pairs of each list
LINES = 15  # edges and heads of a table
PLURALS = {"feature": "features", "error": "errors", "token": "tokens", "bias": "biases"}
HeadCount = tuple[int, int, int, int]


def count_by_head(heads: EdgeHeads) -> list[HeadCount]:
    """(layer, head, edges of which it is the strongest first head, the same of last heads), most named first."""
    counts: dict[tuple[int, int], list[int]] = {}
    for side, table in enumerate((heads.first, heads.last)):
        for layer, head in table[:, 0].tolist():
            if layer >= 0:
                counts.setdefault((layer, head), [0, 0])[side] += 1
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    return [(layer, head, first, last) for (layer, head), (first, last) in ordered]


def rows_of(heads: EdgeHeads, graph: Graph) -> list[dict[str, Any]]:
    """The table as JSON values, an edge a row."""
    ids = graph.nodes.ids()
    places = graph.edges.find(heads.source.to(graph.device), heads.target.to(graph.device))
    ends = zip(heads.source.tolist(), heads.target.tolist(), graph.edges.weight[places].tolist(), strict=True)
    return [
        {"source": ids[source], "target": ids[target], "weight": weight, **row._asdict()}
        for (source, target, weight), row in zip(ends, heads.rows(range(len(heads))), strict=True)
    ]


def all_edges(heads: EdgeHeads, influence: Tensor, words: NodeWords) -> str:
    """A table of the edges through heads that matter most, and one of heads. influence: (N,) of the nodes of the graph."""
    graph, rows = words.graph, rows_of(heads, words.graph)
    scores = edge_influence(graph.edges, influence, graph.target_weights)
    places = graph.edges.find(heads.source.to(graph.device), heads.target.to(graph.device))
    order = scores[places].argsort(descending=True, stable=True).tolist()
    through = [rows[at] for at in order if rows[at]["first"]]
    counted = f"edges      {len(rows):,}, of which {len(through):,} run through heads"
    if not through:
        return counted
    columns = f"{'weight':>10}{'direct':>8}  {'first head':<13}{'last head':<13}edge"
    lines = [f"{counted}; those of most influence:", "", columns]
    for row in through[:LINES]:
        weight, source, target = row["weight"], row["source"], row["target"]
        ends = "".join(f"{_share(row[end][0], weight):<13}" for end in ("first", "last"))
        numbers = f"{weight:>+10.4g}{row['direct'] / weight:>8.0%}"
        lines.append(f"{numbers}  {ends}{source}:{target}  {words.of(source)} -> {words.of(target)}")
    lines += ["", f"{'head':<10}{'first of':>10}{'last of':>10}"]
    counts = count_by_head(heads)[:LINES]
    lines += [f"{f'L{layer}H{head}':<10}{first:>10,}{last:>10,}" for layer, head, first, last in counts]
    return "\n".join(lines)


def one_edge(found: EdgeExplanation, words: NodeWords) -> str:
    """Direct part, first and last heads, hops and paths."""
    heads = found.strongest(SHOWN)
    lines = [
        f"edge       {found.names[0]} -> {found.names[1]}  {found.weight:+.4g}",
        f"           {words.of(found.names[0])} -> {words.of(found.names[1])}",
        f"direct     {found.direct:+.4g}",
        f"first      {_heads(heads['first'])}",
        f"last       {_heads(heads['last'])}",
        f"through    {_heads(heads['through'])}",
        f"hops       {found.mean_hops:.2f} on average; "
        + ", ".join(f"{number}: {weight:+.3g}" for number, weight in enumerate(found.hops.tolist()) if weight),
    ]
    for path in found.paths:
        places = [words.place(at) for at in path.positions]
        steps = "".join(f" -L{layer}H{head}-> {at}" for (layer, head), at in zip(path.heads, places[1:], strict=True))
        lines.append(f"path       {path.weight:+.4g}  {places[0]}{steps}")
    lines.append(f"rest       {found.rest.weight:+.4g} of paths that are not listed")
    return "\n".join([*lines, f"residual   {found.residual:.1e}"])


def one_score(found: ScoreExplanation, words: NodeWords) -> str:
    """Contributors of both sides, and pairs."""
    what = "" if found.versus is None else " of log attention"
    lines = [f"score      {found.label}  {found.score:+.4g}{what}; attention {exp(found.log_attention):.3g}"]
    for name, side in (("query", found.query_side), ("key", found.key_side)):
        parts = ", ".join(f"{PLURALS[kind]} {weight:+.3g}" for kind, weight in side.parts.items() if weight)
        lines.append(f"{name:<10} {parts}")
        strongest = side.strongest(SHOWN)
        width = max((len(each.id) for each in strongest), default=0)
        lines += [f"{each.weight:>+20.4g}  {each.id:<{width}}  {words.of(each.id)}" for each in strongest]
    if found.pairs is not None:
        lines.append("pairs      key's, and query's")
        lines += [
            f"{weight:>+20.4g}  {key} {query}  {words.of(key)} -> {words.of(query)}"
            for query, key, weight in found.pairs.top(SHOWN)
        ]
    return "\n".join([*lines, f"residual   {found.residual:.1e}"])


def _share(head: HeadWeight, whole: float) -> str:
    return f"L{head.layer}H{head.head} {head.weight / whole:.0%}"


def _heads(heads: list[HeadWeight]) -> str:
    return "  ".join(f"L{each.layer}H{each.head} {each.weight:+.3g}" for each in heads) or "no head"
