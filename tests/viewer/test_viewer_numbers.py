"""The page computes scores, shares and paths itself; they must be those of the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.paths import strongest_paths
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.viewer import graph_page
from tests.support.browser import Page


@pytest.fixture(scope="module")
def whole_page(demo_graph: Graph) -> str:
    """Nothing pruned but what has no influence at all."""
    return graph_page(demo_graph, node_threshold=1.0, edge_threshold=1.0)


def test_scores_of_the_graph_and_of_pinned_nodes(open_page: Callable[..., Page], demo_graph: Graph, whole_page: str):
    page = open_page(whole_page)
    ids = node_ids(demo_graph)
    kept = torch.ones(demo_graph.n_nodes, dtype=torch.bool)
    kept[3 : demo_graph.nodes.layout.n_features : 2] = False
    pinned = [name for name, keep in zip(ids, kept.tolist(), strict=True) if keep][:150]
    kept = torch.tensor([name in pinned for name in ids])
    kept[demo_graph.nodes.layout.error_start :] = True
    page.js(f"viewer.actions.pin({pinned})")
    page.js("document.querySelector('[data-testid=report-button]').click()")
    cells = page.js(
        """[...document.querySelectorAll('[data-testid=scores] tbody tr')].map(
        row => [...row.querySelectorAll('td')].map(cell => Number(cell.textContent)))"""
    )
    whole, subset = graph_scores(demo_graph), graph_scores(demo_graph, kept)
    assert cells[0] == pytest.approx([whole.replacement, whole.completeness], abs=6e-4)
    assert cells[1] == pytest.approx([whole.replacement, whole.completeness], abs=6e-4)
    assert cells[2] == pytest.approx([subset.replacement, subset.completeness], abs=6e-4)


def test_paths(open_page: Callable[..., Page], demo_graph: Graph, whole_page: str):
    page = open_page(whole_page)
    ids, layout = node_ids(demo_graph), demo_graph.nodes.layout
    source, target = layout.token_start + 7, layout.target_start
    page.js(f"viewer.actions.pin(['{ids[source]}', '{ids[target]}'])")
    page.js("document.querySelector('[data-testid=tab-paths]').click()")
    expected = strongest_paths(demo_graph, target, source, k=5)
    shown = page.js("[...document.querySelectorAll('.path .value')].map(e => e.textContent)")
    assert len(shown) == 5
    for text, path in zip(shown, expected, strict=True):
        # Shown without decimals from 10 % on.
        assert float(text.strip("+−%")) / 100 == pytest.approx(
            abs(path.weight), abs=5.1e-3 if "." not in text else 6e-4
        )
        assert text.startswith("−") == (path.weight < 0)
