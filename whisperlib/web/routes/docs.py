"""The OpenAPI document, and Swagger UI to read and try it; nothing comes from another host."""

from __future__ import annotations

from pathlib import Path

import flask_swagger_ui  # type: ignore[import-untyped]
from flask import Blueprint, Response, current_app, jsonify, send_from_directory

from whisperlib.web import openapi
from whisperlib.web.openapi import describe

routes = Blueprint("docs", __name__)

_FILES = Path(flask_swagger_ui.__file__).parent / "dist"
# Swagger UI sets styles in its elements, and has its pictures in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>whisperlib</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START = 'SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true });\n'


@routes.get("/openapi.json")
@describe(tag="Documentation", answers={200: {"application/json": {"type": "object"}}})
def document() -> Response:
    """Describe every call, as an OpenAPI document."""
    return jsonify(openapi.document(current_app))


@routes.get("/docs")
@describe(tag="Documentation", answers={200: {"text/html": None}})
def page() -> Response:
    """Show every call, to read and to try."""
    response = Response(_PAGE, mimetype="text/html")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@routes.get("/docs/<path:name>")
def asset(name: str) -> Response:
    """Return a file of Swagger UI."""
    if name == "start.js":
        return Response(_START, mimetype="text/javascript")
    return send_from_directory(_FILES, name, max_age=86_400)
