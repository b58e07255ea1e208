"""Our files in circuit-tracer's own page: its front end comes from its wheel on PyPI, d3, dagre and pako from npm.

CIRCUIT_TRACER_PEER may name an interpreter that has circuit-tracer 0.5.0; else its wheel is fetched. Skipped where that or
npm cannot be reached. The page's addresses are changed in a copy, so that nothing leaves this machine.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_viewer_served import Handler

from circuit_tracer.demo import FEATURES, load_labels
from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.export import export_json
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.read_json import features_of, load_viewer_json
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.graph.files.view import View
from tests.support.browser import Browser, Page

WHEEL = "circuit-tracer==0.5.0"
SHA256 = "e457e6558e1c9eb0d3d7c54ce2298492b4e919a4f7f2b8b7e217427284fdc802"
ASSETS = "circuit_tracer/frontend/assets"
LIBRARIES = {"d3@7.9.0": "d3.min.js", "dagre@0.8.5": "dagre.min.js", "pako@2.1.0": "pako.min.js"}


@pytest.fixture(scope="session")
def peer_page(pytestconfig: pytest.Config) -> Path:
    """A copy of circuit-tracer's page that asks this machine alone."""
    cache = pytestconfig.cache.mkdir("peer-page")
    page = cache / "page"
    shutil.rmtree(page, ignore_errors=True)
    shutil.copytree(_assets(cache), page)
    library = page / "lib"
    library.mkdir()
    for name, file in LIBRARIES.items():
        shutil.copy(_package(cache, name) / "dist" / file, library / file)
    shutil.copy(Path(__file__).with_name("jetpack.js"), library / "jetpack.js")
    for empty in ("hotserver-client-ws.js", "npy_v0.js"):
        (library / empty).write_text("")
    (page / "favicon.ico").write_bytes(b"")
    theirs = "https://transformer-circuits.pub/2025/attribution-graphs/static_js/lib/"
    renamed = {
        f"{theirs}d3.js": "./lib/d3.min.js",
        f"{theirs}jetpack_2024-07-20.js": "./lib/jetpack.js",
        theirs: "./lib/",
        "https://unpkg.com/dagre@0.8.5/dist/": "./lib/",
        "https://unpkg.com/pako@2.1.0/dist/": "./lib/",
        "https://huggingface.co/": "/hub/",
    }
    for path in [*page.glob("*.html"), *page.glob("feature_examples/*.js")]:
        text = path.read_text(encoding="utf-8")
        for old, new in renamed.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    return page


def _assets(cache: Path) -> Path:
    if peer := os.environ.get("CIRCUIT_TRACER_PEER"):
        find = "import importlib.util as u; print(u.find_spec('circuit_tracer').submodule_search_locations[0])"
        found = subprocess.run([peer, "-I", "-c", find], capture_output=True, text=True, check=True, cwd="/")
        return Path(found.stdout.strip()) / "frontend" / "assets"
    wheels = list(cache.glob("circuit_tracer-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
        if subprocess.run(command, check=False, timeout=120, capture_output=True).returncode:
            pytest.skip(f"{WHEEL} cannot be fetched; set CIRCUIT_TRACER_PEER to an interpreter that has it")
        wheels = list(cache.glob("circuit_tracer-*.whl"))
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(cache, [name for name in wheel.namelist() if name.startswith(ASSETS)])
    return cache / ASSETS


def _package(cache: Path, name: str) -> Path:
    folder = cache / "node_modules" / name.split("@")[0]
    if not folder.is_dir():
        npm = shutil.which("npm")
        command = [str(npm), "install", "--silent", "--no-save", "--ignore-scripts", "--prefix", str(cache), *LIBRARIES]
        if npm is None or subprocess.run(command, check=False, timeout=120).returncode:
            pytest.skip("npm is not here or cannot fetch d3, dagre and pako")
    return folder


@pytest.fixture
def show(peer_page: Path, browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Serve the page with a graph, and features in one of both forms, and open it."""
    shutil.copytree(peer_page, tmp_path, dirs_exist_ok=True)
    for folder in ("data", "graph_data"):
        (tmp_path / folder).mkdir(exist_ok=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    pages = []

    def opener(graph: Graph, scan: str, **options: Any) -> Page:
        path = graph.to_json("shown", tmp_path / "graph_data", scan=scan, labels=load_labels(), **options)
        shutil.copy(tmp_path / "graph_data" / "graph-metadata.json", tmp_path / "data")
        document = load_viewer_json(path)
        assert validate_document(document) == []
        if scan.startswith("./"):
            export_json(FeatureFolder(FEATURES), tmp_path / scan, set(features_of(document)))
        else:
            shutil.copytree(FEATURES, tmp_path / "hub" / scan / "resolve" / "main" / "features")
        page = browser.page(f"http://127.0.0.1:{server.server_port}/index.html?slug=shown", 1500, 1100)
        page.wait("document.querySelectorAll('.link-graph text.node').length")
        pages.append(page)
        return page

    yield opener
    for page in pages:
        page.close()
    server.shutdown()
    server.server_close()


def shown_by_the_page(document: dict[str, Any]) -> set[str]:
    """Its slider starts at node_threshold and hides what lies beyond, among it the node at which the sum crosses it."""
    limit = document["metadata"]["node_threshold"]
    always = ("embedding", "logit")
    return {n["node_id"] for n in document["nodes"] if n["feature_type"] in always or n["influence"] <= limit}


@pytest.mark.slow("takes 2.4 s")
@pytest.mark.parametrize("scan", ["./feats", "org/name"], ids=["a file a feature", "binary"])
def test_nodes_tokens_rows_and_examples_are_all_there(
    show: Callable[..., Page], demo_graph: Graph, tmp_path: Path, scan: str
) -> None:
    page = show(demo_graph, scan)
    document = load_viewer_json(tmp_path / "graph_data" / "shown.json")
    count = "document.querySelectorAll('%s').length"
    shown = shown_by_the_page(document)
    assert len(shown) >= len(document["nodes"]) - 1
    assert page.js(count % ".link-graph text.node") == len(shown)
    assert page.js(count % ".link-graph g.prompt-token") == demo_graph.n_pos
    broken = "[...document.querySelectorAll('[transform]')].filter(e => /NaN|undefined/.test(e.outerHTML)).length"
    assert page.js(broken) == 0
    node = next(node for node in document["nodes"] if node["feature_type"] == "cross layer transcoder")
    page.open(View(clicked=node["node_id"]).to_url(page.js("location.href")))
    page.wait("document.querySelectorAll('.node-connections .feature-row').length")
    ends = [(link["source"], link["target"]) for link in document["links"]]
    degree = sum(node["node_id"] in pair and shown.issuperset(pair) for pair in ends)
    assert page.js(count % ".node-connections .feature-row") == degree
    page.wait("document.querySelectorAll('.feature-example-list .ctx-container').length")
    layer, index, _ = map(int, node["node_id"].split("_"))
    record = FeatureFolder(FEATURES).get((layer, index))
    examples = [example for group in record["examples_quantiles"] for example in group["examples"]]
    assert page.js(count % ".feature-example-list .ctx-container") == len(examples)
    texts = page.js("[...document.querySelectorAll('.feature-example-list .text-wrapper')].map(e => e.textContent)")
    assert texts == ["".join(example["tokens"]) for example in examples]
    assert page.js(count % ".histogram-placeholder rect.bar") == len(record["histogram"])
    assert page.errors() == []
    assert all("127.0.0.1" in address or address.startswith("data:") for address in page.requests())


@pytest.mark.slow("takes 3.2 s")
def test_pins_and_supernodes_of_a_link_are_shown(show: Callable[..., Page], demo_graph: Graph, tmp_path: Path) -> None:
    page = show(demo_graph, "./feats")
    nodes = load_viewer_json(tmp_path / "graph_data" / "shown.json")["nodes"]
    names = [node["node_id"] for node in nodes if node["feature_type"] == "cross layer transcoder"][:4]
    view = View((names[0],), (("a pair", tuple(names[1:3])),))
    page.open(view.to_url(page.js("location.href")))
    page.wait("document.querySelectorAll('.subgraph .supernode-container').length")
    assert page.js("document.querySelectorAll('.subgraph .member-circle').length") == 3
    assert page.js("document.querySelector('.subgraph').textContent").count("a pair") == 1
    assert View.from_url(page.js("location.href")).nodes == view.nodes
    assert page.errors() == []
