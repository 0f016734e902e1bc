"""The OpenAPI document is valid, complete, and its examples are what its schemas say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from api.app import create_app
from api.settings import ApiSettings
from api.surface import ROUTES

APP = create_app(ApiSettings())
DOCUMENT: dict[str, Any] = json.loads(json.dumps(APP.openapi()))
OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
by_name = pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
SCHEMAS = Registry().with_resource("urn:doc", Resource(DOCUMENT, DRAFT202012))


def check(value: Any, schema: dict[str, Any]) -> None:
    """Raises when `value` is not what a schema of the document says."""
    absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:doc#/'))
    Draft202012Validator(absolute, registry=SCHEMAS).validate(value)


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where, media type, content."""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", kind, content
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            yield status, kind, content


def examples(content: dict[str, Any]) -> list[Any]:
    return [content["example"]] if "example" in content else [one["value"] for one in content["examples"].values()]


def test_every_route_is_in_it_and_nothing_else() -> None:
    there = {
        f"{method} {re.sub(':path}', '}', route.path)}"
        for route in APP.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    assert there == {name for name, _ in OPERATIONS}
    assert {f"POST {route.path}" for route in ROUTES} <= there


def test_its_outline_is_that_of_openapi_3_1() -> None:
    assert re.fullmatch(r"3\.1\.\d", DOCUMENT["openapi"])
    assert DOCUMENT["info"]["title"]
    assert DOCUMENT["info"]["version"]
    assert set(DOCUMENT) <= {"openapi", "info", "paths", "components", "servers", "tags"}
    assert len({operation["operationId"] for _, operation in OPERATIONS}) == len(OPERATIONS)


def test_every_schema_is_one_and_its_examples_fit() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
        for example in schema.get("examples", ()):
            check(example, schema)


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    names = set(re.findall(r'"#/components/([^"]+)"', json.dumps(DOCUMENT)))
    parts = DOCUMENT["components"]
    assert names == {f"{kind}/{name}" for kind in ("schemas", "parameters") for name in parts[kind]}


@by_name
def test_a_route_says_what_it_takes_and_answers_with_examples(name: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["tags"]
    assert "200" in operation["responses"]
    found = list(contents(operation))
    assert name.startswith(("GET ", "DELETE ")) or "/admin/" in name or "cancel" in name or found[0][0] == "request"
    assert any(where == "200" for where, _, _ in found)
    for where, kind, content in found:
        assert examples(content), where
        Draft202012Validator.check_schema(content["schema"])
        for example in examples(content):
            assert example is not None, where
            if kind == "application/json":
                check(example, content["schema"])


@by_name
def test_a_routes_errors_are_in_their_envelope(name: str, operation: dict[str, Any]) -> None:
    if name.split()[1] in {"/livez", "/readyz", "/healthz", "/metrics"}:
        return
    anthropic = "/v1/messages" in name
    assert {"401", "500", "503"} <= set(operation["responses"])
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            assert ("AnthropicError" in json.dumps(response)) is anthropic
            for code, example in response["content"]["application/json"]["examples"].items():
                assert example["value"]["error"]["code"] == code
                assert f"`{code}`" in response["description"]


@by_name
def test_a_routes_path_parameters_are_declared(name: str, operation: dict[str, Any]) -> None:
    declared = {one["name"] for one in operation.get("parameters", ()) if one.get("in") == "path"}
    assert declared == set(re.findall(r"{(\w+)}", name))
