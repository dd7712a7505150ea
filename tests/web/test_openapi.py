"""The OpenAPI document: valid, whole, and readable with Swagger UI without another host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from tests.web.conftest import bare_app
from whisperlib import __version__
from whisperlib.web import openapi
from whisperlib.web.openapi import describe

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    return openapi.document(bare_app())


@pytest.fixture
def client() -> FlaskClient:
    return bare_app().test_client()


def operations(document: Document) -> Iterator[tuple[str, str, Any]]:
    """Yield (path, method, operation)."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(part: Any) -> Iterator[str]:
    """Yield every `$ref`, however deep."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_document_is_valid_openapi_3_1(document: Document) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == __version__
    OpenAPIV31SpecValidator(document).validate()


def test_a_server_gives_the_same_document(client: FlaskClient, document: Document) -> None:
    assert client.get("/openapi.json").get_json() == json.loads(json.dumps(document))


def test_every_call_is_in_it() -> None:
    app = bare_app()
    files = {"docs.asset", "page.asset"}  # of Swagger UI, and of the page
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint not in files]
    calls = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in rules
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} & (rule.methods or set())
    }
    assert ("/transcribe", "post") in calls
    assert {(path, method) for path, method, _ in operations(openapi.document(app))} == calls


def test_every_call_says_what_it_is_for_and_what_can_go_wrong(document: Document) -> None:
    identifiers = []
    for path, _, operation in operations(document):
        assert operation["summary"], path
        assert operation["tags"], path
        assert {"200", "204"} & set(operation["responses"]), path
        for status in openapi.ERRORS:
            answer = operation["responses"][str(status)]["content"]["application/json"]
            assert answer == {"schema": {"$ref": "#/components/schemas/Error"}}
        identifiers.append(operation["operationId"])
    assert len(set(identifiers)) == len(identifiers)


def test_every_reference_leads_to_a_schema(document: Document) -> None:
    targets = set(references(document))
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert "#/components/schemas/Error" in targets
    assert targets <= names


def test_the_error_schema_is_what_errors_are(client: FlaskClient) -> None:
    body = client.get("/not/there").get_json()
    assert openapi.Error.model_validate(body).model_dump() == body


def test_every_variable_of_a_path_is_told(document: Document) -> None:
    parameters = document["paths"]["/v1/models/{model_id}"]["get"]["parameters"]
    assert [(one["name"], one["in"], one["required"]) for one in parameters] == [("model_id", "path", True)]


def test_without_keys_no_call_asks_for_one(document: Document) -> None:
    assert "security" not in document
    assert "securitySchemes" not in document["components"]


def test_with_keys_all_but_the_open_calls_ask_for_one() -> None:
    app = bare_app(api_keys="sesame")
    document = openapi.document(app)
    OpenAPIV31SpecValidator(document).validate()
    (name,) = document["components"]["securitySchemes"]
    assert document["components"]["securitySchemes"][name] == {"type": "http", "scheme": "bearer"}
    assert document["security"] == [{name: []}]
    assert "sesame" not in json.dumps(document)
    client = app.test_client()
    for path, method, operation in operations(document):
        needs_key = operation.get("security", document["security"]) != []
        status = client.open(path.replace("{model_id}", "x"), method=method.upper()).status_code
        assert (status == 401) == needs_key, path


def test_a_view_is_described_by_its_docstring_and_its_models() -> None:
    class Wanted(BaseModel):
        count: int

    class Query(BaseModel):
        deep: bool = False

    @describe(tag="Test", request={"application/json": Wanted, "audio/*": None}, parameters=Query, answers={201: {}})
    def view(number: str) -> str:
        """Do something.

        At **length**.
        """
        return number

    app = bare_app()
    app.add_url_rule("/things/<int:number>", "things.make", view, methods=["POST"])
    document = openapi.document(app)
    OpenAPIV31SpecValidator(document).validate()
    operation = document["paths"]["/things/{number}"]["post"]
    assert (operation["summary"], operation["description"]) == ("Do something", "At **length**.")
    assert operation["operationId"] == "things_make"
    assert operation["requestBody"]["required"] is False  # the query string may say it
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Wanted"}
    assert operation["requestBody"]["content"]["audio/*"]["schema"]["format"] == "binary"
    assert {one["name"]: one["in"] for one in operation["parameters"]} == {"deep": "query", "number": "path"}
    assert "201" in operation["responses"]
    assert document["components"]["schemas"]["Wanted"]["required"] == ["count"]


def test_the_page_takes_everything_from_this_server(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert page.mimetype == "text/html"
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        assert "//" not in link
        assert client.get(f"/{link}").status_code == 200
    start = client.get("/docs/start.js")
    assert start.mimetype == "text/javascript"
    assert re.findall(r'url: "([^"]+)"', start.text) == ["openapi.json"]


def test_the_page_may_load_nothing_else(client: FlaskClient) -> None:
    page = client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<script(?![^>]*src)|\son\w+=", page.text)  # the policy would keep them from running


@pytest.mark.parametrize("name", ["none.js", "../__init__.py", "..%2f__init__.py", "%2e%2e/__init__.py", "/etc/passwd"])
def test_only_swagger_uis_files_are_served(client: FlaskClient, name: str) -> None:
    response = client.get(f"/docs/{name}")
    assert response.status_code in {308, 404}
    assert "import" not in response.text
