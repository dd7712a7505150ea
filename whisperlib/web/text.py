"""Answers that are text: a transcription in one of the formats that are not JSON."""

from __future__ import annotations

from flask import Response

from whisperlib import formats
from whisperlib.results import Transcription


def respond(result: Transcription, response_format: str) -> Response:
    """Answer with `result` as text, srt, vtt or tsv, under its media type."""
    content_type = f"{formats.MEDIA_TYPES[response_format]}; charset=utf-8"
    return Response(formats.render(result, response_format), content_type=content_type)
