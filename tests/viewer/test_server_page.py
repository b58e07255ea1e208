"""The page with its server behind it: tracing, saving, pruning, testing, in a real browser on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from circuit_tracer.demo import PROMPT
from circuit_tracer.viewer.server import Server
from circuit_tracer.viewer.server.jobs import Job
from tests.support.asking import ask
from tests.support.browser import Browser, Page
from tests.support.documents import feature_details, large_document, small_document
from tests.support.gestures import CTRL, READY, findings_in_both_looks, pixels, serious_findings, state, texts


def wait_for(page: Page, name: str) -> None:
    page.wait(f"document.querySelector('[data-testid={name}]')", 30)


def test_a_prompt_is_traced_from_an_empty_folder(
    visit: Callable[..., Page], served: Server, graph_folder: Path
) -> None:
    for path in graph_folder.iterdir():
        path.unlink()
    page = visit(ready="document.querySelector('[data-testid=trace-prompt]')")
    page.click("[data-testid=trace-prompt]")
    page.type(PROMPT)
    page.wait("document.querySelectorAll('[data-testid=trace-tokens] .chip').length === 9")
    shown = texts(page, "[data-testid=trace-tokens] .chip")
    assert texts(page, "[data-testid=trace-tokens] .quiet") == ["9 tokens of at most 64"]
    assert texts(page, "[data-testid=targets-chosen]") == ["the likeliest outputs"]
    page.wait("document.querySelectorAll('[data-testid=targets-offered] .chip').length === 8", 30)
    offered = [text.rsplit(" ", 1)[0] for text in texts(page, "[data-testid=targets-offered] .chip")]
    assert offered[0] == "Austin"
    for number in (1, 3):
        page.click(f"[data-testid=targets-offered] .chip:nth-child({number})")
    assert texts(page, "[data-testid=targets-chosen] .chip") == [f"{offered[0]} ×", f"{offered[2]} ×"]
    page.click("[data-testid=trace-go]")
    page.wait(READY, 30)
    page.frames()
    assert page.js("viewer.graph.tokens") == shown
    explained = page.js("viewer.graph.nodes.filter(n => n.kind === 'target').map(n => n.raw.token)")
    assert [text.strip() for text in explained] == [offered[0], offered[2]]
    assert "slug=of-the-state-containing-dallas-is" in page.js("location.search")
    assert pixels(page, ".link-graph canvas") > 3000
    assert texts(page, "h1")[0] == PROMPT


@pytest.mark.slow("takes 1.7 s")
def test_progress_is_shown_and_a_trace_can_be_cancelled(
    visit: Callable[..., Page], served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "progress", _wait_at_rows(Job.progress))
    page = visit()
    page.click("[data-testid=trace]")
    wait_for(page, "trace-dialog")
    assert page.js("document.querySelector('[data-testid=trace-prompt]').value") == "one two"
    page.js("document.querySelector('[data-testid=trace-prompt]').select()")
    page.type(PROMPT)
    page.click("[data-testid=trace-go]")
    page.wait("document.querySelector('[data-testid=trace-progress]').value > 0", 30)
    assert "features" in texts(page, "[data-testid=trace-stage]")[0]
    assert page.js("document.querySelector('[data-testid=trace-go]').disabled") is True
    page.click("[data-testid=trace-cancel]")
    page.wait("document.querySelector('[data-testid=trace-problem]').textContent")
    assert "cancelled" in texts(page, "[data-testid=trace-problem]")[0]
    page.key("Escape")
    page.wait("document.querySelector('dialog') === null")
    assert [each["slug"] for each in ask(served, "/api/graphs").json["graphs"]] == ["small"]


@pytest.mark.slow("takes 1.5 s")
def test_closing_the_dialog_ends_the_trace(
    visit: Callable[..., Page], served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "progress", _wait_at_rows(Job.progress))
    page = visit()
    page.click("[data-testid=trace]")
    wait_for(page, "trace-dialog")
    page.click("[data-testid=trace-go]")
    page.wait("document.querySelector('[data-testid=trace-progress]').value > 0", 30)
    page.key("Escape")
    served.site.jobs.stop(30)
    assert not served.site.jobs.busy
    monkeypatch.undo()


def _wait_at_rows(report: Callable[..., None]) -> Callable[..., None]:
    """`Job.progress` that holds a job at its first rows until it is cancelled."""
    import time

    def waiting(job: Job, stage: str, done: int = 0, total: int = 0) -> None:
        report(job, stage, done, total)
        while done and not job.cancelling:
            time.sleep(0.01)

    return waiting


@pytest.mark.slow("takes 1.5 s")
def test_what_cannot_be_traced_is_said_in_the_dialog(visit: Callable[..., Page]) -> None:
    page = visit()
    page.click("[data-testid=trace]")
    wait_for(page, "trace-dialog")
    page.click("[data-testid=trace-targets]")
    page.type("Austin")
    page.key("Enter")
    page.type("  no such token")  # a space in front of a token is part of it
    page.click("[data-testid=trace-go]")
    page.wait("document.querySelector('[data-testid=trace-problem]').textContent", 30)
    assert "'  no such token'" in texts(page, "[data-testid=trace-problem]")[0]
    assert texts(page, "[data-testid=targets-chosen] .chip") == ["Austin ×"]


@pytest.mark.slow("loads the page several times: 2 s")
def test_what_was_made_is_saved_and_there_again(
    visit: Callable[..., Page], demo_served: Server, graph_folder: Path
) -> None:
    page = visit()
    page.click("[data-testid=start-routes]")
    ids = page.js("viewer.store.state.pinned.filter(id => viewer.graph.byId.get(id).kind === 'feature').slice(0, 2)")
    page.js(f"viewer.actions.group({json.dumps(ids)})")
    page.js("viewer.actions.renameGroup(viewer.store.state.groups[0], 'my <b>group</b>')")
    page.js(f"viewer.actions.relabel(viewer.graph.byId.get('{ids[0]}'), 'my label')")
    x, y = page.center(".box.group")
    page.drag((x, y), (x + 40, y - 30))
    made = {name: state(page, name) for name in ("pinned", "groups", "labels")}
    places = state(page, "positions")
    page.click("[data-testid=save-menu]")
    page.click("[data-testid=save-server]")
    page.wait("document.querySelector('.toast[role=status]')")
    saved = json.loads((graph_folder / "demo.json").read_text())["qParams"]
    assert saved["supernodes"] == [["my <b>group</b>", *ids]]
    assert saved["clerps"] == [[ids[0], "my label"]]
    again = visit()
    assert {name: state(again, name) for name in made} == made
    assert places.items() <= state(again, "positions").items()
    assert "my <b>group</b>" in texts(again, ".box-name")
    again.js("viewer.actions.unpinAll(); viewer.view.element.focus()")
    again.key("s", CTRL)
    again.wait("document.querySelector('.toast[role=status]')")
    assert json.loads((graph_folder / "demo.json").read_text())["qParams"]["pinnedIds"] == []


def test_a_save_that_fails_is_said(browser: Browser, quick: Server, graph_folder: Path) -> None:
    page = browser.page(quick.url)
    page.wait(READY)
    (graph_folder / "small.json").unlink()
    page.key("s", CTRL)
    page.wait("document.querySelector('.toast[role=alert]')")
    assert "no graph 'small'" in texts(page, "[data-testid=toast]")[0]
    page.close()


@pytest.mark.slow("traces and prunes in a browser: 3 s")
def test_pruning_anew_keeps_what_is_pinned(visit: Callable[..., Page], demo_served: Server) -> None:
    page = visit()
    before = page.js("viewer.graph.nodes.length")
    page.click("[data-testid=start-routes]")
    pinned = state(page, "pinned")
    page.wait("location.search.includes('pinnedIds')")
    page.click("[data-testid=prune]")
    wait_for(page, "prune-dialog")
    assert page.js("document.querySelector('[data-testid=prune-node]').value") == "0.9"
    page.js("document.querySelector('[data-testid=prune-node]').value = '0.99'")
    page.click("[data-testid=prune-go]")
    page.wait("window.viewer?.graph.metadata.node_threshold === 0.99", 30)
    assert page.js("viewer.graph.nodes.length") > before
    assert state(page, "pinned") == pinned
    weak = page.js(
        """viewer.graph.nodes.filter(n => n.kind === 'feature').sort((a, b) => b.influence - a.influence)[0].id"""
    )
    page.js(f"viewer.actions.pin(['{weak}'])")
    page.wait(f"location.search.includes('{weak}')")
    page.click("[data-testid=prune]")
    wait_for(page, "prune-dialog")
    page.js("document.querySelector('[data-testid=prune-node]').value = '0.305'")
    page.click("[data-testid=prune-go]")
    page.wait("window.viewer?.graph.metadata.node_threshold === 0.305", 30)
    assert state(page, "pinned") == [*pinned, weak]


@pytest.mark.slow("takes 1.2 s")
def test_the_next_trace_begins_with_the_prompt_as_it_was(visit: Callable[..., Page], graph_folder: Path) -> None:
    document = small_document(prompt="<b>one</b> two", prompt_tokens=["<b>", "one"])
    (graph_folder / "small.json").write_text(json.dumps(document))
    page = visit()
    page.click("[data-testid=trace]")
    wait_for(page, "trace-dialog")
    assert page.js("document.querySelector('[data-testid=trace-prompt]').value") == "<b>one</b> two"
    page.js("document.querySelector('.settings').open = true")
    page.js("document.querySelector('[data-testid=trace-node_threshold]').value = '0.995'")
    assert page.js("document.querySelector('[data-testid=trace-dialog] form').checkValidity()") is True


@pytest.mark.slow("takes 2.2 s")
def test_an_intervention_from_a_node_shows_on_the_graph(visit: Callable[..., Page], demo_served: Server) -> None:
    page = visit()
    page.click("[data-testid=start-routes]")
    page.click("[data-testid=tab-test]")
    assert page.js("document.querySelector('[data-testid=test-run]').disabled") is True
    feature = page.js("viewer.store.state.pinned.find(id => viewer.graph.byId.get(id).kind === 'feature')")
    page.js(f"viewer.actions.select('{feature}')")
    page.click("[data-testid=test-add]")
    assert page.js("document.querySelector('[data-testid=test-add]').disabled") is True
    fills = page.js("[...document.querySelectorAll('.box-caption')].map(e => e.textContent)")
    page.click("[data-testid=test-run]")
    wait_for(page, "odds")
    effect = state(page, "effect")
    assert effect["given"] == {feature: 0}
    before, after = next(pair for name, pair in effect["nodes"].items() if name.startswith("5_"))
    assert before != after
    captions = texts(page, ".box-caption")
    assert captions != fills
    assert any("−100%" in caption for caption in captions)
    assert len(texts(page, "[data-testid=odds] tbody tr")) >= 8
    box = page.js("(() => { const b = viewer.view.element.getBoundingClientRect(); return [b.left, b.top]; })()")
    place = page.js(f"viewer.view.place(viewer.graph.byId.get('{feature}'))")
    page.mouse("Moved", box[0] + place["x"], box[1] + place["y"])
    page.frames()
    assert "→ 0 (set)" in texts(page, "[data-testid=tooltip]")[0]
    page.click("[data-testid=effect-clear]")
    assert state(page, "effect") is None
    assert texts(page, ".box-caption") == fills


@pytest.mark.slow("takes 1.7 s")
def test_steering_from_a_supernode_shows_in_the_text(visit: Callable[..., Page], demo_served: Server) -> None:
    page = visit()
    page.click("[data-testid=start-routes]")
    ids = page.js("viewer.store.state.pinned.filter(id => viewer.graph.byId.get(id).kind === 'feature')")
    page.js(f"viewer.actions.group({json.dumps(ids)})")
    page.click("[data-testid=tab-test]")
    page.js("viewer.actions.renameGroup(viewer.store.state.groups[0], 'all of it')")
    page.click(".box.group")
    assert texts(page, "[data-testid=test-add]") == ["Add supernode"]
    page.click("[data-testid=test-add]")
    page.js(
        """(() => { for (const [id, value, type] of [['edit-how', 'scale', 'change'], ['edit-amount', '-5', 'input']]) {
        const e = document.querySelector(`[data-testid=${id}]`); e.value = value;
        e.dispatchEvent(new Event(type, {bubbles: true})); } })()"""
    )
    page.click("[data-testid=test-write]")
    wait_for(page, "text-with")
    assert texts(page, "[data-testid=text-without]")[0].endswith("Austin")
    assert not texts(page, "[data-testid=text-with]")[0].endswith("Austin")
    assert page.js("document.querySelector('[data-testid=text-with] ins').textContent").strip()
    assert "all of it scaled by -5" in texts(page, "[data-testid=test-result]")[0]
    page.click("[data-testid=test-run]")
    wait_for(page, "verdict")
    assert "Austin" in page.js("document.querySelector('[data-testid=verdict] del').textContent")


@pytest.mark.slow("takes 1.2 s")
def test_a_graph_of_another_model_cannot_be_tested_and_the_reason_is_said(visit: Callable[..., Page]) -> None:
    page = visit()
    page.click("[data-testid=tab-test]")
    page.js("viewer.actions.select('0_5_0')")
    page.click("[data-testid=test-add]")
    page.click("[data-testid=test-run]")
    page.wait("document.querySelector('[data-testid=test-status].finding')", 30)
    assert "another model" in texts(page, "[data-testid=test-status]")[0]


@pytest.mark.slow("a large graph: 2 s")
def test_a_large_graph_comes_in_parts(
    visit: Callable[..., Page], graph_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuit_tracer.viewer.server.api.AS_IT_IS", 1000)
    monkeypatch.setattr("circuit_tracer.viewer.server.api.MOST_NODES", 100)
    document = large_document(400, 3000)
    (graph_folder / "large.json").write_text(json.dumps(document))
    page = visit("?slug=large")
    assert page.js("viewer.graph.nodes.length") == 100
    assert texts(page, "[data-testid=part] .quiet") == ["part of 400 nodes, 3,000 links"]
    name = page.js("viewer.graph.nodes.filter(n => n.kind === 'feature' && viewer.graph.mass[n.index] > 0).at(-1).id")
    links = [link for link in document["links"] if link["target"] == name]
    mass = sum(abs(link["weight"]) for link in links)
    assert page.js(f"viewer.graph.mass[viewer.graph.byId.get('{name}').index]") == pytest.approx(mass)
    page.js(f"viewer.actions.select('{name}')")
    page.click("[data-testid=around]")
    page.wait(f"window.viewer?.view.picture && location.search.includes('around={name}')", 30)
    ids = set(page.js("viewer.graph.nodes.map(n => n.id)"))
    assert {link["source"] for link in links} <= ids
    assert state(page, "clicked") == name
    shares = page.js(
        f"""(() => {{ const g = viewer.graph; const i = g.byId.get('{name}').index;
        return [...g.inLinks.subarray(g.inStart[i], g.inStart[i + 1])].reduce((s, l) => s + Math.abs(g.links.share[l]), 0);
        }})()"""
    )
    assert shares == pytest.approx(1)


@pytest.mark.slow("takes 1.9 s")
def test_features_and_their_absence(visit: Callable[..., Page], graph_folder: Path) -> None:
    page = visit()
    page.js("viewer.actions.select('0_5_0')")
    wait_for(page, "no-examples")
    (graph_folder / "features").mkdir()
    (graph_folder / "features" / "20.json").write_text(json.dumps(feature_details()))
    import gzip

    (graph_folder / "features" / "index.json.gz").write_bytes(gzip.compress(b"{}"))
    again = visit()
    again.js("viewer.actions.select('0_5_0')")
    wait_for(again, "examples")


@pytest.mark.parametrize(
    "text", ["{", '{"metadata": {}}', '{"metadata": {}, "qParams": {}, "nodes": [{}], "links": []}']
)
def test_a_malformed_graph_gives_a_message(browser: Browser, quick: Server, graph_folder: Path, text: str) -> None:
    (graph_folder / "bad.json").write_text(text)
    page = browser.page(quick.url + "?slug=bad")
    page.wait("document.querySelector('[data-testid=problem]')")
    assert "cannot be shown" in texts(page, "[data-testid=problem]")[0]
    assert page.errors() == []
    page.close()


def test_a_damaged_list_is_said_and_the_graph_is_shown(visit: Callable[..., Page], graph_folder: Path) -> None:
    (graph_folder / "graph-metadata.json").write_text("{")
    page = visit()
    assert "mend it" in texts(page, "[data-testid=toast]")[0]


@pytest.mark.slow("visits every panel: 2 s")
def test_hostile_words_are_text_everywhere(visit: Callable[..., Page], graph_folder: Path) -> None:
    hostile = '</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 1">'
    document = small_document(slug=hostile, prompt=hostile, prompt_tokens=[hostile, hostile], scan=hostile)
    document["nodes"][0]["clerp"] = hostile
    document["qParams"]["supernodes"] = [[hostile, "0_5_0", "1_7_1"]]
    (graph_folder / "small.json").write_text(json.dumps(document))
    entries = [{**document["metadata"], "slug": "small"}, {**document["metadata"], "slug": "other"}]
    (graph_folder / "graph-metadata.json").write_text(json.dumps({"graphs": entries}))
    (graph_folder / "other.json").write_text(json.dumps(document))
    page = visit()
    page.click("[data-testid=tab-test]")
    page.click(".box.group")
    page.click("[data-testid=test-add]")
    page.click("[data-testid=test-run]")
    page.wait("document.querySelector('[data-testid=test-status].finding')", 30)
    page.click("[data-testid=trace]")
    wait_for(page, "trace-dialog")
    page.js("document.querySelector('[data-testid=trace-prompt]').select()")
    page.type(hostile)
    page.wait("document.querySelectorAll('.token-row .chip').length > 3")
    assert page.js("window.hurt") is None
    assert page.js("document.querySelectorAll('main img, dialog img, main script, dialog script').length") == 0


@pytest.mark.slow("takes 1.5 s")
def test_without_a_model_the_page_shows_and_saves(browser: Browser, graph_folder: Path) -> None:
    from circuit_tracer.viewer.server import serve

    with serve(graph_folder, port=0) as server:
        page = browser.page(server.url)
        page.wait(READY)
        for name in ("trace", "prune", "tab-test"):
            assert page.js(f"document.querySelector('[data-testid={name}]')") is None
        page.key("s", CTRL)
        page.wait("document.querySelector('.toast[role=status]')")
        assert page.errors() == []
        page.close()


@pytest.mark.slow("takes 1.5 s")
def test_on_a_phone_and_in_the_dark(visit: Callable[..., Page], demo_served: Server) -> None:
    page = visit(width=390, height=800, phone=True, dark=True)
    page.click("[data-testid=narrow-2]")
    page.click("[data-testid=tab-test]")
    page.click("[data-testid=trace]")
    wait_for(page, "trace-dialog")
    assert page.js("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow("looks at every element of a served page: 6 s")
def test_axe_finds_nothing_serious(visit: Callable[..., Page], demo_served: Server, axe: str) -> None:
    page = visit()
    page.click("[data-testid=start-routes]")
    page.click("[data-testid=tab-test]")
    page.js("viewer.actions.select(viewer.graph.nodes.find(n => n.kind === 'feature').id)")
    page.click("[data-testid=test-add]")
    page.click("[data-testid=test-run]")
    wait_for(page, "odds")
    page.key("s", CTRL)
    page.wait("document.querySelector('.toast')")
    page.frames(15)
    assert findings_in_both_looks(page, axe) == []
    for name in ("trace", "prune"):
        page.click(f"[data-testid={name}]")
        wait_for(page, f"{name}-dialog")
        page.frames(15)
        assert serious_findings(page, axe) == []
        page.key("Escape")
        page.wait("document.querySelector('dialog') === null")
