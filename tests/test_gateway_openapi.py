"""The OpenAPI description: whole, and of the routes there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from breakeven.gateway.plan.reach import ENDPOINTS
from breakeven.wire.message import error_body

PAGE = Path(__file__).resolve().parent.parent / "docs" / "openapi.yaml"
FIXED = {"/v1/models": "get", "/v1/models/{model}": "get", "/health": "get", "/ready": "get"}
POST_STATUSES = {"200", "400", "401", "403", "404", "405", "408", "413", "429", "431", "500", "502", "503", "504"}


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(PAGE.read_text(encoding="utf-8"))
    return found


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def at(page: dict[str, Any], reference: str) -> Any:
    part: Any = page
    for key in reference.removeprefix("#/").split("/"):
        part = part[key]
    return part


def test_its_routes_are_those_there_are(page: dict[str, Any]) -> None:
    routes = {(path, method) for path, methods in page["paths"].items() for method in methods}
    assert routes == {(path, "post") for path in ENDPOINTS} | set(FIXED.items())


def test_every_reference_leads_somewhere_and_every_part_is_used(page: dict[str, Any]) -> None:
    used = set(references(page))
    for reference in used:
        at(page, reference)
    parts = {
        f"#/components/{kind}/{name}"
        for kind, entries in page["components"].items()
        if kind != "securitySchemes"
        for name in entries
    }
    assert parts - used == set()


def test_every_endpoint_tells_its_errors(page: dict[str, Any]) -> None:
    for path in ENDPOINTS:
        assert set(page["paths"][path]["post"]["responses"]) >= POST_STATUSES
    ids = [each["operationId"] for methods in page["paths"].values() for each in methods.values()]
    assert len(set(ids)) == len(ids)


def test_unknown_fields_are_welcome(page: dict[str, Any]) -> None:
    assert page["components"]["schemas"]["Asked"]["additionalProperties"] is True
    for path in ENDPOINTS:
        schema = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert all("additionalProperties" not in each for each in schema["allOf"])


def test_only_what_needs_no_key_says_so(page: dict[str, Any]) -> None:
    free = {path for path, methods in page["paths"].items() for each in methods.values() if each.get("security") == []}
    assert free == {"/health", "/ready"}
    assert {name for each in page["security"] for name in each} == set(page["components"]["securitySchemes"])


def test_our_errors_have_the_form_it_promises(page: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = page["components"]["schemas"]["Error"]
    for status in (400, 401, 404, 429, 503):
        told = json.loads(error_body(status, "why"))
        jsonschema.Draft202012Validator(schema).validate(told)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"error": "why"})


def test_schemathesis_reads_every_operation(page: dict[str, Any]) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_dict(page)
    found = {each.ok().label for each in schema.get_all_operations()}
    assert found == {f"POST {path}" for path in ENDPOINTS} | {f"GET {path}" for path in FIXED}
