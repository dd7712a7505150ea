"""What a request asks for, however it is written; refusals name the field."""

from __future__ import annotations

import io
import json
from typing import Any, get_args

import pytest
from flask import Flask
from werkzeug.exceptions import RequestEntityTooLarge

from whisperlib import assets, formats
from whisperlib.errors import OptionError
from whisperlib.options import TranscribeOptions, VadOptions
from whisperlib.web import intake, schemas
from whisperlib.web.errors import ApiError, problem_of
from whisperlib.web.running import Remote, Upload

AUDIO = (assets.SAMPLES / "rms_010.flac").read_bytes()
URL = "http://127.0.0.1/a.wav"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def app() -> Flask:
    """An application without a model: reading a request needs none."""
    app = Flask("intake")
    app.config["MAX_CONTENT_LENGTH"] = 1 << 20
    return app


def ask(app: Flask, **request: Any) -> tuple[intake.Asked, bytes | str]:
    """Return what a request asks for, and its audio: the bytes or the URL."""
    with app.test_request_context("/transcribe", method="POST", **request), intake.asked() as asked:
        return asked, asked.audio.file.read() if isinstance(asked.audio, Upload) else asked.audio.url


def refusal(app: Flask, **request: Any) -> tuple[str, str | None, str | None]:
    """Return message, code and field of the refusal of a request."""
    with pytest.raises((ApiError, OptionError)) as caught:
        ask(app, **request)
    problem = problem_of(caught.value)
    assert problem.status == 400
    return problem.message, problem.code, problem.param


def multipart(**fields: Any) -> dict[str, Any]:
    return {"data": {"file": (io.BytesIO(AUDIO), "a.flac"), **fields}}


@pytest.mark.parametrize(
    "request_",
    [
        {"data": AUDIO},
        {"data": AUDIO, "content_type": "audio/flac"},
        {"data": AUDIO, "content_type": "application/octet-stream"},
        {"data": AUDIO, "content_type": FORM},  # curl --data-binary
        {"data": {"file": (io.BytesIO(AUDIO), "a.flac")}},
        {"input_stream": io.BytesIO(AUDIO), "environ_overrides": {"wsgi.input_terminated": True}},  # chunked
    ],
)
def test_audio_may_be_a_file_of_a_form_or_the_body_under_any_label(app: Flask, request_: dict[str, Any]) -> None:
    asked, audio = ask(app, **request_)
    assert isinstance(asked.audio, Upload)
    assert audio == AUDIO
    assert asked.options == TranscribeOptions()


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"audio_url": URL, "language": "de"}},
        {"data": json.dumps({"audio_url": URL, "language": "de"}), "content_type": FORM},  # curl -d
        {"data": f'\ufeff \n{{"audio_url": "{URL}", "language": "de"}}'},
        {"data": {"audio_url": URL, "language": "de"}},
        {"data": f"audio_url={URL}&language=de", "content_type": FORM},
        {"data": {"audio_url": URL, "language": "de"}, "content_type": "multipart/form-data"},
        {"query_string": {"audio_url": URL, "language": "de"}},
        {"json": {"audio_url": URL}, "query_string": {"language": "de"}},
        {"data": {"language": "de"}, "query_string": {"audio_url": URL}},
    ],
)
def test_an_address_may_come_as_json_in_a_form_or_in_the_query(app: Flask, request_: dict[str, Any]) -> None:
    asked, url = ask(app, **request_)
    assert isinstance(asked.audio, Remote)
    assert url == URL
    assert asked.options == TranscribeOptions(language="de")


@pytest.mark.parametrize(
    "head", [b"RIFF=", b"RIFF=\x01\x02\x03WAVE", b"fLaC\0\0", b"ID3\x03", b"\xff\xfb\x90", b"OggS\0"]
)
def test_audio_is_told_from_a_form_by_its_content(app: Flask, head: bytes) -> None:
    body = head + bytes(100)
    assert ask(app, data=body, content_type=FORM)[1] == body


def test_every_option_but_the_servers_own_can_be_set_in_every_way(app: Flask) -> None:
    values = {
        "profile": "fast",
        "language": "de",
        "task": "translate",
        "beam_size": 2,
        "best_of": 3,
        "temperature": 0.1,
        "temperature_increment": 0.3,
        "logprob_threshold": -2.0,
        "entropy_threshold": 2.0,
        "no_speech_threshold": 0.5,
        "initial_prompt": "Grüße, & = + %",
        "carry_initial_prompt": True,
        "condition_on_previous_text": False,
        "word_timestamps": True,
        "suppress_non_speech": True,
        "max_segment_length": 20,
        "offset_seconds": 1.5,
        "duration_seconds": 3.0,
        "vad": False,
        "vad_options": {"threshold": 0.3, "pad_seconds": 1.0},
        "audio_ctx": 512,
        "fit_audio_ctx": True,
        "chunking": "parallel",
        "timeout_seconds": 9.5,
        "max_wait_seconds": 0.0,
        "on_interrupt": "partial",
        "cache": False,
    }
    assert {*values, *schemas.SERVER_OPTIONS} == set(TranscribeOptions.model_fields)
    expected = TranscribeOptions(**values)
    texts = {name: json.dumps(value) if name == "vad_options" else str(value) for name, value in values.items()}
    assert ask(app, json={"audio_url": URL, **values})[0].options == expected
    assert ask(app, **multipart(**texts))[0].options == expected
    assert ask(app, data=AUDIO, query_string=texts)[0].options == expected
    assert ask(app, data={"audio_url": URL, **texts})[0].options == expected


def test_options_of_an_option_may_be_given_one_by_one(app: Flask) -> None:
    asked, _ = ask(app, **multipart(**{"vad_options.threshold": "0.3", "vad_options.pad_seconds": "1"}))
    assert asked.options.vad_options == VadOptions(threshold=0.3, pad_seconds=1)
    asked, _ = ask(app, data=AUDIO, query_string={"vad_options": '{"pad_seconds": 1}', "vad_options.threshold": "0.3"})
    assert asked.options.vad_options == VadOptions(threshold=0.3, pad_seconds=1)


def test_prompt_is_short_for_initial_prompt(app: Flask) -> None:
    assert ask(app, **multipart(prompt="Names"))[0].options.initial_prompt == "Names"
    assert ask(app, json={"audio_url": URL, "prompt": "Names"})[0].options.initial_prompt == "Names"


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("no", False)]
)
def test_a_form_says_yes_and_no_in_several_ways(app: Flask, text: str, value: bool) -> None:
    assert ask(app, **multipart(vad=text))[0].options.vad is value


def test_what_is_said_beside_the_options_has_defaults(app: Flask) -> None:
    asked, _ = ask(app, data=AUDIO)
    assert (asked.model, asked.response_format, asked.stream) == (None, "json", False)
    asked, _ = ask(app, **multipart(model="micro", response_format="vtt", stream="true"))
    assert (asked.model, asked.response_format, asked.stream) == ("micro", "vtt", True)
    assert get_args(schemas.Format) == formats.FORMATS


def test_a_client_that_accepts_events_gets_them_unless_it_says_no(app: Flask) -> None:
    headers = {"Accept": "text/event-stream"}
    assert ask(app, data=AUDIO, headers=headers)[0].stream
    assert not ask(app, data=AUDIO, headers=headers, query_string={"stream": "no"})[0].stream
    assert not ask(app, data=AUDIO, headers={"Accept": "*/*"})[0].stream


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("beam_size", "abc"),
        ("beam_size", "2.5"),
        ("beam_size", ""),
        ("beam_size", "9" * 5000),
        ("beam_size", "9"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("vad", "maybe"),
        ("task", "sing"),
        ("language", "klingon"),
        ("initial_prompt", "a\0b"),
        ("response_format", "docx"),
        ("stream", "2"),
        ("vad_options", "0.5"),
        ("vad_options", "{"),
        ("vad_options.threshold", "loud"),
        ("vad_options.threshold", "7"),
    ],
)
def test_a_text_without_sense_is_refused_under_its_fields_name(app: Flask, name: str, text: str) -> None:
    for request_ in (multipart(**{name: text}), {"data": AUDIO, "query_string": {name: text}}):
        message, _, param = refusal(app, **request_)
        assert param == name
        assert name.rpartition(".")[2] in message
        assert len(message) < 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_size", "3"),
        ("beam_size", 3.5),
        ("beam_size", True),
        ("beam_size", None),
        ("beam_size", 10**400),
        ("temperature", "0.5"),
        ("temperature", 10**400),
        ("vad", 1),
        ("vad", "true"),
        ("language", 7),
        ("language", ["de"]),
        ("initial_prompt", "\ud800"),
        ("audio_url", 5),
        ("stream", "true"),
        ("vad_options", '{"threshold": 0.5}'),
        ("vad_options", [0.5]),
        ("vad_options.threshold", "0.5"),
    ],
)
def test_json_of_another_type_is_refused_and_not_converted(app: Flask, name: str, value: Any) -> None:
    outer, dot, inner = name.partition(".")
    body = {"audio_url": URL, outer: {inner: value} if dot else value}
    message, _, param = refusal(app, json=body)
    assert param == name
    assert len(message) < 400


@pytest.mark.parametrize("name", ["beams", "threads", "cancel", "progress", "vad_threshold", "audio_url.x", ""])
def test_an_unknown_field_is_refused_with_a_list_of_the_known(app: Flask, name: str) -> None:
    for request_ in (
        {"json": {"audio_url": URL, name: 1}},
        multipart(**{name: "1"}),
        {"data": {"audio_url": URL, name: "1"}},
        {"data": AUDIO, "query_string": {name: "1"}},
    ):
        message, code, param = refusal(app, **request_)
        assert (code, param) == ("unknown_field", name)
        assert "beam_size" in message
        assert "file" in message
        assert "threads" not in message.partition(":")[2]


def test_an_unknown_field_of_an_option_is_refused_with_a_list_of_its_own(app: Flask) -> None:
    for request_ in (
        {"json": {"audio_url": URL, "vad_options": {"loudness": 1}}},
        multipart(**{"vad_options.loudness": "1"}),
        multipart(vad_options='{"loudness": 1}'),
    ):
        message, code, param = refusal(app, **request_)
        assert (code, param) == ("unknown_field", "vad_options.loudness")
        assert "min_silence_seconds" in message
        assert "beam_size" not in message


def test_a_file_under_another_name_is_refused(app: Flask) -> None:
    assert refusal(app, data={"audio": (io.BytesIO(AUDIO), "a.flac")})[1:] == ("unknown_field", "audio")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"json": {"audio_url": URL, "language": "de"}, "query_string": {"language": "de"}}, "language"),
        ({"data": {"audio_url": URL, "language": "de"}, "query_string": {"language": "en"}}, "language"),
        ({"data": AUDIO, "query_string": "language=de&language=de"}, "language"),
        ({"data": f'{{"audio_url": "{URL}", "vad": true, "vad": false}}'}, "vad"),
        ({"data": f'{{"audio_url": "{URL}", "vad_options": {{"threshold": 0.5, "threshold": 0.5}}}}'}, "threshold"),
        ({"json": {"audio_url": URL, "prompt": "a", "initial_prompt": "a"}}, "prompt"),
        ({"data": AUDIO, "query_string": {"prompt": "a", "initial_prompt": "a"}}, "initial_prompt"),
        (
            {"data": AUDIO, "query_string": {"vad_options": '{"threshold": 0.5}', "vad_options.threshold": "0.5"}},
            "vad_options.threshold",
        ),
        ({"data": AUDIO, "query_string": {"audio_url": URL}}, "audio_url"),
        ({"data": {"file": (io.BytesIO(AUDIO), "a.flac"), "audio_url": URL}}, "audio_url"),
        ({"data": {"file": [(io.BytesIO(AUDIO), "a.flac"), (io.BytesIO(AUDIO), "b.flac")]}}, "file"),
    ],
)
def test_what_is_said_twice_is_refused(app: Flask, request_: dict[str, Any], param: str) -> None:
    assert refusal(app, **request_)[1:] == ("conflict", param)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"data": b"", "content_type": FORM},
        {"json": {"language": "de"}},
        {"data": {"language": "de"}},
        {"data": {"language": "de"}, "content_type": "multipart/form-data"},
        {"data": b"nothing", "content_type": "multipart/form-data"},
        {"data": AUDIO, "content_type": "multipart/form-data; boundary=absent"},
    ],
)
def test_a_request_without_audio_is_told_how_to_send_it(app: Flask, request_: dict[str, Any]) -> None:
    message, code, param = refusal(app, **request_)
    assert (code, param) == ("missing_audio", "file")
    assert "audio_url" in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"null",
        b'{"vad": NaN}',
        b'{"vad": -Infinity}',
        b'{"vad": 1' + b"0" * 5000 + b"}",
        b'{"vad": ' + b"[" * 50_000,
        b'{"vad": true} {}',
        b"{'vad': true}",
        b'{"vad": "\xff"}',
        '{"vad": true}'.encode("utf-16"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(app: Flask, body: bytes) -> None:
    message, code, _ = refusal(app, data=body, content_type="application/json")
    assert code in {"invalid_json", "not_utf8"}
    assert message.startswith("the body is not")
    assert len(message) < 200


def test_a_form_that_is_not_utf8_is_refused(app: Flask) -> None:
    assert refusal(app, data=b"language=%ff", content_type=FORM)[1] == "invalid_form"
    assert refusal(app, data=b"language=\xff", content_type=FORM)[1] == "not_utf8"


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"audio_url": URL, "initial_prompt": "x" * intake.MAX_TEXT_BYTES}},
        {"data": {"audio_url": URL, "initial_prompt": "x" * intake.MAX_TEXT_BYTES}},
        {"data": bytes((1 << 20) + 1), "content_type": "audio/wav"},
        {"data": {"file": (io.BytesIO(bytes(1 << 20)), "a.wav")}},
        {"input_stream": io.BytesIO(bytes((1 << 20) + 1)), "environ_overrides": {"wsgi.input_terminated": True}},
    ],
)
def test_a_body_over_its_limit_is_refused_with_413(app: Flask, request_: dict[str, Any]) -> None:
    with pytest.raises(RequestEntityTooLarge):
        ask(app, **request_)


@pytest.mark.parametrize(
    "request_",
    [
        {"data": {"file": "a.wav"}, "content_type": "multipart/form-data"},
        {"data": {"file": "a.wav"}},
        {"json": {"file": "a.wav"}},
        {"data": AUDIO, "query_string": {"file": "a.wav"}},
    ],
)
def test_a_file_that_is_only_a_text_is_refused(app: Flask, request_: dict[str, Any]) -> None:
    message, _, param = refusal(app, **request_)
    assert param == "file"
    assert "multipart" in message


def test_a_spooled_upload_is_closed_behind_the_request(app: Flask) -> None:
    with app.test_request_context("/transcribe", method="POST", data=AUDIO), intake.asked() as asked:
        assert isinstance(asked.audio, Upload)
        assert asked.audio.file.tell() == 0
    assert asked.audio.file.closed
