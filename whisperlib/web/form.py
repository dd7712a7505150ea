"""The fields of a multipart form, for the routes that speak as other servers do.

Lists may bear brackets. A field that nobody knows changes nothing, as with those servers.
"""

from __future__ import annotations

import json
import logging
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, cast

from flask import request

from whisperlib.errors import OptionError
from whisperlib.options import MAX_PROMPT_CHARACTERS
from whisperlib.web.errors import ApiError
from whisperlib.web.running import Upload

logger = logging.getLogger(__name__)

_TRUE, _FALSE = ("true", "1", "yes", "on", "y"), ("false", "0", "no", "off", "n")


def upload() -> Upload:
    """Return the file of the field `file`. Raises ApiError where there is none, or several."""
    files = request.files.getlist("file")
    if not files:
        message = "there is no audio: send a multipart form whose field `file` is a file, with a file name"
        raise ApiError(400, message, code="missing_audio", param="file")
    if len(files) > 1:
        raise ApiError(400, f"{len(files)} files were sent: send one per request", code="conflict", param="file")
    return Upload(cast(BinaryIO, files[0].stream))


def text(name: str) -> str | None:
    """Return a field, or None where it is not there or empty. Raises ApiError where it came twice."""
    values = request.form.getlist(name)
    if len(values) > 1:
        raise ApiError(400, f"{name} was given {len(values)} times: give it once", code="conflict", param=name)
    return values[0] if values and values[0] != "" else None


def texts(name: str) -> list[str]:
    """Return all values of a list, whether its name bears brackets or not."""
    return [*request.form.getlist(f"{name}[]"), *request.form.getlist(name)]


def prompt(name: str) -> str | None:
    """Return the end of a text, as much as may be: that is what the model takes of a prompt."""
    value = text(name)
    return value and value[-MAX_PROMPT_CHARACTERS:]


def choice(name: str, allowed: Sequence[str]) -> str:
    """Return one of `allowed`, the first where the field is not there."""
    value = text(name) or allowed[0]
    if value not in allowed:
        raise bad(name, value, f"give one of {', '.join(allowed)}")
    return value


def number(name: str) -> float | None:
    """Return a number, or None where the field is not there."""
    value = text(name)
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        raise bad(name, value, "give a number") from None


def whole(name: str) -> int | None:
    """Return a whole number, or None where the field is not there."""
    value = text(name)
    if value is None:
        return None
    if not re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", value, re.ASCII):
        raise bad(name, value, "give a whole number")
    return int(float(value))


def flag(name: str) -> bool | None:
    """Return a truth value, or None where the field is not there."""
    value = text(name)
    if value is None:
        return None
    if value.lower() not in (*_TRUE, *_FALSE):
        raise bad(name, value, "give true or false")
    return value.lower() in _TRUE


def nested(name: str) -> dict[str, str] | str | None:
    """Return a value that is a word, or an object: as JSON, or in fields `name[key]`, as OpenAI's clients send it."""
    pattern = re.compile(rf"{re.escape(name)}\[(\w+)\]")
    fields = {match[1]: text(key) for key in request.form if (match := pattern.fullmatch(key))}
    value = text(name)
    if fields and value is not None:
        raise ApiError(400, f"{name} was given as a whole and in parts: give it once", code="conflict", param=name)
    if fields:
        return {key: inner for key, inner in fields.items() if inner is not None}
    if value is None or not value.lstrip().startswith("{"):
        return value
    try:
        return {key: str(inner) for key, inner in json.loads(value).items() if inner is not None}
    except (ValueError, RecursionError):
        raise bad(name, value, "give a word or a JSON object") from None


def bad(name: str, value: object, what: str) -> ApiError:
    """Say that a field has a value that cannot be used, and what to give."""
    return ApiError(400, f"{name} = {reprlib.repr(value)}: {what}", code="invalid_option", param=name)


@contextmanager
def complaints_about(fields: Mapping[str, str]) -> Iterator[None]:
    """Have an OptionError name the field that the client sent; `fields` gives it for the option's name.

    Their times are milliseconds and ours are not, so the complaint about one tells its unit.
    """
    try:
        yield
    except OptionError as error:
        if error.option is None or error.option not in fields:
            raise
        name = fields[error.option]
        message = str(error).replace(f"option {error.option}", name, 1)
        if error.option.endswith("_seconds"):
            message += " (in seconds)"
        raise ApiError(400, message, code="invalid_option", param=name) from None


def log_unknown(known: Collection[str]) -> None:
    """Write down which fields are not among `known`, for those who wonder why one has no effect."""
    unknown = {name for name in (*request.form, *request.files) if name.partition("[")[0] not in known}
    if unknown:
        logger.debug("fields that mean nothing here: %s", reprlib.repr(sorted(unknown)))
