"""Pins, groups, labels, routes and their saving, in a real browser on graphs whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from circuit_tracer.viewer import graph_page
from tests.support.browser import Page
from tests.support.documents import small_document
from tests.support.gestures import CTRL, SHIFT, params, place, state, texts


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


@pytest.mark.slow("takes 1.2 s")
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


@pytest.mark.slow("takes 1.6 s")
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


@pytest.mark.slow("takes 2 s")
def test_what_was_taken_from_a_saved_view_stays_away(open_page: Callable[..., Page]):
    document = small_document()
    document["qParams"] |= {
        "pinnedIds": ["0_5_0", "1_7_1"],
        "linkType": "input",
        "sg_pos": "100 200 300 400",
        "clerps": [["0_5_0", "mine"]],
    }
    page = open_page(graph_page(document))
    assert state(page, "linkType") == "input"
    assert state(page, "labels") == {"0_5": "mine"}
    assert len(state(page, "positions")) == 2
    page.js("viewer.actions.relabel(viewer.graph.byId.get('0_5_0'), ''); viewer.store.set({ positions: {} })")
    page.js("viewer.store.set({ linkType: 'both' })")
    again = open_page(graph_page(document), after="#" + "&".join(f"{k}={v}" for k, v in params(page).items()))
    assert state(again, "labels") == {}
    assert state(again, "positions") == {}
    assert state(again, "linkType") == "both"


@pytest.mark.slow("takes 1.5 s")
def test_the_focus_stays_in_a_list_that_is_drawn_anew(small: Page):
    focused = "[document.activeElement.closest('[data-testid]')?.dataset.testid, document.activeElement.dataset.id]"
    small.js("viewer.actions.select('1_7_1')")
    small.js("document.querySelector('[data-testid=outputs] .row').focus()")
    small.js("viewer.actions.pin(['0_5_0'])")
    assert small.js(focused) == ["outputs", "3_20_1"]
    small.key("Enter")
    assert state(small, "clicked") == "3_20_1"
    assert small.js(focused) == ["pin", None]
    small.click("[data-testid=tab-nodes]")
    small.js("document.querySelector(\"[data-testid=nodes] [data-id='0_6_1']\").focus()")
    small.js("viewer.actions.pin(['3_20_1'])")
    assert small.js(focused) == ["nodes", "0_6_1"]
    small.key("Enter")
    assert small.js(focused) == ["pin", None]
    small.click("[data-testid=tab-paths]")
    small.js("document.querySelector('.path button').focus()")
    small.key("Enter")
    assert small.js("document.activeElement.dataset.id") == "0_5_0 1_7_1 3_20_1"


def test_a_drag_that_is_broken_off_moves_nothing(small: Page):
    small.js("viewer.actions.pin(['0_5_0', '1_7_1'])")
    small.frames()
    x, y = small.center("[data-key='1_7_1']")
    small.mouse("Moved", x, y)
    small.mouse("Pressed", x, y)
    small.mouse("Moved", x - 60, y + 10, button="left", buttons=1)
    small.js(
        """document.querySelector("[data-key='1_7_1']").dispatchEvent(new PointerEvent('pointercancel', { pointerId: 1 }))"""
    )
    small.mouse("Moved", x - 120, y + 20, button="left", buttons=1)
    small.mouse("Released", x - 120, y + 20)
    small.frames()
    assert small.center("[data-key='1_7_1']") == (pytest.approx(x, abs=1), pytest.approx(y, abs=1))
    assert state(small, "positions") == {}
    assert state(small, "clicked") is None


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


def test_starting_from_the_strongest_routes(open_page: Callable[..., Page], demo_page: str):
    page = open_page(demo_page)
    page.click("[data-testid=start-routes]")
    kinds = page.js("[...new Set(viewer.store.state.pinned.map(id => viewer.graph.byId.get(id).kind))].sort()")
    assert kinds == ["feature", "target", "token"]
    assert page.js("document.querySelectorAll('.wires path').length") > 5
    assert page.errors() == []


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
