"""`serve`, `start-server` and `attribute --server`, as processes that end by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Folders, Run
from tests.support.json_lines import require_lines
from tests.support.process_cases import command

PROMPT = "the capital of Texas is"


@contextmanager
def running(*arguments: object) -> Iterator[str]:
    """A command in a process of its own, once it serves; its address."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "printed"
        process = command(*arguments, folder=folder)
        try:
            yield address_of(process, folder)
            os.kill(process.pid, signal.SIGINT)
            process.join(60)
            assert process.exitcode == 0
            assert "stopped" in (folder / "err").read_text()
        finally:
            process.kill()
            process.join()


def address_of(process: Any, folder: Path) -> str:
    """What the process says it serves at, as soon as it does."""
    while process.is_alive():
        printed = (folder / "out").read_text() if (folder / "out").exists() else ""
        if found := re.search(r"serving .* at (http://127\.0\.0\.1:\d+/)", printed):
            return found[1]
        if printed.endswith("}\n"):
            require_lines(["start-server"], 0, printed)
            return str(json.loads(printed)["url"])
        time.sleep(0.02)
    raise AssertionError((folder / "err").read_text())


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.slow("takes 6.6 s")
def test_serve_with_a_model_makes_the_folder(folders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "graphs"
    options = ["-t", folders.transcoder, "--graph_file_dir", folder, "--port", 0, "--no-open"]
    with running("serve", *options) as address:
        session = get(address + "api/session")
        assert session["model"]["n_layers"] == 3
        assert session["model"]["chat"] is True
        assert get(address + "api/graphs") == {"graphs": [], "warning": None}


@pytest.mark.slow("a server with a model in a process of its own: 3 s")
def test_labels_name_the_features_of_graphs_made_with_them(folders: Folders, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({layer: dict.fromkeys(range(100), "mine") for layer in range(3)}))
    features = tmp_path / "features"
    features.mkdir()
    (features / "labels.json").write_text(own.read_text().replace("mine", "the folder's"))
    options = ["-t", folders.transcoder, "--graph_file_dir", tmp_path]
    traced = [*options, "-p", PROMPT, "--slug", "texas", "--labels", own, "-o", tmp_path / "texas.safetensors"]
    with running("attribute", *traced, "--server", "--port", 0) as address:
        assert labels_at(address, "texas") == {"mine"}
        assert ask(address, "api/graphs/texas/prune", {"node_threshold": 0.99})["nodes"] > 0
        assert labels_at(address, "texas") == {"mine"}
    for given, label in (([], "the folder's"), (["--labels", own], "mine")):
        with running("serve", *options, *given, "--port", 0, "--no-open") as address:
            job = ask(address, "api/traces", {"prompt": PROMPT, "slug": "again", "replace": True})
            while job["state"] == "running":
                job = get(f"{address}api/jobs/{job['id']}")
            assert labels_at(address, "again") == {label}


def ask(address: str, path: str, body: dict[str, Any]) -> Any:
    token = get(address + "api/session")["token"]
    headers = {"Content-Type": "application/json", "X-Circuit-Tracer-Token": token}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def labels_at(address: str, slug: str) -> set[str]:
    nodes = get(f"{address}api/graphs/{slug}")["nodes"]
    return {node["clerp"] for node in nodes if node["feature_type"] == "cross layer transcoder"}


@pytest.mark.slow("takes 5.9 s")
def test_start_server_is_circuit_tracers(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "7.json").write_text("{}")
    with running("start-server", "--graph_file_dir", tmp_path, "--port", 0, "--json") as address:
        assert get(address + "api/session")["model"] is None
        assert get(address + "features/7.json") == {}


def test_attribute_then_serve(folders: Folders, tmp_path: Path) -> None:
    options = ["-t", folders.transcoder, "-p", PROMPT, "--slug", "texas", "--graph_file_dir", tmp_path, "--server"]
    with running("attribute", *options, "--port", 0) as address:
        assert [entry["slug"] for entry in get(address + "api/graphs")["graphs"]] == ["texas"]
        assert get(address + "api/session")["model"]["n_layers"] == 3


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with running("start-server", "--graph_file_dir", tmp_path, "--port", 0) as address:
        port = address.rstrip("/").rsplit(":", 1)[1]
        with running("start-server", "--graph_file_dir", tmp_path, "--port", port) as other:
            assert other != address


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "--graph-file-dir"),
        (["--graph_file_dir", "gone"], "no folder of graphs"),
        (["--graph_file_dir", ".", "--port", "99999"], "--port"),
        (["--graph_file_dir", ".", "--features_dir", "gone"], "no folder of features"),
        (["--graph_file_dir", ".", "-t", "T", "--demo"], "leave one out"),
        (["--graph_file_dir", ".", "--neuronpedia-secret", " "], "empty"),
    ],
)
def test_bad_input_exits_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("serve", *options)
    assert outcome.code == 2
    assert part in outcome.err
