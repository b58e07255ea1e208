"""Who is refused: other hosts, other origins, paths that lead out, bodies without bound."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuit_tracer.viewer.server import Server, slow_connections
from circuit_tracer.viewer.server.folders import file_inside
from circuit_tracer.viewer.server.guard import HOSTS, MOST_BYTES, host_name
from circuit_tracer.viewer.server.problems import NotThere
from tests.support.asking import ask, finished

VIEW = {"pinnedIds": ["0_5_0"]}
SAVE = "/api/graphs/small/view"


HOST_HEADERS = [
    ("127.0.0.1", 200),
    ("localhost:9999", 200),
    ("[::1]:80", 200),
    ("LOCALHOST", 200),
    ("evil.example", 403),
    ("127.0.0.1.evil.example", 403),
    ("evil.example:80@127.0.0.1", 403),
    ("localhost.", 403),
    ("0.0.0.0", 403),
    ("", 403),
    ("127.0.0.1:99999", 403),
    ("127.0.0.1/evil", 403),
]


def test_only_loopback_hosts_are_answered(served: Server) -> None:
    for host, status in HOST_HEADERS:
        for path in ("/", "/api/graphs", "/graph_data/small.json"):
            assert ask(served, path, headers={"host": host}).status == status, host


def test_two_hosts_are_refused(served: Server) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert connection.recv(4096).split(b" ")[1] in (b"400", b"403")


@given(st.text())
def test_no_other_name_passes_for_a_loopback_host(host: str) -> None:
    name = host_name(host)
    assert name not in HOSTS or name in host.lower()


def test_the_server_listens_on_loopback_alone(served: Server) -> None:
    found = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    listening = [line.split()[1] for line in found.splitlines()[1:] if line.split()[3] == "0A"]
    mine = [address for address in listening if int(address.split(":")[1], 16) == served.port]
    assert mine == [f"0100007F:{served.port:04X}"]


CHANGES: list[tuple[dict[str, str], bool, int]] = [
    ({}, True, 200),
    ({}, False, 403),
    ({"x-circuit-tracer-token": "guess"}, False, 403),
    ({"origin": "http://evil.example"}, True, 403),
    ({"origin": "null"}, True, 403),
    ({"origin": "http://127.0.0.1:1"}, True, 403),
    ({"origin": "OWN"}, True, 200),
    ({"origin": "OWN"}, False, 403),
    ({"origin": "OWN", "cookie": "circuit-tracer-token=TOKEN"}, False, 200),
    ({"cookie": "circuit-tracer-token=TOKEN"}, False, 403),
    ({"origin": "http://evil.example", "cookie": "circuit-tracer-token=TOKEN"}, False, 403),
]


def test_changes_need_a_token_of_the_same_origin(served: Server) -> None:
    own = {"OWN": served.url.rstrip("/")}
    for headers, token, status in CHANGES:
        filled = {name: own.get(text, text.replace("TOKEN", served.site.token)) for name, text in headers.items()}
        assert ask(served, SAVE, VIEW, "PUT", token=token, headers=filled).status == status, headers
        for path, body in (("/api/traces", {"prompt": ""}), ("/save_graph/small", {"qParams": {}})):
            answer = ask(served, path, body, token=token, headers=filled)
            assert (answer.status == 403) == (status == 403), headers
        assert ask(served, "/api/jobs/none", method="DELETE", token=token, headers=filled).status in (404, status)


def test_no_page_of_another_origin_may_read(served: Server) -> None:
    for path in ("/", "/api/session", "/api/graphs/small"):
        answer = ask(served, path, headers={"origin": "http://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert ask(served, "/api/session", method="OPTIONS").status == 405


@pytest.fixture
def outside(graph_folder: Path) -> Path:
    """A file beside the folder, and links to it in the folder."""
    secret = graph_folder.parent / "secret.json"
    secret.write_text('{"graphs": "secret"}')
    (graph_folder / "link.json").symlink_to(secret)
    (graph_folder / "up").symlink_to(graph_folder.parent)
    (graph_folder / "circle.json").symlink_to(graph_folder / "circle.json")
    (graph_folder / ".hidden.json").write_text('"secret"')
    features = graph_folder / "features"
    features.mkdir()
    (features / "1.json").write_text("{}")
    (features / "link.json").symlink_to(secret)
    return secret


LEADING_OUT = [
    "../secret.json",
    "../../../../../../etc/passwd",
    "%2e%2e/secret.json",
    "%2e%2e%2fsecret.json",
    "..%2fsecret.json",
    "..%5csecret.json",
    "%252e%252e%252fsecret.json",
    "....//secret.json",
    "./../secret.json",
    "ABSOLUTE",
    "/ABSOLUTE",
    "%2FABSOLUTE",
    "file://ABSOLUTE",
    "link.json",
    "link",
    "up/secret.json",
    "up%2fsecret.json",
    "circle.json",
    ".hidden.json",
    "small.json%00.png",
    "small.json/",
    "",
    "..",
]


@pytest.mark.few
@pytest.mark.parametrize("root", ["/data/", "/graph_data/", "/features/", "/", "/api/graphs/", "/save_graph/"])
def test_no_path_leads_out_of_the_folders(served: Server, outside: Path, root: str) -> None:
    for path in LEADING_OUT:
        wanted = root + path.replace("ABSOLUTE", str(outside))
        for answer in (ask(served, wanted), ask(served, wanted, {"qParams": {}}), ask(served, wanted, VIEW, "PUT")):
            if wanted not in ("/", "/api/graphs/"):
                assert answer.status in (400, 404, 405), (wanted, answer)
            assert b'"secret"' not in answer.data
            assert b"root:" not in answer.data
    assert outside.read_text() == '{"graphs": "secret"}'


def test_what_may_not_be_seen_is_as_if_it_were_not_there(served: Server, outside: Path) -> None:
    hidden, missing = ask(served, "/data/link.json"), ask(served, "/data/gone.json")
    assert hidden.error.replace("link", "gone") == missing.error


@given(st.text(min_size=1))
def test_a_name_finds_a_file_of_the_folder_or_none(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        found = file_inside(folder, name)
    except NotThere:
        return
    assert found.is_relative_to(folder.resolve())


def test_names_of_new_graphs_stay_in_the_folder(served: Server, graph_folder: Path) -> None:
    before = {path.name for path in graph_folder.parent.iterdir()}
    for slug in ("../out", "/tmp/out", "a/b", "a\\b", ".hidden", "graph-metadata", "", "a\0b"):
        answer = ask(served, "/api/traces", {"prompt": "the capital", "slug": slug})
        assert answer.status == 400, slug
    assert {path.name for path in graph_folder.parent.iterdir()} == before


def test_bodies_are_bounded(served: Server) -> None:
    large = b'{"pinnedIds": ["' + b"x" * MOST_BYTES + b'"]}'
    assert ask(served, SAVE, large, "PUT").status == 413
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    pieces = (large[start : start + 2**16] for start in range(0, len(large), 2**16))
    headers = {"x-circuit-tracer-token": served.site.token}
    try:
        connection.request("PUT", SAVE, pieces, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it stopped reading before all was sent
    finally:
        connection.close()
    assert ask(served, SAVE, VIEW, "PUT").status == 200
    assert ask(served, "/api/tokens", {"prompt": "a " * 200_000}).status == 400


ILL_FORMED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'{"pinnedIds": "0_5_0"}',
    b'{"pinnedIds": [1]}',
    b'{"pinnedIds": null}',
    b'{"linkType": "sideways"}',
    b'{"clickedId": null}',
    b'{"unknown": 1}',
    b'{"supernodes": [["a", ["b"]]]}',
    b'{"clerps": [["a"]]}',
    b"[" * 100_000,
]


def test_views_of_other_types_are_refused_in_words(served: Server, graph_folder: Path) -> None:
    before = (graph_folder / "small.json").read_bytes()
    for body in ILL_FORMED:
        answer = ask(served, SAVE, body, "PUT")
        assert answer.status == 400, body[:50]
        assert re.search("cannot be used|the body is not ", answer.error), body[:50]
    assert (graph_folder / "small.json").read_bytes() == before


def test_neuronpedias_routes_need_its_secret(served: Server) -> None:
    for path, body in (("/check-busy", None), ("/steer", {}), ("/generate-graph", {}), ("/forward-pass", {})):
        assert ask(served, path, body).status == 403
        assert ask(served, path, body, headers={"x-secret-key": "wrong"}).status == 403
        assert ask(served, path, body, headers={"x-secret-key": "secret", "host": "evil.example"}).status == 403
    assert ask(served, "/check-busy", token=False, headers={"x-secret-key": "secret"}).json == {"busy": False}


def test_without_a_secret_neuronpedias_routes_are_closed(graph_folder: Path) -> None:
    from circuit_tracer.viewer.server import serve

    with serve(graph_folder, port=0) as server:
        assert ask(server, "/check-busy", headers={"x-secret-key": ""}).status == 403


def test_a_hundred_parallel_requests_and_a_cancelled_trace_leave_it_healthy(served: Server) -> None:
    started = ask(served, "/api/traces", {"prompt": "the capital of Texas is", "batch_size": 1})
    barrier = threading.Barrier(100)

    def one(number: int) -> int:
        barrier.wait()
        path, body = [
            ("/", None),
            ("/api/graphs", None),
            ("/api/graphs/small", None),
            ("/main.js", None),
            ("/api/tokens", {"prompt": f"the capital of {number}"}),
        ][number % 5]
        return ask(served, path, body).status

    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(one, range(100)))
    assert statuses == [200] * 100
    ask(served, f"/api/jobs/{started.json['id']}", method="DELETE")
    assert finished(served, started)["state"] in ("cancelled", "done")
    again = finished(served, ask(served, "/api/traces", {"prompt": "the capital of Texas is", "slug": "after"}))
    assert again["state"] == "done", again
    assert ask(served, "/api/graphs/after").json["metadata"]["slug"] == "after"


def test_a_connection_that_says_nothing_holds_nobody_up(served: Server) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as silent:
        silent.sendall(b"PUT /api/graphs/small/view HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
        assert ask(served, "/api/graphs").status == 200
    assert ask(served, "/api/graphs").status == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost:", b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"]
)
def test_a_request_that_does_not_become_whole_is_closed(
    served: Server, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_connections, "REQUEST_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
        slow.sendall(sent)
        try:
            while slow.recv(65536):  # an answer that refuses, or nothing, and then the end
                pass
        except ConnectionResetError:
            pass
    assert ask(served, "/api/graphs").status == 200


def test_an_answer_that_nobody_reads_is_given_up(
    served: Server, graph_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_connections, "READING_SECONDS", 0.2)
    (graph_folder / "features").mkdir(exist_ok=True)
    (graph_folder / "features" / "large.json").write_bytes(b"1" * 30_000_000)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as deaf:
        deaf.sendall(b"GET /features/large.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1)
        received = 0
        try:
            while part := deaf.recv(1 << 20):
                received += len(part)
        except ConnectionResetError:
            pass
    assert received < 30_000_000
    assert ask(served, "/api/graphs").status == 200


def test_saved_files_can_be_read_by_whom_the_folder_says(served: Server, graph_folder: Path) -> None:
    ask(served, SAVE, VIEW, "PUT")
    mask = os.umask(0)
    os.umask(mask)
    assert (graph_folder / "small.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert json.loads((graph_folder / "small.json").read_text())["qParams"]["pinnedIds"] == ["0_5_0"]
    assert not list(graph_folder.glob(".*"))
