"""One percentage everywhere: what the page shows is what `graph.shares` computes, of edges and of groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

import pytest

from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.palette import PALETTES
from circuit_tracer.graph.shares import group_shares, input_shares
from circuit_tracer.viewer.bundle import STATIC
from tests.support.browser import Page


def test_page_and_package_agree_on_the_demo_graph(
    open_page: Callable[..., Page], demo_graph: Graph, demo_page: str
) -> None:
    ids, layout = demo_graph.nodes.ids(), demo_graph.nodes.layout
    pruned = prune_graph(demo_graph, 0.95)
    edges, mass = pruned.pruned_edges, row_mass(demo_graph.edges)
    kept = pruned.node_mask.nonzero().flatten().tolist()
    features = [node for node in kept if node < layout.n_features]
    groups = [features[::2], features[1::2], [layout.token_start + 1], [layout.target_start]]
    named = [["odd", *(ids[node] for node in groups[0])], ["even", *(ids[node] for node in groups[1])]]
    pins = ",".join(ids[group[0]] for group in groups[2:])
    page = open_page(demo_page, after=f"#pinnedIds={pins}&supernodes={quote(json.dumps(named))}")

    wanted = {
        (ids[target], ids[source]): share
        for target, source, share in zip(
            edges.target.tolist(), edges.source.tolist(), input_shares(edges, mass).tolist(), strict=True
        )
    }
    found = page.js(
        "(({nodes, links}) => Array.from(links.share, (share, at) =>"
        " [nodes[links.target[at]].id, nodes[links.source[at]].id, share]))(viewer.graph)"
    )
    assert {(target, source): share for target, source, share in found} == pytest.approx(wanted, abs=1e-6)

    keys = ["-".join(sorted(ids[node] for node in group)) for group in groups]
    shares = group_shares(edges, groups, mass)
    shown = page.js(
        "Array.from(document.querySelectorAll('[data-share]'), ({dataset}) => [dataset.from, dataset.to, +dataset.share])"
    )
    assert len(shown) >= 3
    for source, target, share in shown:
        assert share == pytest.approx(float(shares[keys.index(target), keys.index(source)]), abs=6e-5)


@pytest.mark.parametrize(("theme", "start"), [("light", ":root {"), ("dark", ':root[data-theme="dark"] {\n  --paper')])
def test_pictures_have_the_colours_of_the_page(theme: str, start: str) -> None:
    style = (STATIC / "colours.css").read_text(encoding="utf-8")
    block = style[style.index(start) :].split("}")[0]
    for name, colour in vars(PALETTES[theme]).items():
        assert f"--{name}: {colour};" in block, name
