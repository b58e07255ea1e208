"""What is broken costs only itself: a body, an entry of the index, a packed graph. The page gets words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuit_tracer.viewer.server import Server, serve
from tests.support.asking import ask

BODIES = {
    "deep": b'{"qParams": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deeper than files may be": b'{"qParams": {"a": ' + b"[" * 70 + b"]" * 70 + b"}}",
    "NaN": b'{"qParams": {"pruningThreshold": NaN}}',
    "beyond any range": b'{"qParams": {"pruningThreshold": 1e999}}',
    "an integer of absurd length": b'{"qParams": {"a": ' + b"9" * 5000 + b"}}",
    "a key given twice": b'{"qParams": {"a": 1, "a": 2}}',
    "no text": b'{"qParams": "\xff"}',
    "wrong types": b'{"qParams": {"pinnedIds": 3, "supernodes": {"a": 1}}}',
    "supernodes of numbers": b'{"qParams": {"supernodes": [1, 2]}}',
}


@pytest.fixture
def served(graph_folder: Path) -> Iterator[Server]:
    """A server without a model, which starts at once."""
    with serve(graph_folder, port=0) as server:
        yield server


@pytest.mark.few
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_broken_body_is_refused_and_nothing_is_saved(body: bytes, served: Server, graph_folder: Path) -> None:
    before = (graph_folder / "small.json").read_bytes()
    answer = ask(served, "/save_graph/small", body)
    assert answer.status == 400
    assert len(answer.error) < 500
    assert (graph_folder / "small.json").read_bytes() == before


def _entries(served: Server) -> dict[str, dict[str, object]]:
    return {entry["slug"]: entry for entry in ask(served, "/api/graphs").json["graphs"]}


def test_a_bad_entry_of_the_index_costs_only_itself(served: Server, graph_folder: Path) -> None:
    good = json.loads((graph_folder / "graph-metadata.json").read_text())["graphs"]
    for bad in (3, None, [], {"slug": 7}, {"slug": None}, {}):
        (graph_folder / "graph-metadata.json").write_text(json.dumps({"graphs": [bad, *good]}))
        answer = ask(served, "/api/graphs").json
        assert _entries(served)["small"]["prompt"] == good[0]["prompt"]
        assert "1 entries of graph-metadata.json" in json.dumps(answer)


def test_a_deep_index_costs_only_what_it_says(served: Server, graph_folder: Path) -> None:
    deep = '{"graphs": [{"slug": "small", "a": ' + "[" * 50_000 + "]" * 50_000 + "}]}"
    (graph_folder / "graph-metadata.json").write_text(deep)
    assert list(_entries(served)) == ["small"]
    assert ask(served, "/api/graphs/small").status == 200
    assert "nested deeper than 64" in json.dumps(ask(served, "/api/graphs").json)


@pytest.mark.parametrize("path", ["/api/graphs/bad?nodes=9", "/data/bad.json.gz", "/api/graphs/bad"])
def test_a_packed_graph_that_is_a_bomb_or_damaged_is_said(path: str, served: Server, graph_folder: Path) -> None:
    for data in (
        gzip.compress(bytes(100 * 2**20), 9),
        gzip.compress(b"[" * 10**6),
        gzip.compress(b"{}")[:9],
        b"\x1f\x8b",
    ):
        (graph_folder / "bad.json.gz").write_bytes(data)
        answer = ask(served, path)
        assert answer.status in (200, 400), path
        assert answer.status == 400 or path == "/data/bad.json.gz"
    assert ask(served, "/api/graphs/small").status == 200
