"""The graph of a real model: SmolLM2-135M with a random dictionary, thirty layers high (tests/support/real_models.py)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.viewer import graph_page
from tests.support.browser import Page
from tests.support.real_models import real_model

pytestmark = [pytest.mark.real_model, pytest.mark.slow("the first test of a model waits until its file is read")]


@pytest.fixture(scope="module")
def real_page() -> str:
    model = real_model("smollm2", activation="topk", n_features=32)
    graph = attribute("The capital of France is", model, max_feature_nodes=500)
    return graph_page(graph, slug="smollm2", node_threshold=0.9)


def test_a_graph_of_smollm2_is_drawn_and_walked(open_page: Callable[..., Page], real_page: str):
    page = open_page(real_page)
    assert page.js("viewer.graph.tokens.length") >= 5
    assert page.js("viewer.graph.topLayer") == 30
    assert page.js("[...viewer.view.layout.x, ...viewer.view.layout.y].every(Number.isFinite)")
    targets = page.js("viewer.graph.nodes.filter(n => n.kind === 'target').map(n => n.raw.token)")
    assert any(re.search("Paris", token) for token in targets)
    page.click("[data-testid=start-routes]")
    page.js("viewer.actions.select(viewer.graph.nodes.find(n => n.kind === 'target').id)")
    page.frames()
    assert page.js("document.querySelectorAll('[data-testid=inputs] .row').length") > 0
    assert page.js("viewer.store.state.pinned.length") > 2
    assert page.errors() == []
