"""Neuronpedia's upload routes on this machine, as strict as it is, with a store for the files behind signed addresses."""

from __future__ import annotations

from typing import Any

from circuit_tracer.graph.files.validate import validate_document

KEY = "np-test"
MODELS = ("gemma-2-2b",)


class Uploads:
    """Answers for `fake_servers.FakeServer`; ``graphs`` by (model, slug) and ``features`` by source are what was uploaded."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self.promised: dict[str, int] = {}
        self.graphs: dict[tuple[str, str], Any] = {}
        self.features: dict[str, list[Any]] = {}
        self.address = ""

    def __call__(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        if method == "PUT" and path in self.promised:
            if int(headers["content-length"]) != self.promised[path]:
                return 403, {"error": "SignatureDoesNotMatch"}
            self.files[path] = body
            return 200, {}
        if headers.get("x-api-key") != KEY:
            return 401, {"error": "Unauthorized"}
        routes = {
            "/api/graph/signed-put": self._sign,
            "/api/graph/save-to-db": self._save,
            "/api/feature/upload-batch": self._feature,
        }
        return routes[path](body) if method == "POST" and path in routes else (404, {"error": "not found"})

    def _sign(self, body: Any) -> tuple[int, Any]:
        if not body["filename"].endswith(".json") or not 1024 <= body["contentLength"] <= 104_857_600:
            return 400, {"error": "Invalid request", "details": ["contentLength"]}
        place = f"/store/{len(self.promised)}?signature=x"
        self.promised[place] = body["contentLength"]
        return 200, {"url": self.address + place, "key": place, "putRequestId": place}

    def _save(self, body: Any) -> tuple[int, Any]:
        document = self.files[body["putRequestId"]]
        if problems := validate_document(document, "neuronpedia"):
            return 400, {"error": "Invalid graph", "details": problems}
        model, slug = document["metadata"]["scan"], document["metadata"]["slug"]
        if model not in MODELS:
            return 400, {"error": "ERR_MODEL_DOES_NOT_EXIST"}
        self.graphs[model, slug] = document
        return 200, {"message": "Graph saved", "url": f"{self.address}/{model}/graph?slug={slug}"}

    def _feature(self, body: Any) -> tuple[int, Any]:
        if not 1 <= len(body["features"]) <= 128:
            return 400, {"error": "1 to 128 features"}
        self.features.setdefault(body["source"], []).extend(body["features"])
        return 200, {"message": "ok"}
