"""The feature pane shows what was built: in the single page, and from files as they are exported."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_viewer_served import Handler
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from circuit_tracer.demo import FEATURES, load_labels
from circuit_tracer.demo.train_transcoder import TranscoderRecipe
from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.export import export_json
from circuit_tracer.features.folder import write_index, write_layer
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.read_json import features_of, load_viewer_json
from circuit_tracer.viewer import graph_page
from circuit_tracer.viewer.bundle import STATIC
from tests.support.browser import Browser, Page
from tests.support.documents import small_document

ACTIVE = (record for place in FeatureFolder(FEATURES) if (record := FeatureFolder(FEATURES).get(place))["n_active"])
RECORDS = {(0, 5): next(ACTIVE), (1, 7): next(ACTIVE)}


def shown(page: Page) -> dict[str, Any]:
    """What the pane says of the feature that is clicked."""
    page.wait("document.querySelector('[data-testid=examples]')")
    texts = "[...document.querySelectorAll('[data-testid=feature] %s')].map(e => e.textContent)"
    return {
        "lines": page.js(texts % ".example"),
        "lit": page.js(texts % ".example .lit"),
        "titles": page.js(texts % "[data-testid=examples] h4"),
        "chips": page.js(texts % ".chip.positive"),
    }


def check(found: dict[str, Any], record: dict[str, Any]) -> None:
    groups = record["examples_quantiles"]
    examples = [example for group in groups for example in group["examples"]]
    assert found["titles"] == [group["quantile_name"] for group in groups]
    assert found["lines"] == ["".join(example["tokens"]) for example in examples]
    lit = sum(sum(value > 0 for value in example["tokens_acts_list"]) for example in examples)
    assert len(found["lit"]) == lit > 0
    assert [chip.strip("\u00a0\u2423 ") for chip in found["chips"]] == [token.strip() for token in record["top_logits"]]


@pytest.mark.browser
def test_the_single_page_holds_the_features_of_its_graph(
    demo_graph: Graph, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    path = demo_graph.save(tmp_path / "graph.safetensors")
    command = ["view", str(path), "--output", str(tmp_path / "graph.html"), "--features", FEATURES]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    text = (tmp_path / "graph.html").read_text(encoding="utf-8")
    page, folder = open_page(text), FeatureFolder(FEATURES)
    document = load_viewer_json(demo_graph.to_json("graph", tmp_path, labels=load_labels()))
    embedded = page.js("Object.keys(JSON.parse(document.getElementById('feature-data').textContent)).length")
    assert embedded == len(set(features_of(document)))
    nodes = [node for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]
    for node in nodes[:3]:
        page.js(f"viewer.actions.select({json.dumps(node['node_id'])})")
        layer, index, _ = map(int, node["node_id"].split("_"))
        check(shown(page), folder.get((layer, index)))
        label = page.js("document.querySelector('[data-testid=label-input]').value")
        assert label == load_labels()[layer, index]
    assert page.errors() == []


def test_the_demo_ships_features_for_every_feature_and_label() -> None:
    folder, labels = FeatureFolder(FEATURES), load_labels()
    active = {place for place in folder if folder.get(place)["n_active"]}
    assert len(list(folder)) == 4 * TranscoderRecipe().n_features
    assert set(labels) <= active
    assert sum(file.stat().st_size for file in Path(FEATURES).iterdir()) < 3e6


@pytest.fixture(params=["binary", "json"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The page with a hand-made graph for two of whose features there are records of the demo."""
    shutil.copytree(STATIC, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / ("features" if request.param == "binary" else "built")
    write_index(
        folder,
        {
            layer: write_layer(folder, layer, 9, [(index, {**RECORDS[layer, index], "layer": layer, "index": index})])
            for layer, index in RECORDS
        },
    )
    if request.param == "json":
        export_json(FeatureFolder(folder), tmp_path / "features")
    for name in ("data", "graph_data"):
        (tmp_path / name).mkdir()
    document = small_document()
    (tmp_path / "data" / "graph-metadata.json").write_text(json.dumps({"graphs": [document["metadata"]]}))
    (tmp_path / "graph_data" / "small.json").write_text(json.dumps(document))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


@pytest.mark.browser
def test_both_forms_of_files_are_read(browser: Browser, served: str) -> None:
    page = browser.page(served)
    page.wait("window.viewer?.view.picture")
    for layer, index, position in ((0, 5, 0), (1, 7, 1)):
        page.js(f"viewer.actions.select('{layer}_{index}_{position}')")
        page.wait(f"document.querySelector('[data-testid=feature]').textContent.includes('feature {index} ')")
        check(shown(page), RECORDS[layer, index])
    page.close()


@pytest.mark.browser
def test_bytes_of_one_character_are_joined_over_tokens(open_page: Callable[..., Page]) -> None:
    example = {"tokens": ["a", "\\xe6\\x97", "\\xa5", "z"], "tokens_acts_list": [0, 0, 1, 0], "train_token_ind": 2}
    record = {"index": 5, "examples_quantiles": [{"quantile_name": "Top", "examples": [example]}]}
    page = open_page(graph_page(small_document(), {(0, 5): record}))
    page.js("viewer.actions.select('0_5_0')")
    assert shown(page)["lines"] == ["a日z"]
