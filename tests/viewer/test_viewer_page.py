"""The link graph, its lists and the page around it, in a real browser on graphs whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from circuit_tracer.viewer import empty_page, graph_page
from tests.support.browser import Page
from tests.support.documents import large_document, node, small_document
from tests.support.gestures import CTRL, SHIFT, params, pixels, place, set_slider, state, texts


def test_the_demo_graph_is_drawn_without_an_error_or_a_request(open_page: Callable[..., Page], demo_page: str):
    page = open_page(demo_page)
    assert pixels(page, ".link-graph canvas") > 5000
    nodes = page.js("viewer.graph.nodes.length")
    assert texts(page, "[data-testid=counts]")[0].startswith(f"{nodes} nodes")
    assert page.errors() == []
    assert [address for address in page.requests() if not address.startswith(("file:", "data:"))] == []


def test_pointing_shows_what_a_node_is(small: Page):
    small.mouse("Moved", *place(small, "0_5_0"))
    small.frames()
    assert "alpha" in texts(small, "[data-testid=tooltip]")[0]
    assert small.js("document.querySelector('[data-testid=label-input]').value") == "alpha"
    small.mouse("Moved", *place(small, "1_7_1"), modifiers=CTRL)
    assert '"node_id"' in texts(small, "[data-testid=tooltip]")[0]


def test_the_same_feature_at_another_token_is_marked(open_page: Callable[..., Page]):
    document = small_document()
    twin = {**document["nodes"][0], "node_id": "0_5_1", "jsNodeId": "0_5_1", "ctx_idx": 1}
    document["nodes"].append(twin)
    page = open_page(graph_page(document))
    page.mouse("Moved", *place(page, "0_5_0"))
    page.frames()
    assert "also active at" in texts(page, "[data-testid=feature]")[0]


def test_shift_keeps_the_pane_while_the_mouse_travels(small: Page):
    small.mouse("Moved", *place(small, "0_5_0"))
    small.key("Shift", SHIFT, up=False)
    small.mouse("Moved", *place(small, "1_7_1"), modifiers=SHIFT)
    assert state(small, "hovered") == "0_5_0"
    small.key("Shift", 0, down=False)
    small.mouse("Moved", *place(small, "1_7_1"))
    assert state(small, "hovered") == "1_7_1"


def test_a_click_selects_and_lists_connections_by_share(small: Page):
    small.click(place(small, "3_20_1"))
    assert state(small, "clicked") == "3_20_1"
    assert texts(small, "[data-testid=inputs] .row .what") == ["gamma", "error", "alpha"]
    assert texts(small, "[data-testid=inputs] .row .value") == ["+50%", "−38%", "+13%"]
    assert (
        "50% features · 38% errors" in texts(small, ".balance-box")[0]
        or "63% features" in texts(small, ".balance-box")[0]
    )
    small.click("[data-testid=inputs] [data-id='1_7_1']")
    assert state(small, "clicked") == "1_7_1"
    assert texts(small, "[data-testid=outputs] .row .what") == ["output “yes”"]
    assert params(small)["clickedId"] == "1_7_1"
    small.click(place(small, "1_7_1"))
    assert state(small, "clicked") is None


def test_a_click_on_nothing_unselects(small: Page):
    small.click(place(small, "1_7_1"))
    x, y = place(small, "3_20_1")
    small.click((x - 400, y))
    assert state(small, "clicked") is None


def test_inputs_by_token(small: Page):
    small.click(place(small, "1_7_1"))
    small.click("[data-testid=group-by-token]")
    assert texts(small, ".token-group summary .chip") == ["one", "two"]
    assert texts(small, ".token-group summary .value") == ["+75%", "−25%"]


def test_pruning_hides_the_less_important_but_never_what_is_pinned(small: Page):
    small.js("viewer.actions.pin(['1_7_1'])")
    set_slider(small, "pruning", 0.3)
    shown = small.js("viewer.graph.nodes.filter(n => viewer.view.shown[n.index]).map(n => n.id)")
    assert shown == ["0_5_0", "1_7_1", "E_10_0", "E_11_1", "3_20_1", "3_21_1"]
    assert params(small)["pruningThreshold"] == "0.3"


def test_shares_do_not_move_with_the_filters(small: Page):
    small.click(place(small, "3_20_1"))
    small.click("[data-testid=show-errors]")
    assert texts(small, "[data-testid=inputs] .row .value") == ["+50%", "+13%"]


def test_errors_and_weak_links_can_be_hidden(small: Page):
    small.click("[data-testid=show-errors]")
    assert state(small, "hideErrors") is True
    assert small.js("viewer.view.shown[viewer.graph.byId.get('0_-1_1').index]") == 0
    set_slider(small, "edge-threshold", 0.7)  # shares of 0.343 and more
    assert small.js("viewer.view.links.length") == 5
    assert params(small) == {"hideErrors": "true", "edgeThreshold": str(0.7**3)}


@pytest.mark.slow("takes 2 s")
def test_features_that_are_active_on_many_tokens_can_be_hidden(open_page: Callable[..., Page]):
    document = small_document()
    details = {(0, 5): {"activation_frequency": 0.5}, (0, 6): {"activation_frequency": 0.001}, (1, 7): {}}
    page = open_page(graph_page(document, details))
    set_slider(page, "density", 0.5)
    assert state(page, "density") == 0.01
    shown = "viewer.graph.nodes.filter(n => viewer.view.shown[n.index] && n.kind === 'feature').map(n => n.id)"
    assert page.js(shown) == ["0_6_1", "1_7_1"]
    page.js("viewer.actions.pin(['0_5_0'])")
    assert page.js(shown) == ["0_5_0", "0_6_1", "1_7_1"]
    again = open_page(graph_page(document, details), after=f"#densityThreshold={params(page)['densityThreshold']}")
    assert again.js(shown) == ["0_6_1", "1_7_1"]
    set_slider(again, "density", 1)
    assert len(again.js(shown)) == 3
    unknown = open_page(graph_page(document, {(1, 7): {}}))
    assert unknown.js("document.querySelector('[data-testid=density]')") is None


def test_search_over_labels_and_tokens(small: Page):
    small.key("/")
    small.type("two")
    assert sorted(
        small.js("[...document.querySelectorAll('[data-testid=nodes] .row')].map(e => e.dataset.id)")
    ) == sorted(["0_6_1", "1_7_1", "0_-1_1", "E_11_1", "3_20_1", "3_21_1"])
    small.js("viewer.store.set({query: 'beta two'})")
    assert texts(small, "[data-testid=nodes] .row .what") == ["beta"]
    small.click("[data-testid=nodes] .row")
    assert state(small, "clicked") == "0_6_1"
    small.click("[data-testid=pin-found]")
    assert state(small, "pinned") == ["0_6_1"]


def test_the_pane_shows_examples_logits_and_says_why_there_are_none(small: Page):
    small.click(place(small, "0_5_0"))
    small.wait("document.querySelector('[data-testid=examples]')")
    assert texts(small, ".example")[0] == "a b c"
    assert texts(small, ".example")[1].startswith("é")
    assert texts(small, ".logits .chip") == ["up", "more", "down"]
    assert small.js("document.querySelectorAll('.histogram span').length") == 3
    small.click(place(small, "1_7_1"))
    small.wait("document.querySelector('[data-testid=no-examples]')")
    assert "without examples for this feature" in texts(small, "[data-testid=no-examples]")[0]


def test_zoom_and_pan(small: Page):
    x, y = place(small, "1_7_1")
    small.mouse("Wheel", x, y, deltaX=0, deltaY=-400)
    small.frames()
    assert small.js("viewer.view.camera.zoom") > 1.5
    assert place(small, "1_7_1") == (pytest.approx(x, abs=2), pytest.approx(y, abs=2))
    small.drag((x + 60, y + 40), (x + 10, y + 20))
    assert place(small, "1_7_1") == (pytest.approx(x - 50, abs=2), pytest.approx(y - 20, abs=2))
    assert state(small, "clicked") is None
    small.key("0")
    assert small.js("viewer.view.camera") == {"zoom": 1, "x": 0, "y": 0}


def test_the_graph_is_walked_with_keys_and_spoken(small: Page):
    small.js("viewer.view.element.focus()")
    small.key("ArrowDown")
    small.key("i")
    assert state(small, "focused") in ("1_7_1", "0_6_1")
    assert "inputs" in texts(small, "[data-testid=spoken]")[0]
    small.key("ArrowDown")
    small.key("ArrowDown")
    assert small.js("viewer.graph.byId.get(viewer.store.state.focused).kind") == "token"
    small.key("o")
    small.key("Enter")
    assert state(small, "clicked") == state(small, "focused")
    small.key("Escape")
    assert state(small, "clicked") is None


@pytest.mark.slow("takes 1.4 s")
def test_pictures_and_json_can_be_saved(small: Page):
    small.js("viewer.actions.pin(['0_5_0', '1_7_1']); viewer.actions.relabel(viewer.graph.nodes[0], 'a < b & c')")
    small.js(
        """window.saved = {}; URL.createObjectURL = (blob) => { window.blob = blob; return '#'; };
        HTMLAnchorElement.prototype.click = function () { saved[this.download] = window.blob; }"""
    )
    for name in ("save-svg", "save-png", "save-subgraph-svg", "save-subgraph-png", "save-json"):
        small.click("[data-testid=save-menu]")
        small.click(f"[data-testid={name}]")
    small.wait("Object.keys(saved).length === 5")
    shapes = small.js(
        """saved['small.svg'].text().then(t => { const d = new DOMParser().parseFromString(t, 'image/svg+xml');
        return [d.querySelectorAll('parsererror').length, d.querySelectorAll('circle').length]; })"""
    )
    assert shapes == [0, 3]
    assert "a &lt; b &amp; c" in small.js("saved['small-subgraph.svg'].text()")
    assert small.js("saved['small.png'].size") > 2000
    assert small.js("createImageBitmap(saved['small-subgraph.png']).then(b => b.width)") > 400
    saved = json.loads(small.js("saved['small.json'].text()"))
    assert saved["qParams"]["pinnedIds"] == ["0_5_0", "1_7_1"]
    assert saved["nodes"][0]["clerp"] == "a < b & c"
    assert small.errors() == []


def test_dialogs_of_report_and_help(small: Page):
    small.js("viewer.actions.pin(['1_7_1'])")
    small.click("[data-testid=report-button]")
    report = texts(small, "[data-testid=report]")[0]
    assert "pinned nodes only (1)" in report
    assert "nothing had to be mended" in report
    small.key("Escape")
    assert small.js("document.querySelector('dialog')") is None
    small.key("?")
    assert "undo, redo" in texts(small, "[data-testid=help]")[0]


def test_the_report_shows_what_interventions_found(open_page: Callable[..., Page]):
    text = "<img src=x onerror=window.hacked=1>"
    validation = {"verdict": ["It explains 71%.", 7], "distrust": [text], "numbers": {"cosine": 0.8123, "no": None}}
    page = open_page(graph_page(small_document(validation=validation)))
    page.click("[data-testid=report-button]")
    found = texts(page, "[data-testid=faithfulness]")[0]
    assert "It explains 71%." in found
    assert text in found
    assert "cosine0.812" in found
    assert page.js("window.hacked") is None
    page = open_page(graph_page(small_document(validation={"verdict": None, "distrust": {}, "numbers": []})))
    page.click("[data-testid=report-button]")
    assert texts(page, "[data-testid=faithfulness]") == []
    page = open_page(graph_page(small_document(validation={"verdict": ["Fine."]})))
    page.click("[data-testid=report-button]")
    assert "nothing was found" in texts(page, "[data-testid=faithfulness]")[0]
    assert page.errors() == []


def test_the_theme_changes_colours_of_the_drawing(small: Page):
    before = small.js("viewer.view.palette.panel")
    for _ in range(2):
        small.click("[data-testid=theme]")
    assert small.js("document.documentElement.dataset.theme") == "dark"
    assert small.js("viewer.view.palette.panel") != before


def test_one_panel_at_a_time_on_a_phone(open_page: Callable[..., Page], demo_page: str):
    page = open_page(demo_page, width=390, height=800, phone=True)
    visible = (
        "[...document.querySelectorAll('.panel')].filter(e => e.offsetParent).map(e => e.getAttribute('aria-label'))"
    )
    assert page.js(visible) == ["Link graph"]
    page.click("[data-testid=narrow-2]")
    assert page.js(visible) == ["Lists"]
    assert page.js("document.documentElement.scrollWidth") <= 390
    page.click("[data-testid=narrow-0]")
    page.js("document.querySelector('[data-testid=search]').focus()")
    page.type("state")
    assert page.js(visible) == ["Lists"]
    assert texts(page, "[data-testid=nodes] .row")
    assert page.errors() == []


def test_the_difference_of_two_outputs(open_page: Callable[..., Page]):
    page = open_page(graph_page(small_document()), after="#logitDiff=yes__vs__no&clickedId=difference_3_20_1_3_21_1")
    assert texts(page, "[data-testid=inputs] .row .what") == ["gamma", "error", "alpha", "beta"]
    assert texts(page, "[data-testid=inputs] .row .value") == ["+44%", "−33%", "+11%", "−11%"]
    lost = open_page(
        graph_page(small_document()),
        after="#logitDiff=yes__vs__maybe",
        ready="document.querySelector('[data-testid=problem]')",
    )
    assert "“maybe”; the graph has yes, no" in texts(lost, "[data-testid=problem]")[0]


def test_a_difference_is_made_and_left_on_the_page(open_page: Callable[..., Page]):
    page = open_page(graph_page(small_document()), after="#clickedId=3_20_1&pinnedIds=0_5_0")
    page.click("[data-testid=difference-go]")
    page.wait("window.viewer?.graph.difference === 'difference_3_20_1_3_21_1' && viewer.view.picture")
    assert state(page, "clicked") == "difference_3_20_1_3_21_1"
    assert state(page, "pinned") == ["0_5_0"]
    assert texts(page, "[data-testid=inputs] .row .value") == ["+44%", "−33%", "+11%", "−11%"]
    page.click("[data-testid=difference-end]")
    page.wait("window.viewer && !viewer.graph.difference && viewer.view.picture")
    assert state(page, "clicked") == "3_20_1"


def test_the_link_that_is_copied_holds_what_was_just_pinned(small: Page):
    page = small
    page.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.js("viewer.actions.pin(['0_5_0'])")
    page.click("[data-testid=save-menu]")
    page.click("[data-testid=copy-link]")
    page.wait("window.copied")
    assert "pinnedIds=0_5_0" in page.js("window.copied")
    page.wait("document.querySelector('[data-testid=toast]')?.textContent.includes('Link copied')")


def test_nodes_stand_under_headings_most_important_first(small: Page):
    page = small
    page.js("viewer.open('nodes')")
    page.frames()
    heads = [text.split()[0] for text in texts(page, "[data-testid=nodes] h4")]
    assert heads == ["Outputs", "Features", "Errors", "Tokens"]
    ids = page.js("[...document.querySelectorAll('[data-testid=nodes] .row')].map(e => e.dataset.id)")
    known = page.js(
        "Object.fromEntries(viewer.graph.nodes.map(n => [n.id, [n.kind, n.influence ?? 2, -(n.probability ?? 0)]]))"
    )
    order = {"target": 0, "feature": 1, "error": 2, "attention error": 2, "token": 3}
    keys = [(order[known[each][0]], *known[each][1:]) for each in ids]
    assert keys == sorted(keys)
    assert len(ids) == len(known)


def test_many_features_leave_no_kind_of_node_out_of_the_list(open_page: Callable[..., Page]):
    document = large_document(300, 400)
    document["nodes"].append(node("A", "lorsa", "0", 1, influence=0.0))
    page = open_page(graph_page(document))
    page.js("viewer.open('nodes')")
    page.frames()
    assert texts(page, "[data-testid=nodes] h4") == ["Outputs 10", "Features 251", "Tokens 40"]
    assert page.js("document.querySelectorAll('[data-testid=nodes] .row').length") == 250
    assert page.js("document.querySelector('[data-testid=nodes] [data-id=A]') !== null")


def test_a_circuit_that_was_not_looked_at_has_its_picture(open_page: Callable[..., Page]):
    ready = "window.viewer?.view.picture"
    page = open_page(graph_page(small_document()), after="#pinnedIds=0_5_0", ready=ready, width=390, phone=True)
    assert page.js("viewer.subgraph.element.clientWidth") == 0
    assert "alpha" in page.js("viewer.subgraph.picture().textContent")


def test_a_feature_of_a_source_set_of_neuronpedia_has_its_page(open_page: Callable[..., Page]):
    document = small_document()
    document["metadata"] |= {"scan": "gemma-2-2b", "feature_details": {"neuronpedia_source_set": "clt-hp"}}
    page = open_page(graph_page(document), after="#clickedId=0_5_0")
    link = "document.querySelector('[data-testid=neuronpedia]')"
    assert page.js(f"{link}.href") == "https://www.neuronpedia.org/gemma-2-2b/0-clt-hp/5"
    page.js("viewer.actions.select('3_20_1')")
    page.frames()
    assert page.js(f"{link} === null")
    document["metadata"]["scan"] = 'x"/><script>'
    assert open_page(graph_page(document), after="#clickedId=0_5_0").js(f"{link} === null")


def test_a_page_without_a_graph_opens_a_file(open_page: Callable[..., Page]):
    ready = "document.querySelector('[data-testid=open-file]')"
    page = open_page(empty_page(), ready=ready)
    page.js("localStorage.setItem('circuit-tracer-theme', 'dark')")
    page.call("Page.reload")
    page.wait("performance.getEntriesByType('navigation')[0].type === 'reload' && " + ready)
    assert page.js("document.documentElement.dataset.theme") == "dark"
    page.js(
        f"""(() => {{ const data = new DataTransfer();
        data.items.add(new File([{json.dumps(json.dumps(small_document()))}], 'g.json'));
        const e = document.querySelector('[data-testid=open-file]'); e.files = data.files;
        e.dispatchEvent(new Event('change')); }})()"""
    )
    page.wait("window.viewer?.view.picture")
    assert page.js("viewer.graph.nodes.length") == len(small_document()["nodes"])
    assert texts(page, "[data-testid=difference-go]") == [], "a reload would lose the file"
    assert page.errors() == []


def test_the_difference_has_no_numbers_of_its_first_output(open_page: Callable[..., Page]):
    document = small_document()
    rule = {"inputs": 1.0, "unselected": 2.0, "bias": 3.0, "pre_activation": 6.0, "residual": 0.0}
    document["nodes"][6] |= {"sum_rule": rule, "input_mass": 100.0}
    after = "#logitDiff=yes__vs__no&clickedId=difference_3_20_1_3_21_1&pinnedIds=difference_3_20_1_3_21_1,0_5_0"
    page = open_page(graph_page(document), after=after)
    assert texts(page, "[data-testid=inputs] .row .value") == ["+44%", "−33%", "+11%", "−11%"]
    assert texts(page, "[data-testid=sum-rule]") == []
    saved = page.js(
        """new Promise(done => { URL.createObjectURL = (blob) => { blob.text().then(done); return '#'; };
        HTMLAnchorElement.prototype.click = () => {};
        document.querySelector('[data-testid=save-json]').click(); })"""
    )
    assert json.loads(saved)["qParams"]["pinnedIds"] == ["0_5_0"]
    assert json.loads(saved)["qParams"]["clickedId"] == ""
    page.js("viewer.actions.select('3_20_1')")
    assert len(texts(page, "[data-testid=sum-rule]")) == 1


def test_all_is_shown_again_at_the_end_of_the_slider(open_page: Callable[..., Page]):
    document = small_document(node_threshold=0.855)
    document["nodes"][2]["influence"] = 0.854
    page = open_page(graph_page(document))
    for value, count in ((0.5, 6), (1, 8)):
        set_slider(page, "pruning", value)
        assert page.js("viewer.view.count") == count
    assert state(page, "pruning") == 0.855


@pytest.mark.parametrize("button", ["right", "middle"])
def test_other_buttons_select_nothing(small: Page, button: str):
    small.js("viewer.actions.pin(['0_5_0'])")
    small.frames()
    for x, y in (place(small, "1_7_1"), small.center(".box")):
        small.mouse("Moved", x, y)
        small.mouse("Pressed", x, y, button=button)
        small.mouse("Released", x, y, button=button)
        small.frames()
    assert state(small, "clicked") is None


def test_pictures_hold_no_control_characters(open_page: Callable[..., Page]):
    document = small_document(prompt="one\u0001two")
    document["qParams"]["pinnedIds"] = ["0_5_0", "1_7_1"]
    document["qParams"]["supernodes"] = [["a\u0002b", "0_5_0", "1_7_1"]]
    page = open_page(graph_page(document))
    page.js(
        """window.saved = []; URL.createObjectURL = (blob) => { saved.push(blob); return '#'; };
        HTMLAnchorElement.prototype.click = () => {};"""
    )
    for name in ("save-svg", "save-subgraph-svg"):
        page.js(f"document.querySelector('[data-testid={name}]').click()")
    errors = page.js(
        """Promise.all(saved.map(blob => blob.text().then(text =>
        new DOMParser().parseFromString(text, 'image/svg+xml').querySelectorAll('parsererror').length)))"""
    )
    assert errors == [0, 0]


def test_a_panel_can_fill_the_page(small: Page):
    visible = "[...document.querySelectorAll('.panel')].filter(e => e.offsetParent).length"
    before = small.js("viewer.view.width")
    small.click(".graph-panel [data-testid=enlarge]")
    assert small.js(visible) == 1
    small.wait(f"viewer.view.width > {before}")
    small.js("viewer.view.element.focus()")
    small.key("f")
    assert small.js(visible) == 4


def test_borders_move_by_key_and_mouse(small: Page):
    before = small.js("viewer.view.width")
    small.js("document.querySelector('.border.x').focus()")
    small.key("ArrowLeft")
    small.wait(f"viewer.view.width < {before}")
    x, y = small.center(".border.x")
    small.drag((x, y), (x + 100, y))
    small.wait(f"viewer.view.width > {before}")
