"""One graph as one HTML file: viewer, graph and features in it, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from circuit_tracer.errors import InputError
from circuit_tracer.features.kept import KeptRecords
from circuit_tracer.files import atomic_write
from circuit_tracer.graph.files.node_ids import cantor_pair
from circuit_tracer.graph.files.read_json import features_of
from circuit_tracer.graph.graph import Graph
from circuit_tracer.viewer.bundle import bundled_script, bundled_style
from circuit_tracer.viewer.document import viewer_document

if TYPE_CHECKING:
    from circuit_tracer.graph.files.viewer_json import Labels


class Features(Protocol):
    """Feature records by (layer, index): a mapping, or a ``FeatureFolder``."""

    def get(self, place: tuple[int, int], /) -> Mapping[str, Any] | None:
        """The record, or None."""


def graph_page(
    graph: Graph | Mapping[str, Any] | str | Path,
    features: Features | None = None,
    *,
    labels: Labels | None = None,
    slug: str = "graph",
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
) -> str:
    """The text of a self-contained HTML page that shows a graph, offline and from disk.

    The page's own policy forbids it to load or send anything; graph, labels and features are data in it, never markup. What
    else is wrong with viewer JSON, the page itself mends and reports, or says why it cannot be shown.

    Args:
        graph: A graph, which is pruned at the thresholds (default: those of its groups, else 0.8 and 0.98) and labelled; or
            viewer JSON as a mapping or the path of a file, which is taken as it is, with labels where it has none.
        features: Feature files (``examples_quantiles``, ``top_logits``, ...) by (layer, index), such as
            ``FeatureFolder(path)``; only those of the graph's features are asked for and enter the page. Default: what the
            graph keeps.
        labels: Texts by node id, or by (layer, index) of features.
        slug: Its name on the page.
        node_threshold: Share of the influence that kept nodes hold; None: that of its groups, else 0.8.
        edge_threshold: Share of the influence that kept edges hold; None: that of its groups, else 0.98.

    Returns:
        The text of an HTML page.

    Raises:
        InputError: For what is no graph, and for numbers that are not finite.
    """
    document = viewer_document(
        graph, labels=labels, slug=slug, node_threshold=node_threshold, edge_threshold=edge_threshold
    )
    title = f"{document['metadata'].get('prompt') or slug} – attribution graph"
    data = [data_block("graph-data", document)]
    if features is None and isinstance(graph, Graph) and graph.records:
        features = KeptRecords(graph)
    if features is not None:
        data.append(data_block("feature-data", _features_of(document, features)))
    return page_of(title, data)


def empty_page() -> str:
    """The text of the same page without a graph: it offers to open one, a file of any viewer's JSON.

    Returns:
        The text of an HTML page.
    """
    return page_of("Attribution graph", [])


def write_page(graph: Graph | Mapping[str, Any] | str | Path, path: str | Path, **options: Any) -> Path:
    """Write ``graph_page(graph, **options)``; the file appears when it is complete.

    Args:
        graph: A graph, viewer JSON, or the path of a file.
        path: The file.
        **options: Of `graph_page`.

    Returns:
        Its path.
    """
    text = graph_page(graph, **options)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def graph_frame(graph: Graph | Mapping[str, Any] | str | Path, *, height: int = 720, **options: Any) -> str:
    """The page as an ``<iframe>`` for notebooks, for ``_repr_html_``; height in CSS pixels. It can run scripts and save files,
    and reach nothing of the notebook.

    Args:
        graph: A graph, viewer JSON, or the path of a file.
        height: In CSS pixels.
        **options: Of `graph_page`.

    Returns:
        HTML.
    """
    page = html.escape(graph_page(graph, **options))
    style = f"width:100%;height:{int(height)}px;border:0"
    allowed = "allow-scripts allow-downloads"
    return f'<iframe title="attribution graph" sandbox="{allowed}" style="{style}" srcdoc="{page}"></iframe>'


def page_of(title: str, data: Sequence[str]) -> str:
    """The page with blocks of data (``data_block``) in it, by which it knows what to show."""
    head, script = _head_and_script()
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{head}<title>{html.escape(title)}</title>\n'
        '</head>\n<body>\n<div id="app"><p class="notice">Loading the graph …</p></div>\n'
        "<noscript>This page draws its graph with JavaScript, which is switched off.</noscript>\n"
        f"{''.join(data)}{script}</body>\n</html>\n"
    )
    # Halves of surrogate pairs, which JSON files can hold, are no text; without them every page can be written.
    return page.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _features_of(document: Mapping[str, Any], features: Features) -> dict[str, Mapping[str, Any]]:
    """The details of the graph's features by their paired number."""
    found = {}
    for place in features_of(document):
        details = features.get(place)
        if details is not None:
            found[str(cantor_pair(*place))] = details
    return found


def data_block(name: str, value: Any) -> str:
    """JSON in a script element that is not run. ``<`` is escaped, so that nothing in it can end the element."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"{name} holds a number that is not finite, which JSON cannot carry") from error
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


@cache
def _head_and_script() -> tuple[str, str]:
    style, script = bundled_style(), bundled_script()
    for name, text in (("style", style), ("script", script)):
        if f"</{name}" in text.lower():
            raise AssertionError(f"the viewer's {name} contains its own end")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n"
    )
    return head, f'<script type="module">{script}</script>\n'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
