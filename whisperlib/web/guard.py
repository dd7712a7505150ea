"""Who may call: API keys, web pages of other origins, and where the server may listen without keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import reprlib
import socket
from urllib.parse import urlsplit

from flask import Flask, Response, g, request
from pydantic import SecretStr

from whisperlib.errors import OptionError
from whisperlib.settings import Settings
from whisperlib.web.errors import ApiError
from whisperlib.web.service import EXTENSION as SERVICE
from whisperlib.web.service import Service, current_service

NO_KEYS = "none"
OPEN_ENDPOINTS = (
    *("status.health", "status.ready"),
    *("page.index", "page.config", "page.asset"),
    *("docs.page", "docs.document", "docs.asset"),
)
ADMIN = "admin"  # the blueprint whose calls need a key of their own
ADMINS_TOO = tuple(f"batches.{name}" for name in ("tell_all", "tell", "tell_results", "cancel", "forget"))  # take both
PREFLIGHT_SECONDS = 3600


def register(app: Flask) -> None:
    """Check keys, or without them where a browser's request comes from, before, and add CORS after every request."""
    service: Service = app.extensions[SERVICE]
    app.before_request(_preflight)
    app.before_request(_check_key)
    if is_open(service.settings):
        app.before_request(_check_origin)
        if not service.settings.api_keys and _is_loopback(service.settings.host):
            app.before_request(_check_host)
    app.after_request(_allow_origin)


def is_open(settings: Settings) -> bool:
    """Whether requests need no key."""
    return not settings.api_keys or _words(settings) == [NO_KEYS]


def is_admin(endpoint: str | None) -> bool:
    """Whether a call is one of those that load and unload models."""
    return (endpoint or "").startswith(f"{ADMIN}.")


def sender() -> str | None:
    """Tell whose key the request bears, by its SHA-256 in hex; None where all that is anybody's is the client's, too.

    So it is where no key is needed, and with an admin key.
    """
    found: str | None = g.get("sender")
    return found


def check_exposure(settings: Settings) -> None:
    """Raise OptionError where others than this machine could call and nobody said that they may without a key.

    `none` beside keys is refused, too: it would be one of them, and easy to guess.
    """
    if NO_KEYS in [key.get_secret_value().lower() for key in settings.admin_keys]:
        raise OptionError(
            f"WHISPER_ADMIN_KEYS has {NO_KEYS!r}: give keys that nobody guesses, or leave it unset: then admin calls "
            "are refused"
        )
    if len(settings.api_keys) > 1 and NO_KEYS in _words(settings):
        raise OptionError(f"WHISPER_API_KEYS has {NO_KEYS!r} beside keys: give either keys, or {NO_KEYS!r} alone")
    if settings.api_keys or _is_loopback(settings.host):
        return
    raise OptionError(
        f"WHISPER_HOST = {settings.host!r} lets others than this machine call: set WHISPER_API_KEYS to the keys that "
        f"they must bear, or to {NO_KEYS!r} to serve everybody"
    )


def _words(settings: Settings) -> list[str]:
    return [key.get_secret_value().lower() for key in settings.api_keys]


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # no such host; no host name
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _check_key() -> None:
    settings = current_service().settings
    if is_admin(request.endpoint):
        if not settings.admin_keys:
            message = "this server takes no admin calls: set WHISPER_ADMIN_KEYS to the keys that they must bear"
            raise ApiError(403, message, code="admin_disabled")
        _require(settings.admin_keys)
    elif not (is_open(settings) or request.endpoint in OPEN_ENDPOINTS):
        admins = settings.admin_keys if request.endpoint in ADMINS_TOO else ()
        digest = _require((*settings.api_keys, *admins))
        g.sender = None if _is_one_of(digest, admins) else digest.hex()


def _require(expected: tuple[SecretStr, ...]) -> bytes:
    """Return the SHA-256 of the key that the request bears. Raises ApiError where it is none of these."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    key = given.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not key:
        raise ApiError(401, "no API key: send it as `Authorization: Bearer KEY`", code="missing_api_key")
    digest = _digest(key.encode("latin-1", "replace"))  # WSGI's way to hand over a header's bytes
    if not _is_one_of(digest, expected):
        raise ApiError(401, "incorrect API key", code="invalid_api_key")
    return digest


def _is_one_of(digest: bytes, keys: tuple[SecretStr, ...]) -> bool:
    """Compare every key, in a time that tells nothing of where they differ."""
    given = [one.get_secret_value().encode("utf-8", "surrogateescape") for one in keys]
    return bool(sum(hmac.compare_digest(digest, _digest(one)) for one in given))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_origin() -> None:
    """Refuse what a page of elsewhere has a browser send, which needs no leave to be sent, only to be answered."""
    origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
    if origin is None or request.endpoint in OPEN_ENDPOINTS or _is_allowed(origin):
        return
    is_own = host and origin.partition("://")[2].lower() == host.lower()
    if is_own or request.headers.get("Sec-Fetch-Site") == "same-origin":  # a proxy may have changed Host
        return
    message = (
        f"this server takes no calls from web pages of {reprlib.repr(origin)}: name it in WHISPER_CORS_ORIGINS, or set "
        "WHISPER_API_KEYS to keys that calls must bear"
    )
    raise ApiError(403, message, code="foreign_origin")


def _check_host() -> None:
    """Refuse a name that was made to lead here, by which a page of elsewhere would be of this server's own origin."""
    host = request.headers.get("Host")
    if not host or request.endpoint in OPEN_ENDPOINTS or _is_loopback_name(host, current_service().settings.host):
        return
    message = (
        f"Host = {reprlib.repr(host)} is no name of this machine for itself: ask localhost, or set WHISPER_API_KEYS to "
        f"keys that calls must bear, or to {NO_KEYS!r} to serve everybody"
    )
    raise ApiError(403, message, code="foreign_host")


def _is_loopback_name(host: str, own: str) -> bool:
    """Whether a Host header can mean the loopback only; `own` is where the server listens."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        return (
            name in {"localhost", own.lower()} or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
        )
    except ValueError:  # no address
        return False


def _is_allowed(origin: str) -> bool:
    allowed = current_service().settings.cors_origins
    return "*" in allowed or origin in allowed


def _preflight() -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    return Response(status=204)


def _allow_origin(response: Response) -> Response:
    allowed, origin = current_service().settings.cors_origins, request.headers.get("Origin")
    if not allowed:
        return response
    response.vary.add("Origin")
    if origin is None or not _is_allowed(origin):
        return response
    response.headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
    response.headers["Access-Control-Expose-Headers"] = (
        "x-request-id, Retry-After, openai-processing-ms, X-Whisper-Cache, Location"
    )
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
        asked = request.headers.get("Access-Control-Request-Headers", "Authorization, Content-Type")
        response.headers["Access-Control-Allow-Headers"] = asked
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    return response
