"""The OpenAPI document, made from the routes and the pydantic models that they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from apispec import APISpec
from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from whisperlib import __version__
from whisperlib.web import guard
from whisperlib.web.service import EXTENSION, Service

View = TypeVar("View", bound=Callable[..., Any])
Body = Mapping[str, "type[BaseModel] | dict[str, Any] | None"]  # by media type; None: text or bytes

ERRORS = {
    400: "Something in the request cannot be used.",
    401: "A key is needed.",
    404: "No such page, model, result or batch.",
    409: "The `Idempotency-Key` was used for another batch.",
    413: "Too large, or too long.",
    429: "Too much is waiting: come back after `Retry-After` seconds.",
    500: "A failure of ours.",
    503: "Loading, or stopping.",
    504: "The deadline has passed.",
    507: "The model does not fit into the memory that models may take.",
}
_ATTRIBUTE = "openapi_description"
_BINARY = {"type": "string", "format": "binary"}


class ErrorDetail(BaseModel):
    """What went wrong: for people, its kind, the field, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


@dataclass(frozen=True)
class _Description:
    tag: str
    request: Body
    parameters: type[BaseModel] | None
    answers: Mapping[int, Body]


def describe(
    *, tag: str, answers: Mapping[int, Body], request: Body | None = None, parameters: type[BaseModel] | None = None
) -> Callable[[View], View]:
    """Have a view in the document; the first line of its docstring is the summary, the rest the description.

    `request` and each of `answers` give a model, a schema or None for every media type, `parameters` the query string.
    """

    def decorate(view: View) -> View:
        setattr(view, _ATTRIBUTE, _Description(tag, request or {}, parameters, answers))
        return view

    return decorate


def document(app: Flask) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of every described route of `app`."""
    spec = APISpec(
        title="whisperlib",
        version=__version__,
        openapi_version="3.1.0",
        info={"description": "Whisper speech-to-text on your own machines."},
        servers=[{"url": "/"}],
    )
    service: Service = app.extensions[EXTENSION]
    if not guard.is_open(service.settings):
        spec.components.security_scheme("key", {"type": "http", "scheme": "bearer"})
        spec.options["security"] = [{"key": []}]
    if service.settings.admin_keys:
        spec.components.security_scheme("admin_key", {"type": "http", "scheme": "bearer"})
    described = [
        (rule, view, getattr(view, _ATTRIBUTE))
        for rule in app.url_map.iter_rules()
        if hasattr(view := app.view_functions[rule.endpoint], _ATTRIBUTE)
    ]
    _add_schemas(spec, [description for _, _, description in described])
    for rule, view, description in described:
        methods = {"get", "post", "delete"} & {method.lower() for method in rule.methods or ()}
        operation = _operation(rule.endpoint, view, description)
        if rule.endpoint in guard.OPEN_ENDPOINTS:
            operation["security"] = []
        elif guard.is_admin(rule.endpoint):
            operation["security"] = [{"admin_key": []}] if service.settings.admin_keys else []
        elif rule.endpoint in guard.ADMINS_TOO and "security" in spec.options and service.settings.admin_keys:
            operation["security"] = [{"key": []}, {"admin_key": []}]
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        operation["parameters"] += [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in sorted(rule.arguments)
        ]
        spec.path(path, operations=dict.fromkeys(sorted(methods), operation))
    return spec.to_dict()


def _add_schemas(spec: APISpec, descriptions: list[_Description]) -> None:
    models = {ErrorDetail, Error}
    for description in descriptions:
        bodies = [description.request, *description.answers.values()]
        models |= {model for body in bodies for model in body.values() if isinstance(model, type)}
    inputs: list[Any] = [(model, "serialization") for model in sorted(models, key=lambda model: model.__name__)]
    _, schema = models_json_schema(inputs, ref_template="#/components/schemas/{model}")
    for name, definition in schema["$defs"].items():
        spec.components.schema(name, definition)


def _operation(endpoint: str, view: Callable[..., Any], description: _Description) -> dict[str, Any]:
    summary, _, text = inspect.cleandoc(view.__doc__ or endpoint).partition("\n")
    operation: dict[str, Any] = {
        "operationId": endpoint.replace(".", "_"),
        "summary": summary.rstrip("."),
        "description": text.strip(),
        "tags": [description.tag],
        "parameters": _query(description.parameters),
        "responses": {},
    }
    if description.request:
        # What may stand in the query string need not be in a body.
        operation["requestBody"] = {
            "required": description.parameters is None,
            "content": _content(description.request),
        }
    for status, body in description.answers.items():
        operation["responses"][str(status)] = {"description": "Success.", "content": _content(body)}
    for status, meaning in ERRORS.items():
        answer = {"description": meaning, "content": _content({"application/json": Error})}
        operation["responses"].setdefault(str(status), answer)
    return operation


def _query(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return [
        {"name": name, "in": "query", "schema": property_, "description": property_.get("description", "")}
        for name, property_ in schema["properties"].items()
    ]


def _content(body: Body) -> dict[str, Any]:
    return {media_type: {"schema": _schema(media_type, model)} for media_type, model in body.items()}


def _schema(media_type: str, model: type[BaseModel] | dict[str, Any] | None) -> dict[str, Any]:
    if isinstance(model, dict):
        return model
    if model is not None:
        return {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"type": "string"} if media_type.startswith("text/") else _BINARY
