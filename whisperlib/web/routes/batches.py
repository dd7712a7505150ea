"""`/batches`: lists of audio that are worked off in the background, and what has become of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import Any, TypeVar

import pydantic
from flask import Blueprint, Response, jsonify, request, stream_with_context, url_for
from pydantic import BaseModel, ConfigDict, Field

from whisperlib import formats
from whisperlib.batches import MAX_ITEMS_AT_ONCE, BatchState, BatchStatus, ItemState, ItemStatus
from whisperlib.web import batch_intake, batching, guard, schemas
from whisperlib.web.batch_intake import BatchForm, BatchRequest
from whisperlib.web.errors import ApiError, Problem
from whisperlib.web.openapi import ErrorDetail, describe
from whisperlib.web.schemas import Format
from whisperlib.web.service import current_service

ENDED: tuple[ItemState, ...] = ("done", "failed")
JSON_LINES = "application/jsonl"
PAGE_ITEMS = 100
PAGE_BATCHES = 20

routes = Blueprint("batches", __name__)

Query = TypeVar("Query", bound=BaseModel)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ItemsPage(_Query):
    """Which items of a batch are told."""

    after: int = Field(-1, ge=-1, description="Index of the last item that you have.")
    limit: int = Field(PAGE_ITEMS, ge=0, le=MAX_ITEMS_AT_ONCE, description="Items, at most.")
    response_format: Format | None = Field(None, description="How results are written; left out: as the batch says.")


class BatchesPage(_Query):
    """Which batches are told."""

    after: str | None = Field(None, description="Id of the last batch that you have.")
    limit: int = Field(PAGE_BATCHES, ge=1, le=100, description="Batches, at most.")


class ResultsQuery(_Query):
    """How results are written."""

    response_format: Format | None = Field(None, description="How results are written; left out: as the batch says.")


class BatchItemStatus(BaseModel):
    """What has become of an item: `result` where it is done, as its format is, and `error` where it failed."""

    index: int
    name: str
    state: ItemState
    result: schemas.Answer | str | None = None
    error: ErrorDetail | None = None


class Batch(BaseModel):
    """What has become of a batch.

    `counts` has the items by their state, `fraction` what is done of them, 0 to 1, parts of those that run included.
    `audio_seconds` is the audio of those that are done, `remaining_seconds` a guess, null while there is nothing to
    guess by. `items` are a page of them; `next_after` asks for the next, null where there is none.
    """

    id: str
    state: BatchState
    model: str | None
    response_format: Format
    counts: dict[ItemState, int]
    total: int
    fraction: float
    audio_seconds: float
    remaining_seconds: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    items: list[BatchItemStatus] | None = None
    next_after: int | None = None


class BatchList(BaseModel):
    """Batches, the newest first; `next_after` asks for the next, null where there is none."""

    batches: list[Batch]
    next_after: str | None


class Deleted(BaseModel):
    """A batch that was forgotten."""

    id: str
    deleted: bool


@routes.post("/batches")
@describe(
    tag="Batches",
    request={"application/json": BatchRequest, "multipart/form-data": BatchForm},
    answers={202: {"application/json": Batch}, 200: {"application/json": Batch}},
)
def add() -> Response:
    """Transcribe a list of audio in the background.

    The answer comes as soon as the list is kept, with the batch's id and, in `Location`, its address. Everything is
    checked by then but the audio itself. The items run when no other request waits, also after a restart.

    With the header `Idempotency-Key` the same request can be sent again: it is answered with 200 and the batch that is
    there.
    """
    service, found = current_service(), batching.current()
    with ExitStack() as inside:
        inside.enter_context(service.admitted())
        found.queue.check_room(request.content_length or 0)
        asked = inside.enter_context(batch_intake.asked(service.settings.batch_max_items))
        found.check_model(asked.model)
        with asked.kept(found.queue, guard.sender()) as batch:
            batch_id, new = found.queue.add(batch)
        if not new:
            found.queue.discard([item.upload for item in batch.items if item.upload])
        found.wake()
        response = jsonify(_batch(_known(batch_id)))
        response.status_code = 202 if new else 200
        response.headers["Location"] = url_for("batches.tell", batch_id=batch_id)
        return response


@routes.get("/batches")
@describe(tag="Batches", parameters=BatchesPage, answers={200: {"application/json": BatchList}})
def tell_all() -> Response:
    """Tell of all batches of your key, the newest first."""
    page = _query(BatchesPage)
    if page.after is not None:
        _known(page.after)
    found = batching.current().queue.batches(page.after, page.limit + 1, guard.sender())
    more = len(found) > page.limit
    told = [_batch(one) for one in found[: page.limit]]
    return jsonify({"batches": told, "next_after": told[-1]["id"] if more else None})


@routes.get("/batches/<batch_id>")
@describe(tag="Batches", parameters=ItemsPage, answers={200: {"application/json": Batch}})
def tell(batch_id: str) -> Response:
    """Tell how far a batch is, with a page of its items.

    `result` is what `/transcribe` would answer: an object for json and verbose_json, else a text.
    """
    page, status = _query(ItemsPage), _known(batch_id)
    items = batching.current().queue.items(batch_id, page.after, page.limit)
    last = items[-1].index if items else page.after
    return jsonify({
        **_batch(status),
        "items": [_item(one, page.response_format or _format(status)) for one in items],
        "next_after": last if items and last < status.total - 1 else None,
    })  # fmt: skip


@routes.get("/batches/<batch_id>/results")
@describe(tag="Batches", parameters=ResultsQuery, answers={200: {JSON_LINES: BatchItemStatus}})
def tell_results(batch_id: str) -> Response:
    """Tell what is finished of a batch, as one line of JSON for each item that is done or failed, in their order."""
    response_format, status = _query(ResultsQuery).response_format, _known(batch_id)
    chosen = response_format or _format(status)
    return Response(stream_with_context(_lines(batch_id, chosen)), content_type=f"{JSON_LINES}; charset=utf-8")


@routes.post("/batches/<batch_id>/cancel")
@describe(tag="Batches", answers={200: {"application/json": Batch}})
def cancel(batch_id: str) -> Response:
    """End what is left of a batch. What is finished of it stays; a batch that has ended stays as it is."""
    found = batching.current()
    _known(batch_id)
    if found.queue.cancel(batch_id):
        found.drop_cancelled()
    return jsonify(_batch(_known(batch_id)))


@routes.delete("/batches/<batch_id>")
@describe(tag="Batches", answers={200: {"application/json": Deleted}})
def forget(batch_id: str) -> Response:
    """Forget a batch: its audio and its results are deleted, and what is left of it does not run."""
    found = batching.current()
    _known(batch_id)
    if not found.queue.forget(batch_id):
        raise _not_found(batch_id)
    found.drop_cancelled()
    return jsonify(Deleted(id=batch_id, deleted=True).model_dump())


def _known(batch_id: str) -> BatchStatus:
    status, sender = batching.current().queue.status(batch_id), guard.sender()
    if status is None or (sender and status.sender not in {None, sender}):
        raise _not_found(batch_id)
    return status


def _not_found(batch_id: str) -> ApiError:
    message = f"there is no batch {batch_id[:100]!r}: it was never there, or is forgotten by now"
    return ApiError(404, message, code="batch_not_found", param="batch_id")


def _query(model: type[Query]) -> Query:
    try:
        return model.model_validate_strings(request.args.to_dict())
    except pydantic.ValidationError as error:
        raise batch_intake.complaint(error, model) from None


def _format(status: BatchStatus) -> Format:
    chosen: Format = json.loads(status.settings)["response_format"]
    return chosen


def _batch(status: BatchStatus) -> dict[str, Any]:
    """Return a batch in the form of `Batch`, ready for JSON, without its items."""
    done = status.ended + batching.current().progress(status.id)
    return {
        "id": status.id,
        "state": status.state,
        "model": json.loads(status.settings)["model"],
        "response_format": _format(status),
        "counts": status.counts,
        "total": status.total,
        "fraction": round(done / status.total, 4),
        "audio_seconds": round(status.audio_seconds, 3),
        "remaining_seconds": _remaining_seconds(status, done),
        "created_at": _time(status.created),
        "started_at": _time(status.started),
        "finished_at": _time(status.finished),
    }


def _remaining_seconds(status: BatchStatus, done: float) -> float | None:
    """Guess by what was done since the batch was begun."""
    if status.finished is not None:
        return 0.0
    if status.started is None or not done:
        return None
    return round((time.time() - status.started) / done * (status.total - done), 1)


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _item(item: ItemStatus, response_format: Format) -> dict[str, Any]:
    """Return an item in the form of `BatchItemStatus`, ready for JSON."""
    told: dict[str, Any] = {"index": item.index, "name": item.name, "state": item.state}
    if item.error is not None:
        told["error"] = json.loads(item.error)
    if item.result is not None:
        try:
            told["result"] = _result(item, item.result, response_format)
        except ValueError:
            problem = Problem(500, "its result was written by another version of whisperlib", "internal_error")
            told |= {"state": "failed", **problem.body()}
    return told


def _result(item: ItemStatus, result: str, response_format: Format) -> dict[str, Any] | str:
    outcome = batching.decode(result)
    if response_format in {"json", "verbose_json"}:
        words = bool(json.loads(item.options).get("word_timestamps"))
        enhancement = batching.decode_enhancement(item.enhancement)
        verbose = response_format == "verbose_json"
        return schemas.answer(outcome, verbose=verbose, words=words, enhancement=enhancement)
    return formats.render(outcome.result, response_format)


def _lines(batch_id: str, response_format: Format) -> Iterator[str]:
    after, queue = -1, batching.current().queue
    while page := queue.items(batch_id, after, PAGE_ITEMS, ENDED):
        for item in page:
            yield json.dumps(_item(item, response_format), ensure_ascii=False) + "\n"
        after = page[-1].index
