"""A graph from a link to Neuronpedia, to a local server, or from a file: each against a server on this machine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer import http
from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, ResourceError
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.view import View
from circuit_tracer.viewer.download import fetch_graph
from circuit_tracer.viewer.server import serve
from tests.support.fake_servers import FakeServer
from tests.support.graph_cases import random_graph

MODEL = "gemma-2-2b"
CHOSEN = "pinnedIds=E_3_1&supernodes=" + '[["state","0_1_2","0_2_2"]]'


TEXTS = list("abcd")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_graph()


@pytest.fixture(scope="module")
def written(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    view = View((graph.nodes.ids()[-1],))
    return graph.to_json("two-hop", tmp_path_factory.mktemp("graphs"), scan=MODEL, view=view, token_strings=TEXTS)


class Pedia:
    """Neuronpedia's record of a graph, and the store where its JSON is. Both need no key; a key that comes is noted."""

    def __init__(self, document: Any) -> None:
        self.document, self.address, self.keys = document, "", list[str]()
        self.record: Any = None

    def __call__(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        self.keys += [headers["x-api-key"]] if "x-api-key" in headers else []
        record = {"modelId": MODEL, "slug": "two-hop", "sourceSetName": "set", "url": f"{self.address}/store/1.json"}
        answers = {
            f"/api/graph/{MODEL}/two-hop": self.record or record,
            "/api/graph/my%20model/two-hop": record,
            "/store/1.json": self.document,
            "/graph_data/two-hop.json": self.document,
        }
        return (200, answers[path]) if path in answers else (404, {"error": "Graph Not Found"})


@pytest.fixture
def pedia(written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pedia]:
    answers = Pedia(json.loads(written.read_text(encoding="utf-8")))
    with FakeServer(answers).running() as server:
        answers.address = server.address
        monkeypatch.setenv("NEURONPEDIA_HOST", server.address)
        monkeypatch.setenv("NEURONPEDIA_API_KEY", "secret")
        yield answers


def test_a_link_to_neuronpedia(pedia: Pedia, graph: Graph) -> None:
    fetched = fetch_graph(f"{pedia.address}/{MODEL}/graph?slug=two-hop&{CHOSEN}")
    assert fetched.record["sourceSetName"] == "set"
    assert fetched.source == f"{pedia.address}/store/1.json"
    assert fetched.view == View(("E_3_1",), (("state", ("0_1_2", "0_2_2")),))
    assert fetched.token_ids == graph.input_tokens.tolist()
    assert fetched.tokens == TEXTS
    assert fetched.prompt == graph.input_string
    assert not pedia.keys


@pytest.mark.parametrize(
    "spelled",
    [
        "{}/gemma-2-2b/graph?slug=two-hop",
        "gemma-2-2b/two-hop",
        "{}/my%20model/graph?slug=two-hop",
        "{}/?slug=two-hop",
        "{}/index.html?slug=two-hop",
        "{}/#slug=two-hop",
        "{}/store/1.json",
    ],
)
def test_other_spellings_have_the_view_of_the_file(pedia: Pedia, graph: Graph, spelled: str) -> None:
    fetched = fetch_graph(spelled.format(pedia.address))
    assert fetched.view.pinned == (graph.nodes.ids()[-1],)
    assert len(fetched.document["nodes"]) == len(pedia.document["nodes"])
    assert not pedia.keys


@pytest.mark.parametrize("packed", [False, True])
def test_a_downloaded_file(written: Path, tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("x.json.gz" if packed else "x.json")
    path.write_bytes(gzip.compress(written.read_bytes()) if packed else written.read_bytes())
    fetched = fetch_graph(path)
    assert fetched.document["metadata"]["slug"] == "two-hop"
    assert len(fetched.view.pinned) == 1


def test_our_own_server(written: Path, graph: Graph) -> None:
    server = serve(written.parent, port=0)
    try:
        fetched = fetch_graph(View(("E_3_1",)).to_url(f"{server.url}?slug=two-hop"))
    finally:
        server.stop()
    assert fetched.view.pinned == ("E_3_1",)
    assert fetched.token_ids == graph.input_tokens.tolist()


@pytest.mark.parametrize(
    ("spelled", "error", "said"),
    [
        ("{}/gemma-2-2b/graph?slug=gone", InputError, "Graph Not Found"),
        ("{}/?slug=gone", InputError, "there is no graph at"),
        ("{}/gone.json", InputError, "is it there"),
        ("{}/gemma-2-2b/graph", InputError, "no slug="),
        ("no graph at all", InputError, "expected a link"),
        ("gone.json", InputError, "gone.json"),
        ("ftp://example.org/x/graph?slug=a", InputError, "expected a link"),
        ("pasted twice " * 1000, InputError, "expected a link"),
        ("http://[::1/x.json", InputError, "is no address .*expected a link"),
        ("{}/ü.json", InputError, "is no address"),
        ("http://a b/x.json", InputError, "is no address"),
        ("http://localhost:port/gemma-2-2b/graph?slug=a", InputError, "is no address"),
    ],
)
def test_what_is_no_graph(pedia: Pedia, spelled: str, error: type[CircuitTracerError], said: str) -> None:
    with pytest.raises(error, match=said):
        fetch_graph(spelled.format(pedia.address))


@pytest.mark.parametrize("record", [{"url": "file:///etc/hostname"}, {"slug": "x"}, ["x"]])
def test_a_record_leads_nowhere_but_to_a_server(pedia: Pedia, record: Any) -> None:
    pedia.record = record
    with pytest.raises(FileFormatError, match="does not say where"):
        fetch_graph(f"{MODEL}/two-hop")


def test_a_document_that_is_none(pedia: Pedia) -> None:
    pedia.document = {"metadata": {}}
    with pytest.raises(FileFormatError, match="lacks metadata, nodes or links"):
        fetch_graph(f"{MODEL}/two-hop")
    pedia.document = {"metadata": {"prompt_tokens": ["a"]}, "nodes": [], "links": [], "qParams": {}}
    with pytest.raises(FileFormatError, match="which token stands at 0"):
        _ = fetch_graph(f"{MODEL}/two-hop").token_ids


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0)
    with pytest.raises(ResourceError, match="cannot be reached"):
        fetch_graph("http://127.0.0.1:9/gemma-2-2b/graph?slug=a")


def test_a_link_without_its_scheme_is_neuronpedias(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(method: str, url: str, *_: Any) -> bytes:
        asked.append(url)
        raise http.RefusedRequest(url, 404, "Graph Not Found")

    monkeypatch.setattr(http, "request", refuse)  # what would go out to the public one
    with pytest.raises(InputError, match="Graph Not Found"):
        fetch_graph("www.neuronpedia.org/gemma-2-2b/graph?slug=a-b&pinnedIds=1_2_3")
    assert asked == ["https://www.neuronpedia.org/api/graph/gemma-2-2b/a-b"]
