"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as up- and downloads need, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from tests.support.fake_servers import LocalServer

TOKEN = "hf_test"  # the one that may write
READ_ONLY = "hf_read_only"


class FakeHub(LocalServer):
    """Repositories by name; files larger than ``lfs_above`` bytes come through LFS, as weights do."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits = 0
        self.lfs_above = 1000
        self.fail_at: str | None = None  # path that answers 500
        self.downloads: list[str] = []  # paths of files that were fetched


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main(?:/(.+))?", path)
        if listed and listed[1] in self.server.repositories:
            files, below = self.server.repositories[listed[1]], f"{listed[2]}/" if listed[2] else ""
            found = {name: content for name, content in files.items() if name.startswith(below)}
            if found:
                self._answer([{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in found.items()])
            else:
                self._answer({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._file(path)

    def do_HEAD(self) -> None:
        self._file(unquote(self.path.split("?")[0]))

    def _file(self, path: str) -> None:
        """A file of a repository, as `resolve` of the hub answers."""
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path)
        files = self.server.repositories.get(match[1]) if match else None
        if match is None or files is None:
            self._answer({"error": f"no such page: {path}"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif match[2] not in files:
            self._answer({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            content = files[match[2]]
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command == "GET":
                self.server.downloads.append(match[2])
                self.wfile.write(content)

    def do_PUT(self) -> None:
        body = self._body()
        self.server.objects[self.path.removeprefix("/objects/")] = body
        self._answer({})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.split("?")[0]
        if self.server.fail_at is not None and self.server.fail_at in path:
            self._answer({"error": "the disk of the hub is full"}, 500)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self._permission() != 200:
            said = {401: "Invalid credentials", 403: "Your token has read access only"}[self._permission()]
            self._answer({"error": said}, self._permission())
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            self._preupload(json.loads(body))
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": f"no such page: {path}"}, 404)

    def _permission(self) -> int:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        return 200 if token == TOKEN else 403 if token == READ_ONLY else 401

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            self._answer({"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}, 409)
            return
        self.server.repositories[name] = {".gitattributes": b""}
        self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._answer({"url": f"{self.server.address}/{name}", "name": name})

    def _preupload(self, asked: dict[str, Any]) -> None:
        limit = self.server.lfs_above
        modes = [(one["path"], "lfs" if one["size"] > limit else "regular") for one in asked["files"]]
        self._answer({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def _batch(self, asked: dict[str, Any]) -> None:
        place = f"{self.server.address}/objects"
        objects = [{**one, "actions": {"upload": {"href": f"{place}/{one['oid']}"}}} for one in asked["objects"]]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.repositories[name])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.repositories[name] = files
        self.server.commits += 1
        oid = f"{self.server.commits:040x}"
        self._answer({"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        for name, content in (headers or {}).items():
            self.send_header(name, content)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        if isinstance(value, dict) and "error" in value:
            self.send_header("x-error-message", value["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
