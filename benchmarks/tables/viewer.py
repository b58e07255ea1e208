"""The table on the page that shows a graph (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

Record = dict[str, Any]


def shown(record: Record) -> list[str]:
    """By graph and width: what one sees of it, and what moving it costs."""
    columns = ["graph", "width", "nodes in the panel", "tokens", "after a filter", "output names", "pins", "ms a frame"]
    rows = []
    for name, graph in record["graphs"].items():
        what = f"{name}: {graph['nodes']:,} nodes, {graph['links']:,} links, {graph['tokens']} tokens"
        for width, found in graph["widths"].items():
            pairs = [found["at load"]["nodes"], found["at load"]["tokens"], found["after a filter"]["nodes"]]
            pairs += [found["output names"], found["pins"]]
            cells = [f"{seen:,} of {of:,}" for seen, of in pairs]
            rows.append([what, width, *cells, f"{found['processor_ms_per_frame']:.1f}"])
            what = ""
    return [
        "In Chromium, without a GPU. *ms a frame*: processor time of all of its processes while the graph is dragged.",
        "",
        *table(columns, rows),
    ]
