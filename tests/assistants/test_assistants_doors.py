"""Tools for assistants: over HTTP this machine's own clients are answered, and no page of another server; and lines that are no
message are answered too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("mcp")

from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError
from starlette.testclient import TestClient

from circuit_tracer.assistants.server import make_server
from circuit_tracer.assistants.serving import PATH, http_app, unreadable
from circuit_tracer.assistants.workplace import Workplace, open_folder

OWN = "http://127.0.0.1:8042"
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}
HEADERS = {"accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    place = Workplace(open_folder(tmp_path_factory.mktemp("graphs")))
    with TestClient(http_app(make_server(place)), base_url=OWN) as found:
        yield found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8042"}, 200),
        ({"origin": OWN}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8042"}, 403),
        ({"host": "0.0.0.0:8042"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "https://127.0.0.1:8042"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8042", "origin": OWN}, 403),
    ],
    ids=str,
)
def test_other_hosts_and_origins_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    answer = client.post(PATH, json=HELLO, headers={**HEADERS, **headers})
    assert answer.status_code == status
    if status == 200:
        assert '"serverInfo"' in answer.text
    else:
        assert "error" in answer.json()
        assert client.get(PATH, headers={**HEADERS, **headers}).status_code == status
        assert client.delete(PATH, headers=headers).status_code == status


def test_there_is_nothing_else_at_other_paths(client: TestClient) -> None:
    assert client.get("/").status_code == 404
    assert client.get("/api/graphs").status_code == 404
    body = b"x" * (5 * 2**20)
    assert client.post(PATH, content=body, headers={"content-type": "application/json"}).status_code == 413


CALL = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        ("no protocol at all", -32700, None),
        ("[]", -32600, None),
        ('{"jsonrpc":"2.0","id":7,"method":5}', -32600, 7),
        ('{"jsonrpc":"2.0","id":"seven","method":5}', -32600, "seven"),
        (CALL + "[1]}", -32600, 7),
        (CALL + '{"name":"next_tokens","arguments":{"prompt":"half of a pair \\ud800"}}}', -32700, 7),
        ('{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', -32700, None),
        (CALL + "[" * 3000 + "]" * 3000 + "}", -32700, None),
        (CALL + "1" + "0" * 5000 + "}", -32700, None),
    ],
    ids=[
        "text",
        "a list",
        "no method",
        "id of letters",
        "params of another type",
        "half a pair",
        "id of half a pair",
        "deep",
        "huge",
    ],
)
def test_a_line_that_is_no_message_is_answered(line: str, code: int, number: int | str | None) -> None:
    with pytest.raises(ValidationError) as found:
        jsonrpc_message_adapter.validate_json(line)
    answer = unreadable(found.value)
    assert answer is not None
    assert (answer.id, answer.error.code) == (number, code)
    assert len(answer.model_dump_json()) < 1000


def test_an_empty_line_is_not_answered() -> None:
    with pytest.raises(ValidationError) as found:
        jsonrpc_message_adapter.validate_json("\n")
    assert unreadable(found.value) is None
