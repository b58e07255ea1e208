"""Heads on a page with its server behind it, in a real browser on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from circuit_tracer.viewer.server import Server
from tests.support.browser import Browser, Page
from tests.support.gestures import READY, serious_findings, state, texts


def strongest_across(page: Page) -> str:
    """The strongest link between features or outputs at two tokens."""
    return page.js(
        """(() => { const { links, nodes } = viewer.graph;
        const across = [...links.source.keys()].filter(l => nodes[links.source[l]].kind === 'feature'
          && nodes[links.source[l]].position !== nodes[links.target[l]].position);
        across.sort((a, b) => Math.abs(links.weight[b]) - Math.abs(links.weight[a]));
        return `${nodes[links.source[across[0]]].id}>${nodes[links.target[across[0]]].id}`; })()"""
    )


def choose(page: Page, field: str, value: str) -> None:
    page.js(
        f"(() => {{ const e = document.querySelector('[data-testid={field}]'); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('change')); })()"
    )


def wait_for(page: Page, name: str) -> None:
    page.wait(f"document.querySelector('[data-testid={name}]')", 30)


@pytest.mark.slow("traces and explains in a browser: 2 s")
def test_from_a_link_to_its_heads_to_why_one_looks_there(visit: Callable[..., Page], demo_served: Server) -> None:
    page = visit()
    edge = strongest_across(page)
    page.js(f"viewer.actions.select('{edge.split('>')[1]}')")
    place = f"[data-testid=inputs] .row[data-id='{edge.split('>')[0]}'] + .to-heads"
    page.click(place)
    assert state(page, "edge") == edge
    wait_for(page, "edge-paths")
    shares = [float(text.rstrip("%").replace("−", "-")) for text in texts(page, "[data-testid=edge-first] .value")]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert texts(page, "[data-testid=edge-by-hops] .bar-name")
    page.js("document.querySelector('[data-testid=edge-through]').open = true")
    assert not any("%" in text for text in texts(page, "[data-testid=edge-through] .value"))

    page.click("[data-testid=edge-paths] .chip.head")
    wait_for(page, "score-pairs")
    assert state(page, "head").count(":") == 2
    cells = "[...document.querySelectorAll('[data-testid=head-strip] .cell')]"
    assert page.js(f"{cells}.map(e => e.textContent)") == page.js(
        f"viewer.graph.tokens.slice(0, {cells}.length).map(t => t.trim())"
    )
    score = texts(page, "[data-testid=head-score]")[0]
    choose(page, "head-versus", "rest")
    page.wait("document.querySelector('[data-testid=head-score]')?.textContent.includes('differs')", 30)
    assert texts(page, "[data-testid=head-score]")[0] != score
    target = "attn:" + state(page, "head")
    page.click("[data-testid=head-trace]")
    wait_for(page, "trace-dialog")
    assert texts(page, "[data-testid=targets-chosen] .chip") == [f"{target} ×"]
    page.click("[data-testid=trace-go]")
    page.wait(f"{READY} && viewer.graph.nodes.at(-1).raw.target_kind === 'attention'", 30)
    assert texts(page, ".targets .row")[0].startswith(target[5:9])


@pytest.mark.slow("one more page, for what a table and all heads add")
def test_all_links_are_split_and_filtered_and_heads_have_their_diagnosis(
    visit: Callable[..., Page], demo_served: Server, graph_folder: Path
) -> None:
    (graph_folder / "features").mkdir()
    heads = [{"layer": layer, "head": head, "induction": (layer + head) / 8} for layer in range(4) for head in range(2)]
    table = {"model": "demo", "scores": {"induction": "attention to what followed"}, "heads": heads}
    (graph_folder / "features" / "heads.json").write_text(json.dumps(table))
    page = visit()
    assert page.js("document.querySelector('[data-testid=head-filter]')") is None
    page.click("[data-testid=tab-edge]")
    page.js("window.before = true")
    page.click("[data-testid=split-links]")
    page.wait(f"!window.before && {READY} && viewer.graph.links.heads", 60)
    page.click("[data-testid=tab-head]")
    wait_for(page, "head-known")
    assert texts(page, "[data-testid=head-known] li")[0] == "L3H1 50%"
    named = texts(page, "[data-testid=head-named] .chip")[0]
    page.js(f"viewer.actions.chooseHead('{named}')")
    assert texts(page, "[data-testid=head-facts] dt") == ["induction"]
    everything = page.js("viewer.view.links.length")
    page.click("[data-testid=head-filter-button]")
    assert 0 < page.js("viewer.view.links.length") < everything


@pytest.mark.slow("axe reads the page three times")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(visit: Callable[..., Page], demo_served: Server, axe: str, dark: bool) -> None:
    page = visit(dark=dark)
    page.js(f"viewer.actions.chooseEdge('{strongest_across(page)}')")
    wait_for(page, "edge-paths")
    page.frames(15)
    assert serious_findings(page, axe) == []
    page.js("viewer.actions.chooseHead('L1H0:8')")
    wait_for(page, "score-pairs")
    page.frames(15)
    assert serious_findings(page, axe) == []


@pytest.mark.slow("takes 3.1 s")
def test_a_model_that_is_at_work_can_be_asked_again(browser: Browser, demo_served: Server) -> None:
    page = browser.page(demo_served.url)
    page.wait(READY, 30)
    with demo_served.site.jobs.alone("something else"):
        page.js(f"viewer.actions.chooseEdge('{strongest_across(page)}')")
        wait_for(page, "edge-again")
        assert "something else" in texts(page, "[data-testid=edge-status] .finding")[0]
    page.click("[data-testid=edge-again]")
    wait_for(page, "edge-paths")
    page.close()
