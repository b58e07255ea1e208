"""Servers on this machine that speak the protocols of OpenAI's chat, Neuronpedia and its file store, and keep what they get."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "sk-test"


class LocalServer(ThreadingHTTPServer):
    """A server on this machine, at a port that is free."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[Self]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class FakeServer(LocalServer):
    """``answers(method, path, body, headers)`` gives (status, value); requests are kept as (method, path, body)."""

    def __init__(self, answers: Callable[[str, str, Any, Any], tuple[int, Any]]) -> None:
        super().__init__(_Handler)
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self._do()

    def do_PUT(self) -> None:
        self._do()

    def do_GET(self) -> None:
        self._do()

    def _do(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        data = gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
        body = json.loads(data) if data else None
        self.server.asked.append((self.command, self.path, body))
        status, value = self.server.answers(self.command, self.path, body, self.headers)
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(text)


def chat_answers(newer: bool = False, busy: int = 0) -> Callable[[str, str, Any, Any], tuple[int, Any]]:
    """OpenAI's chat completions. Its model names what is marked most often, and finds texts by the words of a name.

    newer: it refuses max_tokens, as newer models do. busy: so many times it first says that it is.
    """
    refusals = [busy]

    def answers(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {KEY}":
            return 401, {"error": {"message": "Incorrect API key provided", "type": "invalid_request_error"}}
        if (method, path) != ("POST", "/v1/chat/completions"):
            return 404, {"error": {"message": f"no such page: {path}"}}
        if refusals[0]:
            refusals[0] -= 1
            return 429, {"error": {"message": "Rate limit reached", "type": "rate_limit_error"}}
        if newer and "max_tokens" in body:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'."}}
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        text = _answer(body["messages"][1]["content"])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"], "choices": [choice]}

    return answers


def _answer(asked: str) -> str:
    lines = re.findall(r"^\d+\. (.*)$", asked, re.MULTILINE)
    if not asked.startswith("Feature: "):
        marked = [word.strip() for word in re.findall(r"<<(.*?)>>\(", asked)]
        return f'"{max(sorted(set(marked)), key=marked.count)}"\n'
    name = asked.splitlines()[0].removeprefix("Feature: ")
    found = [str(number) for number, line in enumerate(lines, start=1) if name in line]
    return ", ".join(found) or "0"


def label_answers(labels: dict[tuple[str, int], Any]) -> Callable[[str, str, Any, Any], tuple[int, Any]]:
    """Neuronpedia's POST /api/features: ``labels`` by (source, index) are lists of (typeName, description)."""

    def answers(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        if (method, path) != ("POST", "/api/features"):
            return 404, {"error": "not found"}
        rows = []
        for one in body:
            given = labels.get((one["layer"], int(one["index"])))
            if given is not None:
                explanations = [{"typeName": kind, "description": text} for kind, text in given]
                rows.append({**one, "index": str(one["index"]), "explanations": explanations})
        return 200, rows

    return answers
