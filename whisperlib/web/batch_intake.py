"""What `POST /batches` is asked: a list of audio and its options, as JSON or as a multipart form."""

from __future__ import annotations

import json
import re
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import pydantic
from flask import request
from pydantic import BaseModel, ConfigDict, Field

from whisperlib import fetch
from whisperlib.batches import BatchQueue, NewBatch, NewItem
from whisperlib.enhance import Mode
from whisperlib.errors import OptionError, UrlRefusedError
from whisperlib.options import TranscribeOptions
from whisperlib.settings import without_credentials
from whisperlib.web import enhancing, intake
from whisperlib.web.errors import ApiError
from whisperlib.web.schemas import SERVER_OPTIONS, Format, Parameters, twin

MAX_JSON_BYTES = 1 << 24
MAX_NAME_CHARACTERS = 255
FORM_FIELDS = 200  # beside the files and the addresses

_SPOOL_BYTES = 1 << 20  # of a body: in memory up to here, in a temporary file beyond
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_LEFT_OUT = (*SERVER_OPTIONS, "max_wait_seconds")  # a batch waits as long as it must

BatchOptions = pydantic.create_model("BatchOptions", __base__=twin(TranscribeOptions, _LEFT_OUT))


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class BatchItem(_Asked):
    """One audio of a batch. Its options go before those of the batch."""

    audio_url: str = Field(description="Where the server fetches the audio: http or https.")
    name: str | None = Field(
        None, min_length=1, max_length=MAX_NAME_CHARACTERS, description="What you call it; left out: the URL."
    )
    options: BatchOptions = Field(default_factory=BatchOptions)
    enhance: Mode | None = Field(
        None, description="Clean its text up by a language model; left out: as the batch says."
    )


class BatchRequest(_Asked):
    """A list of audio, and what holds for all of it."""

    items: list[BatchItem] = Field(min_length=1)
    options: BatchOptions = Field(default_factory=BatchOptions)
    model: str | None = Field(None, description=Parameters.model_fields["model"].description)
    response_format: Format = Field("json", description="How results are written, where nothing else is asked for.")
    enhance: Mode | None = Field(None, description=Parameters.model_fields["enhance"].description)


BatchForm = pydantic.create_model(
    "BatchForm",
    __base__=BatchOptions,
    __doc__="A list of audio, as files or addresses, and the options of all of it.",
    file=(list[bytes], Field([], description="The audio, in any common format.")),
    audio_url=(list[str], Field([], description="Where the server fetches audio: http or https.")),
    model=(str | None, BatchRequest.model_fields["model"]),
    response_format=(Format, BatchRequest.model_fields["response_format"]),
    enhance=(Mode | None, BatchRequest.model_fields["enhance"]),
)


@dataclass(frozen=True)
class Asked:
    """What a client asks for. `files` are those of `items` that have no URL, in their order."""

    items: list[NewItem]
    files: list[BinaryIO]
    model: str | None
    response_format: Format
    key: str | None

    @contextmanager
    def kept(self, queue: BatchQueue, sender: str | None) -> Iterator[NewBatch]:
        """Hand the files to `queue`, which drops them again if the block fails."""
        uploads = []
        try:
            for file in self.files:
                uploads.append(queue.keep(file))  # noqa: PERF401  (those before one that fails are dropped)
            left = iter(uploads)
            items = [item if item.url else replace(item, upload=next(left)) for item in self.items]
            settings = json.dumps({"model": self.model, "response_format": self.response_format})
            yield NewBatch(items, settings, self.key, sender)
        except BaseException:
            queue.discard(uploads)
            raise


@contextmanager
def asked(max_items: int) -> Iterator[Asked]:
    """Read the request; its files are there until the block ends.

    Raises ApiError, which names the item and the field, and RequestEntityTooLarge.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        message = f"Idempotency-Key = {reprlib.repr(key)}: give 1 to 255 visible ASCII characters"
        raise ApiError(400, message, code="invalid_option", param="Idempotency-Key")
    request.max_form_parts = 2 * max_items + FORM_FIELDS
    if request.mimetype == "multipart/form-data":
        yield _from_form(key, max_items)
        return
    if request.args:
        raise _unknown(next(iter(request.args)), [])
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as body:
        shutil.copyfileobj(request.stream, body)
        n_bytes = body.tell()
        body.seek(0)
        yield _from_json(intake.text_of(body, n_bytes, MAX_JSON_BYTES), key, max_items)


def _from_json(text: str, key: str | None, max_items: int) -> Asked:
    try:
        given = BatchRequest.model_validate(intake.json_object(text), strict=True)
    except pydantic.ValidationError as error:
        raise complaint(error, BatchRequest) from None
    _check_count(len(given.items), max_items)
    enhancing.check(given.enhance)
    defaults = _dumped(given.options)
    _options(defaults, "options")
    items = []
    for index, item in enumerate(given.items):
        where = f"items.{index}"
        _check_url(item.audio_url, f"{where}.audio_url")
        enhancing.check(item.enhance, f"{where}.enhance")
        options = _options(_merged(defaults, _dumped(item.options)), f"{where}.options")
        name = item.name or without_credentials(item.audio_url)[:MAX_NAME_CHARACTERS]
        items.append(NewItem(name, options, url=item.audio_url, enhance=item.enhance or given.enhance))
    return Asked(items, [], given.model, given.response_format, key)


def _from_form(key: str | None, max_items: int) -> Asked:
    files, urls = request.files.getlist("file"), request.form.getlist("audio_url")
    for name in request.files:
        if name != "file":
            raise _unknown(name, BatchForm.model_fields)
    fields = [(name, text) for name, text in request.form.items(multi=True) if name != "audio_url"]
    values = intake.from_texts([*request.args.items(multi=True), *fields])
    for name in values:
        if name not in BatchForm.model_fields or name in {"file", "audio_url"}:
            raise _unknown(name, BatchForm.model_fields)
    _check_count(len(files) + len(urls), max_items)
    model, response_format = values.pop("model", None), values.pop("response_format", "json")
    enhance = values.pop("enhance", None)
    enhancing.check(enhance)
    options = _options(values, None)
    names = [(file.filename or f"file {number}")[:MAX_NAME_CHARACTERS] for number, file in enumerate(files)]
    items = [NewItem(name, options, enhance=enhance) for name in names]
    for number, url in enumerate(urls):
        _check_url(url, f"audio_url.{number}")
        items.append(NewItem(without_credentials(url)[:MAX_NAME_CHARACTERS], options, url=url, enhance=enhance))
    return Asked(items, [cast(BinaryIO, file.stream) for file in files], model, response_format, key)


def _dumped(options: Any) -> dict[str, Any]:
    given: dict[str, Any] = options.model_dump(exclude_unset=True)
    return given


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an item; those of an option, such as `vad_options`, are merged one by one."""
    merged = {**defaults, **own}
    for name, value in own.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            merged[name] = {**defaults[name], **value}
    return merged


def _options(values: dict[str, Any], where: str | None) -> str:
    """Return checked options as JSON; `where` is the field that has them."""
    try:
        return TranscribeOptions(**values).model_dump_json(exclude_unset=True)
    except OptionError as error:
        if where is None:
            raise
        raise ApiError(400, f"{where}: {error}", code="invalid_option", param=f"{where}.{error.option}") from None


def _check_count(count: int, most: int) -> None:
    if count == 0:
        message = "there is no audio: send files in the multipart field `file`, or name audio_urls"
        raise ApiError(400, message, code="missing_audio", param="file")
    if count > most:
        message = f"the batch has {count} items: send at most {most}, and the others in another batch"
        raise ApiError(413, message, code="too_many_items", param="items")


def _check_url(url: str, param: str) -> None:
    try:
        fetch.check_url(url)
    except UrlRefusedError as error:
        raise ApiError(400, f"{param}: {error}", code="url_refused", param=param) from None


def complaint(error: pydantic.ValidationError, model: type[BaseModel]) -> ApiError:
    """Say what is wrong with the first of the values that `model` refused."""
    details = error.errors()[0]
    path = details["loc"]
    name = ".".join(str(part) for part in path) or "the body"
    if details["type"] == "extra_forbidden":
        inside: type[BaseModel] = BatchOptions if "options" in path else BatchItem if "items" in path[:-1] else model
        return _unknown(name, [] if "vad_options" in path else inside.model_fields)
    if details["type"] in {"missing", "too_short"}:
        return ApiError(400, f"{name} is missing or empty: name the audio", code="missing_audio", param=name)
    message = f"{name} = {reprlib.repr(details['input'])}: {details['msg'][0].lower()}{details['msg'][1:]}"
    return ApiError(400, message, code="invalid_option", param=name)


def _unknown(name: str, known: Any) -> ApiError:
    hint = f": the fields are {', '.join(sorted(known))}" if known else ""
    return ApiError(400, f"unknown field {reprlib.repr(name)}{hint}", code="unknown_field", param=name)
