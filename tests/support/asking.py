"""Asking a server as a script does, byte for byte where a test needs it."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

from circuit_tracer.viewer.server import Server


@dataclass(frozen=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> str:
        return self.json["error"]


def ask(
    server: Server,
    path: str,
    body: Any = None,
    method: str | None = None,
    *,
    token: bool = True,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request, its path as it is; a body that is no bytes goes as JSON."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    own = {"x-circuit-tracer-token": server.site.token} if token else {}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        method = method or ("GET" if data is None else "POST")
        connection.putrequest(method, path, skip_host="host" in (headers or {}), skip_accept_encoding=True)
        for name, value in {**own, **(headers or {})}.items():
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("content-length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def finished(server: Server, started: Answer) -> dict[str, Any]:
    """A job's last report."""
    assert started.status == 200, started.data
    while True:
        report = ask(server, f"/api/jobs/{started.json['id']}").json
        if report["state"] != "running":
            return report
        time.sleep(0.02)
