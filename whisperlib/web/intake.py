"""What `POST /transcribe` is asked: the audio and the options, in whichever way they came.

They come as JSON, a multipart form, an urlencoded form, or with the audio as the body; with each of them the query
string may say more.
"""

from __future__ import annotations

import io
import json
import re
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NoReturn, TypeVar, cast
from urllib.parse import parse_qsl

import pydantic
from flask import request
from pydantic import BaseModel
from werkzeug.exceptions import RequestEntityTooLarge

from whisperlib.enhance import Mode
from whisperlib.options import TranscribeOptions
from whisperlib.web import stream
from whisperlib.web.errors import ApiError
from whisperlib.web.running import Audio, Remote, Upload
from whisperlib.web.schemas import Format, Parameters, nested

MAX_TEXT_BYTES = 1 << 16  # of JSON and of an urlencoded form
ALIASES = {"prompt": "initial_prompt"}

Fields = TypeVar("Fields", bound=BaseModel)

_SPOOL_BYTES = 1 << 20  # of an upload: in memory up to here, in a temporary file beyond
_SNIFFED_BYTES = 512
# No audio file begins like these. The label tells little: curl calls whatever it posts an urlencoded form.
_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*\{")
_FORM = re.compile(rb"[\w.%+-]+=[^\x00-\x08\x0e-\x1f]*")
_NESTED = {name: model for name, field in Parameters.model_fields.items() if (model := nested(field.annotation))}


@dataclass(frozen=True)
class Asked:
    """What a client asks for; `model`, `keep_alive_seconds` and `enhance` are None where it names none."""

    audio: Audio
    options: TranscribeOptions
    model: str | None
    keep_alive_seconds: float | None
    response_format: Format
    stream: bool
    enhance: Mode | None


@contextmanager
def asked() -> Iterator[Asked]:
    """Read the request; uploaded audio is there until the block ends.

    Raises ApiError and OptionError, which name the field, and RequestEntityTooLarge.
    """
    query = list(request.args.items(multi=True))
    if request.mimetype == "multipart/form-data":
        yield _asked(from_texts([*query, *request.form.items(multi=True)]), _uploaded_file())
        return
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as body:
        shutil.copyfileobj(request.stream, body)
        n_bytes = body.tell()
        body.seek(0)
        head = body.read(_SNIFFED_BYTES)
        body.seek(0)
        if request.is_json or _JSON.match(head):
            yield _asked(_merged(from_texts(query), _from_json(text_of(body, n_bytes))))
        elif request.mimetype == "application/x-www-form-urlencoded" and _FORM.fullmatch(head):
            yield _asked(from_texts([*query, *_form_items(text_of(body, n_bytes))]))
        else:
            yield _asked(from_texts(query), cast(BinaryIO, body) if n_bytes else None)


def fields(model: type[Fields]) -> Fields:
    """Read a request without audio, whose few fields stand in the query string or in a body of JSON.

    Raises ApiError, which names the field, and RequestEntityTooLarge.
    """
    query = _checked(model, model.model_validate_strings, _once(request.args.items(multi=True)))
    body = request.stream.read(MAX_TEXT_BYTES + 1)
    if not body:
        return model(**query)
    given = json_object(text_of(io.BytesIO(body), request.content_length or len(body)))
    return model(**_merged(query, _checked(model, partial(model.model_validate, strict=True), given)))


def _once(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, text in items:
        if name in values:
            raise _conflict(name)
        values[name] = text
    return values


def _asked(values: dict[str, Any], file: BinaryIO | None = None) -> Asked:
    wants_events = stream.MIME_TYPE in request.accept_mimetypes.values()
    return Asked(
        audio=_audio(file, values.get("audio_url")),
        options=TranscribeOptions(**{name: values[name] for name in values if name in TranscribeOptions.model_fields}),
        model=values.get("model"),
        keep_alive_seconds=values.get("keep_alive"),
        response_format=values.get("response_format", "json"),
        stream=values.get("stream", wants_events),
        enhance=values.get("enhance"),
    )


def _audio(file: BinaryIO | None, url: str | None) -> Audio:
    if file is not None and url is not None:
        raise _conflict("audio_url", "audio came with the request, and audio_url was given: send one of them")
    if file is not None:
        return Upload(file)
    if url is not None:
        return Remote(url)
    message = "there is no audio: send it in the multipart field `file`, as the body, or name its audio_url"
    raise ApiError(400, message, code="missing_audio", param="file")


def _uploaded_file() -> BinaryIO | None:
    """Return the stream of the one file of a multipart form."""
    for name in request.files:
        if name != "file":
            raise _unknown(name)
    files = request.files.getlist("file")
    if len(files) > 1:
        raise _conflict("file", f"{len(files)} files were sent: send one per request")
    return cast(BinaryIO, files[0].stream) if files else None


def from_texts(items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Convert what a form or a query string says; `vad_options.threshold` is a field of `vad_options`."""
    texts: dict[str, Any] = {}
    for name, text in _flat(items):
        outer, dot, inner = name.partition(".")
        fields = texts.setdefault(outer, {}) if dot and outer in _NESTED else texts
        key = inner if fields is not texts else name
        if key in fields:
            raise _conflict(name)
        fields[key] = text
    return _checked(Parameters, Parameters.model_validate_strings, texts)


def _flat(items: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Give every option its own name, and take a JSON object apart into its fields."""
    for given_name, text in items:
        name = ALIASES.get(given_name, given_name)
        if name in _NESTED:
            for inner, value in json_object(text, name).items():
                yield f"{name}.{inner}", json.dumps(value)
        else:
            yield name, text


def _from_json(text: str) -> dict[str, Any]:
    given = json_object(text)
    for alias, name in ALIASES.items():
        if alias in given:
            if name in given:
                raise _conflict(alias)
            given[name] = given.pop(alias)
    return _checked(Parameters, partial(Parameters.model_validate, strict=True), given)


def _form_items(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as error:
        raise ApiError(400, f"the form cannot be read: {error}", code="invalid_form") from None


def text_of(body: Any, n_bytes: int, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text of `n_bytes`. Raises RequestEntityTooLarge above `most_bytes`, ApiError where it is not UTF-8."""
    if n_bytes > most_bytes:
        raise RequestEntityTooLarge(f"JSON and forms may have {most_bytes} bytes, and the body has {n_bytes}")
    try:
        return str(body.read(), "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}", code="not_utf8") from None


def json_object(text: str, param: str | None = None) -> dict[str, Any]:
    """Read one JSON object, as the standard has it: without NaN, and no name twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in items:
            if name in found:
                raise _conflict(name)
            found[name] = value
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(value, dict):
            return value
        problem = f"it should be an object, not {reprlib.repr(value)}"
    where = param or "the body"
    raise ApiError(400, f"{where} is not usable JSON: {problem}", code="invalid_json", param=param)


def _merged(query: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    for name in query:
        if name in body:
            raise _conflict(name)
    return {**query, **body}


def _checked(
    model: type[BaseModel], validate: Callable[[dict[str, Any]], BaseModel], values: dict[str, Any]
) -> dict[str, Any]:
    try:
        parameters = validate(values)
    except pydantic.ValidationError as error:
        raise _complaint(model, error) from None
    return parameters.model_dump(exclude_unset=True)


def _complaint(model: type[BaseModel], error: pydantic.ValidationError) -> ApiError:
    details = error.errors()[0]
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return _unknown(name, model)
    message = f"{name} = {reprlib.repr(details['input'])}: {details['msg'][0].lower()}{details['msg'][1:]}"
    return ApiError(400, message, code="invalid_option", param=name)


def _unknown(name: str, model: type[BaseModel] = Parameters) -> ApiError:
    brings_audio = model is Parameters
    if name == "file" and brings_audio:
        message = "file should be a file of a multipart form, not a text"
        return ApiError(400, message, code="invalid_option", param=name)
    inner = _NESTED.get(name.partition(".")[0]) if brings_audio else None
    others = [*ALIASES, "file"] if brings_audio else []
    known = ", ".join(sorted(inner.model_fields if inner else [*model.model_fields, *others]))
    return ApiError(
        400, f"unknown field {reprlib.repr(name)}: the fields are {known}", code="unknown_field", param=name
    )


def _conflict(name: str, message: str | None = None) -> ApiError:
    return ApiError(400, message or f"{name} was given twice: give it once", code="conflict", param=name)
