"""What people do with the page, done in a real browser on graphs whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from browser import Page
from documents import feature_details, small_document

from circuit_tracer.viewer import graph_page

CTRL, SHIFT = 2, 8


def state(page: Page, name: str) -> Any:
    return page.js(f"viewer.store.state.{name}")


def place(page: Page, node: str) -> tuple[float, float]:
    """Where a node is on the screen."""
    box = page.js(
        f"""(() => {{ const b = viewer.view.element.getBoundingClientRect();
        const p = viewer.view.place(viewer.graph.byId.get({json.dumps(node)})); return [b.left + p.x, b.top + p.y]; }})()"""
    )
    return box[0], box[1]


def texts(page: Page, selector: str) -> list[str]:
    return page.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def params(page: Page) -> dict[str, str]:
    page.js("new Promise(done => setTimeout(done, 200))")
    return page.js("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def pixels(page: Page, canvas: str) -> int:
    """Non-transparent pixels of a canvas."""
    return page.js(
        f"""(() => {{ const c = document.querySelector({json.dumps(canvas)});
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }})()"""
    )


@pytest.fixture
def small(open_page: Callable[..., Page]) -> Page:
    return open_page(graph_page(small_document(), {(0, 5): feature_details()}))


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
    assert "also active at" in texts(page, "[data-testid=feature-pane]")[0]


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


def test_pinning_by_ctrl_click_key_and_button(small: Page):
    small.click(place(small, "1_7_1"), CTRL)
    small.click(place(small, "0_5_0"))
    small.click("[data-testid=pin]")
    small.js("viewer.view.element.focus()")
    small.click(place(small, "3_20_1"))
    small.key("p")
    assert state(small, "pinned") == ["1_7_1", "0_5_0", "3_20_1"]
    assert sorted(texts(small, ".box-name")) == ["alpha", "gamma", "output “yes”"]
    assert params(small)["pinnedIds"] == "1_7_1,0_5_0,3_20_1"
    small.click(place(small, "1_7_1"), CTRL)
    assert state(small, "pinned") == ["0_5_0", "3_20_1"]


def test_links_of_boxes_leave_inner_links_out(small: Page):
    small.js("viewer.actions.pin(['0_5_0', '1_7_1', '3_20_1', 'E_10_0'])")
    small.js("viewer.actions.group(['0_5_0', '1_7_1'])")
    shares = small.js(
        "[...document.querySelectorAll('.wires path')].map(e => [e.dataset.from, e.dataset.to, Number(e.dataset.share)])"
    )
    # Into the group from outside: the token (2) and beta (1, not pinned); into the output: 4 + 1 of 8.
    assert sorted(shares) == [
        ["0_5_0-1_7_1", "3_20_1", pytest.approx(5 / 8)],
        ["E_10_0", "0_5_0-1_7_1", pytest.approx(2 / 3, abs=1e-4)],
    ]


def test_holding_g_groups_and_the_cross_ungroups(small: Page):
    small.js("viewer.view.element.focus()")
    small.key("g", up=False)
    for name in ("0_5_0", "1_7_1"):
        small.click(place(small, name))
    small.key("g", down=False)
    assert state(small, "groups") == [{"name": "alpha", "members": ["0_5_0", "1_7_1"]}]
    assert json.loads(params(small)["supernodes"]) == [["alpha", "0_5_0", "1_7_1"]]
    assert small.js("document.querySelectorAll('.member').length") == 2
    small.mouse("Moved", *small.center(".box"))
    small.click("[aria-label^=Ungroup]")
    assert state(small, "groups") == []
    assert state(small, "pinned") == ["0_5_0", "1_7_1"]


def test_grouping_by_button_without_a_mouse(small: Page):
    small.js("viewer.actions.pin(['0_5_0', '1_7_1'])")
    small.js("document.querySelector('[data-testid=group]').focus()")
    small.key("Enter")
    for _ in range(2):
        small.js(f"document.querySelectorAll('.box')[{_}].focus()")
        small.key("Enter")
    assert texts(small, "[data-testid=group]") == ["Group these 2"]
    small.js("document.querySelector('[data-testid=group]').focus()")
    small.key("Enter")
    assert len(state(small, "groups")) == 1


def test_renaming_a_group_and_a_node_in_the_subgraph(small: Page):
    small.js("viewer.actions.pin(['3_20_1', '0_5_0', '1_7_1']); viewer.actions.group(['0_5_0', '1_7_1'])")
    small.js("document.querySelector('.box.group').focus()")
    small.key("F2")
    small.js("document.querySelector('.rename').select()")
    small.type("my group")
    small.key("Enter")
    assert state(small, "groups")[0]["name"] == "my group"
    assert "my group" in texts(small, ".box-name")


def test_dragging_a_box_keeps_its_place_in_the_address(small: Page, open_page: Callable[..., Page]):
    small.js("viewer.actions.pin(['0_5_0', '1_7_1'])")
    small.frames()
    x, y = small.center("[data-key='1_7_1']")
    small.drag((x, y), (x - 200, y + 20))
    moved = state(small, "positions")["1_7_1"]
    assert small.center("[data-key='1_7_1']") == (pytest.approx(x - 200, abs=2), pytest.approx(y + 20, abs=2))
    address = small.js("(async () => { await new Promise(d => setTimeout(d, 200)); return location.hash })()")
    again = open_page(graph_page(small_document()), after=address)
    assert state(again, "positions")["1_7_1"] == moved
    small.js("document.querySelector(\"[data-key='1_7_1']\").focus()")
    small.key("ArrowRight")
    assert state(small, "positions")["1_7_1"][0] > moved[0]


def test_labels_are_edited_for_the_feature_and_can_be_undone(small: Page):
    small.click(place(small, "0_5_0"))
    small.js("document.querySelector('[data-testid=label-input]').select()")
    small.click("[data-testid=label-input]")
    small.key("a", CTRL)
    small.js("document.querySelector('[data-testid=label-input]').select()")
    small.type("omega")
    small.key("Enter")
    assert state(small, "labels") == {"0_5": "omega"}
    assert json.loads(params(small)["clerps"]) == [["0_5_0", "omega"]]
    small.click("[data-testid=undo]")
    assert state(small, "labels") == {}
    small.click("[data-testid=redo]")
    assert state(small, "labels") == {"0_5": "omega"}


def test_undo_and_redo_by_key(small: Page):
    small.js("viewer.actions.pin(['0_5_0']); viewer.actions.pin(['1_7_1']); viewer.view.element.focus()")
    small.key("z", CTRL)
    assert state(small, "pinned") == ["0_5_0"]
    small.key("z", CTRL)
    assert state(small, "pinned") == []
    small.key("Z", CTRL | SHIFT)
    small.key("Z", CTRL | SHIFT)
    assert state(small, "pinned") == ["0_5_0", "1_7_1"]


def set_slider(page: Page, name: str, value: float) -> None:
    page.js(
        f"""(() => {{ const e = document.querySelector('[data-testid={name}]'); e.value = {value};
        e.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"""
    )
    page.frames()


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


def test_search_over_labels_and_tokens(small: Page):
    small.key("/")
    small.type("two")
    assert sorted(
        small.js("[...document.querySelectorAll('[data-testid=find] .row')].map(e => e.dataset.id)")
    ) == sorted(["0_6_1", "1_7_1", "0_-1_1", "E_11_1", "3_20_1", "3_21_1"])
    small.js("viewer.store.set({query: 'beta two'})")
    assert texts(small, "[data-testid=find] .row .what") == ["beta"]
    small.click("[data-testid=find] .row")
    assert state(small, "clicked") == "0_6_1"
    small.click("[data-testid=pin-found]")
    assert state(small, "pinned") == ["0_6_1"]


def test_strongest_paths_between_pinned_nodes(small: Page):
    small.js("viewer.actions.pin(['0_5_0', '3_20_1'])")
    small.click("[data-testid=tab-paths]")
    assert texts(small, ".path .value") == ["+38%", "+13%"]
    assert texts(small, ".path .steps")[0] == "alpha → gamma → output “yes”"
    small.mouse("Moved", *small.center(".path"))
    small.frames()
    assert len(state(small, "path")) == 3
    small.click(".path button")
    assert state(small, "pinned") == ["0_5_0", "3_20_1", "1_7_1"]


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


def test_a_saved_view_comes_back_from_the_file(open_page: Callable[..., Page]):
    document = small_document()
    document["qParams"] = {
        "pinnedIds": ["0_5_0", "1_7_1", "gone"],
        "supernodes": [["pair", "0_5_0", "1_7_1"]],
        "clickedId": "1_7_1",
        "linkType": "both",
        "sg_pos": "",
    }
    page = open_page(graph_page(document))
    assert state(page, "pinned") == ["0_5_0", "1_7_1"]
    assert state(page, "groups") == [{"name": "pair", "members": ["0_5_0", "1_7_1"]}]
    assert state(page, "clicked") == "1_7_1"
    page.click("[data-testid=unpin-all]")
    again = open_page(graph_page(document), after="#" + "&".join(f"{k}={v}" for k, v in params(page).items()))
    assert state(again, "groups") == []
    assert state(again, "pinned") == []


def test_addresses_of_other_viewers_are_read(open_page: Callable[..., Page]):
    query = (
        '#pinnedIds=0_5_0,E_10_0&supernodes=[["A","0_5_0","1_7_1"]]&clerps=[["0_20_0","mine"]]'
        "&claudeMode=true&pruningThreshold=0.6"
    )
    page = open_page(graph_page(small_document()), after=query)
    assert state(page, "pinned") == ["0_5_0", "E_10_0", "1_7_1"]
    assert state(page, "labels") == {"0_5": "mine"}
    assert state(page, "hideErrors") is True
    assert state(page, "pruning") == 0.6


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
    assert page.errors() == []


def test_starting_from_the_strongest_routes(open_page: Callable[..., Page], demo_page: str):
    page = open_page(demo_page)
    page.click("[data-testid=start-routes]")
    kinds = page.js("[...new Set(viewer.store.state.pinned.map(id => viewer.graph.byId.get(id).kind))].sort()")
    assert kinds == ["feature", "target", "token"]
    assert page.js("document.querySelectorAll('.wires path').length") > 5
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


def test_a_selected_supernode_adds_up_the_links_of_its_members(small: Page):
    small.js("viewer.actions.pin(['0_5_0', '1_7_1', '3_20_1']); viewer.actions.group(['0_5_0', '1_7_1'])")
    small.click(".box.group")
    assert "supernode of 2 nodes" in texts(small, ".node-title")[0]
    # From outside: the token 2 and beta -1; of the output's 8 the members give 4 and 1.
    assert texts(small, "[data-testid=inputs] .row .what") == ["“one”", "beta"]
    assert texts(small, "[data-testid=inputs] .row .value") == ["+67%", "−33%"]
    assert texts(small, "[data-testid=outputs] .row .value") == ["+63%"]
    assert texts(small, ".balance-box")[0].startswith("33% features · 67% tokens")
    small.js("viewer.actions.ungroup(viewer.store.state.groups[0])")
    assert state(small, "clicked") is None
    assert small.errors() == []
