"""The API's documentation against the routes and what they answer."""

from __future__ import annotations

import json
import re
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


def test_endpoints_are_sorted_so_that_the_page_comes_last() -> None:
    assert ENDPOINTS[-1].path == "/{path:path}"
