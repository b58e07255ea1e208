"""The single file as text: what is in it, and that nothing in it can end its element or load anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from circuit_tracer.demo import load_labels
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.viewer import graph_frame, graph_page, write_page
from circuit_tracer.viewer.bundle import STATIC, bundled_script, bundled_style
from tests.support.documents import feature_details, small_document

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)>"


def data_of(page: str, name: str) -> object:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_modules_become_calls_in_the_order_of_their_imports(tmp_path: Path):
    (tmp_path / "main.js").write_text('import { a, b as c } from "./low.js";\na(c);\n')
    (tmp_path / "low.js").write_text("export const b = 1;\nexport function a() {}\nexport async function d() {}\n")
    script = bundled_script(tmp_path)
    assert script.index("module_low =") < script.index("module_main =")
    assert "const { a, b: c } = module_low;" in script
    assert "return { b, a, d };" in script


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('import x from "./main.js";', "no form of import"),
        ("export default 1;", "no form of import"),
        ('import { a } from "./main.js";', "circle"),
        ('import { a } from "./gone.js";', "missing"),
        ('const x = import("./a.js");', "no form of import"),
    ],
)
def test_modules_that_cannot_be_bundled_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "main.js").write_text(text + "\n")
    with pytest.raises(CircuitTracerError, match=message):
        bundled_script(tmp_path)


def test_every_module_is_used_and_loads_nothing_from_a_network():
    script = bundled_script()
    for path in STATIC.glob("*.js"):
        assert f"// {path.name}\n" in script, f"{path.name} is not imported by anything"
    for path in STATIC.iterdir():
        addresses = re.findall(r"https?://[\w./-]+", path.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org/2000/svg", "https://www.neuronpedia.org/"}, (
            path.name
        )  # the last: a link
        assert "innerHTML" not in path.read_text(encoding="utf-8"), path.name
    for path in STATIC.glob("*.css"):
        assert path.read_text(encoding="utf-8") in bundled_style(), f"index.html does not name {path.name}"


def test_hostile_strings_stay_inside_their_element():
    document = small_document(prompt=HOSTILE, slug=HOSTILE)
    document["nodes"][0]["clerp"] = HOSTILE
    page = graph_page(document, {(0, 5): {"top_logits": [HOSTILE]}})
    assert data_of(page, "graph-data") == document
    assert "<script>alert" not in page
    assert page.count("<script") == 3
    assert page.count("<!--") == 0


def test_the_policy_allows_only_the_page_itself():
    page = graph_page(small_document())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r'<script type="module">(.*)</script>', page, re.DOTALL)
    assert policy
    assert script
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()}'" in policy[1]


def test_only_features_of_the_graph_enter_the_page():
    page = graph_page(small_document(), {(0, 5): feature_details(), (0, 99): {"index": 99}})
    assert list(data_of(page, "feature-data")) == ["20"]  # the pairing of layer 0 and index 5


def test_a_graph_is_pruned_labelled_and_carries_its_sum_rule(demo_graph, demo_page: str):
    document = data_of(demo_page, "graph-data")
    features = [node for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]
    assert document["metadata"]["node_threshold"] == 0.95
    labels = load_labels()
    for node in features:
        layer, index, _ = map(int, node["node_id"].split("_"))
        assert node["clerp"] == labels.get((layer, index), "")
        rule = node["sum_rule"]
        assert rule["inputs"] + rule["unselected"] + rule["bias"] == pytest.approx(rule["pre_activation"], rel=1e-5)
        assert rule["residual"] < 1e-5


def test_files_and_frames(tmp_path: Path):
    source = tmp_path / "g.json"
    source.write_text(json.dumps(small_document()))
    written = write_page(source, tmp_path / "g.html")
    assert written.read_text(encoding="utf-8") == graph_page(small_document())
    frame = graph_frame(small_document(prompt=HOSTILE), height=500)
    assert html.unescape(frame.split('srcdoc="')[1].removesuffix('"></iframe>')) == graph_page(
        small_document(prompt=HOSTILE)
    )
    assert 'sandbox="allow-scripts allow-downloads"' in frame


def test_what_is_no_graph_is_refused():
    with pytest.raises(InputError, match="lacks metadata"):
        graph_page({"nodes": []})
    document = small_document()
    document["links"][0]["weight"] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        graph_page(document)
