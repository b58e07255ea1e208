"""The API's documentation against the routes and what they answer."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from circuit_tracer.demo import PROMPT
from circuit_tracer.viewer.server import Server
from circuit_tracer.viewer.server.app import ENDPOINTS, make_app
from tests.support.asking import ask, finished


@pytest.fixture
def document(served: Server) -> dict[str, Any]:
    return ask(served, "/api/openapi.json").json


def test_every_route_is_documented_and_nothing_else(served: Server, document: dict[str, Any]) -> None:
    routes = {
        (method.lower(), re.sub(r":\w+}", "}", route.path))
        for route in make_app(served.site).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    documented = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert documented == routes
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert document["openapi"] == "3.1.0"
    assert all(document["paths"][path][method]["summary"] for method, path in documented)
    assert len(set(names)) >= len(names) - 2  # two addresses of one thing


def test_references_lead_somewhere_and_schemas_are_schemas(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_path_parameters_are_declared(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            declared = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))


def test_every_change_says_what_opens_it(document: dict[str, Any]) -> None:
    for methods in document["paths"].values():
        for method, operation in methods.items():
            if method != "get":
                assert operation["security"] in ([{"token": []}], [{"secret": []}])
                assert method == "delete" or "requestBody" in operation


def test_answers_are_what_the_documentation_says(served: Server, document: dict[str, Any]) -> None:
    def check(method: str, path: str, value: Any) -> None:
        answer = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        resolved = {**answer, "components": document["components"]}
        jsonschema.Draft202012Validator(resolved).validate(value)

    check("get", "/api/session", ask(served, "/api/session").json)
    check("get", "/api/graphs", ask(served, "/api/graphs").json)
    check("post", "/api/tokens", ask(served, "/api/tokens", {"prompt": PROMPT}).json)
    check("put", "/api/graphs/{slug}/view", ask(served, "/api/graphs/small/view", {}, "PUT").json)
    started = ask(served, "/api/traces", {"prompt": PROMPT, "slug": "demo"})
    check("post", "/api/traces", started.json)
    check("get", "/api/jobs/{id}", finished(served, started))
    check("post", "/api/graphs/{slug}/prune", ask(served, "/api/graphs/demo/prune", {}).json)
    refusal = {"$ref": "#/components/schemas/Problem", "components": document["components"]}
    for answer in (ask(served, "/api/graphs/gone"), ask(served, "/nowhere"), ask(served, "/", {}, "POST")):
        jsonschema.Draft202012Validator(refusal).validate(answer.json)


def test_operations_stand_under_headings_with_names_of_their_own(document: dict[str, Any]) -> None:
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {tag for operation in operations for tag in operation["tags"]} == {
        "the page's API",
        "runs",
        "monitor",
        "Neuronpedia's protocol",
        "files",
    }
    assert document["info"]["version"] == version("circuit-tracing")
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for operation in operations:
        refusals = {status: each["content"] for status, each in operation["responses"].items() if status[0] in "45"}
        assert set(refusals) == {"400", "403", "404", "409", "413", "500", "503", "507"}
        assert all(content == {"application/json": problem} for content in refusals.values())


def test_streams_and_files_are_documented_as_what_they_are(document: dict[str, Any]) -> None:
    def media(path: str, status: str = "200") -> dict[str, Any]:
        return document["paths"][path]["get"]["responses"][status]["content"]

    event = media("/api/jobs/{id}/events")["text/event-stream"]["itemSchema"]["properties"]["data"]
    assert event["contentSchema"] == {"$ref": "#/components/schemas/JobReport"}
    assert set(media("/{path}")) == {"text/html"}
    assert set(media("/features/{path}")) == set(media("/features/{path}", "206")) == {"application/octet-stream"}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_no_page_of_the_documentation_loads_scripts_of_others(served: Server, path: str) -> None:
    assert ask(served, path).status == 404


def test_a_body_is_json_whatever_its_header_says(served: Server) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain; charset=latin-1"):
        answer = ask(served, "/api/graphs/small/view", {"linkType": "input"}, "PUT", headers={"content-type": kind})
        assert (answer.status, answer.json["linkType"]) == (200, "input"), kind


def test_head_is_get_without_its_body(served: Server) -> None:
    for path, status in (("/", 200), ("/api/graphs", 200), ("/data/small.json", 200), ("/data/gone.json", 404)):
        whole, head = ask(served, path), ask(served, path, method="HEAD")
        assert (head.status, head.data) == (whole.status, b"") == (status, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert f"HEAD {path} {status}" in served.get_logs()


def test_numbers_that_json_cannot_carry_are_refused_and_halves_of_pairs_kept(
    served: Server, graph_folder: Path
) -> None:
    graph = json.loads((graph_folder / "small.json").read_text())
    for name, value in (("half", "\ud800"), ("number", float("nan"))):
        graph["metadata"]["prompt"] = value
        (graph_folder / f"{name}.json").write_text(json.dumps(graph))
    assert ask(served, "/api/graphs/half?nodes=10").json["metadata"]["prompt"] == "\ud800"
    refused = ask(served, "/api/graphs/number?nodes=10")
    assert (refused.status, "not finite" in refused.error) == (400, True)


def test_a_failure_of_ours_is_said_and_guarded(
    served: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slip() -> None:
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(served.site.graphs, "entries", slip)
    answer = ask(served, "/api/graphs")
    assert (answer.status, answer.error) == (500, "ZeroDivisionError: a slip (a failure of ours)")
    assert answer.headers["cache-control"] == "no-store"
    assert "GET /api/graphs failed" in caplog.text


def test_a_problem_names_its_place(served: Server) -> None:
    assert "nodes: " in ask(served, "/api/graphs/small?nodes=none").error
    assert (
        "edits.0.how: " in ask(served, "/api/graphs/small/steer", {"edits": [{"nodes": ["0_1_1"], "how": "x"}]}).error
    )
    assert "the body is not readable JSON: " in ask(served, "/api/tokens", b"{").error
    many = {"prompt": "a", **{f"unknown{number}": 1 for number in range(9)}}
    assert ask(served, "/api/tokens", many).error.endswith("; and 4 more")


def test_endpoints_are_sorted_so_that_the_page_comes_last() -> None:
    assert ENDPOINTS[-1].path == "/{path:path}"
