"""The page for people at `/`, its files, and what it must know of this server; a program gets JSON there."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, abort, current_app, jsonify, request
from pydantic import BaseModel, ConfigDict

from whisperlib import __version__
from whisperlib.enhance import Enhancer
from whisperlib.languages import LANGUAGES
from whisperlib.options import Profile
from whisperlib.web import enhancing, guard
from whisperlib.web.openapi import describe
from whisperlib.web.service import current_service

routes = Blueprint("page", __name__)

_DIRECTORY = Path(__file__).resolve().parents[1] / "page"
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path for path in _DIRECTORY.iterdir() if path.suffix in _TYPES}
# A file that was chosen is played from a blob; one behind a URL from there, since the server keeps no audio.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "media-src 'self' blob: http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PageConfig(BaseModel):
    """What the page adapts to.

    `language_model` is the name of the one that cleans texts up, null where there is none; `needs_key` whether calls
    need an API key; `profile` what a request without one gets; `languages` has English names by code.
    """

    model_config = ConfigDict(protected_namespaces=())

    version: str
    profile: Profile
    language_model: str | None
    needs_key: bool
    max_body_bytes: int
    languages: dict[str, str]


@routes.get("/")
@describe(tag="Documentation", answers={200: {"text/html": None, "application/json": {"type": "object"}}})
def index() -> Response:
    """Show the page to transcribe on; tell a program where to go."""
    if request.accept_mimetypes.accept_html:
        response = _file("index.html")
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Permissions-Policy"] = "microphone=(self)"
        response.headers["Referrer-Policy"] = "no-referrer"
    else:
        links = {"documentation": "/docs", "openapi": "/openapi.json", "health": "/health", "metrics": "/metrics"}
        response = jsonify({"name": "whisperlib", "version": __version__, **links})
    response.vary.add("Accept")
    return response


@routes.get("/page/config.json")
@describe(tag="Documentation", answers={200: {"application/json": PageConfig}})
def config() -> Response:
    """Tell the page what this server has and wants."""
    settings = current_service().settings
    enhancer: Enhancer | None = current_app.extensions[enhancing.ENHANCER]
    told = PageConfig(
        version=__version__,
        profile=settings.profile,
        language_model=enhancer.model.name if enhancer else None,
        needs_key=not guard.is_open(settings),
        max_body_bytes=settings.max_body_bytes,
        languages={code: name.title() for code, name in LANGUAGES.items()},
    )
    response = jsonify(told.model_dump())
    response.headers["Cache-Control"] = "no-store"
    return response


@routes.get("/page/<name>")
def asset(name: str) -> Response:
    """Return a file of the page."""
    if name not in _FILES:
        abort(404)
    return _file(name)


def _file(name: str) -> Response:
    """Answer with a file, or that the client's copy is still the same: it asks each time, so none is ever too old."""
    response = Response(_FILES[name].read_bytes(), content_type=f"{_TYPES[Path(name).suffix]}; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.add_etag()
    response.make_conditional(request)
    return response
