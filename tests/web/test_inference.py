"""`POST /inference`: the fields and the answers of whisper.cpp's `whisper-server`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from whisperlib import WhisperLibraryAdapter, assets, formats
from whisperlib.job import TranscriptionStream
from whisperlib.options import MAX_PROMPT_CHARACTERS, TranscribeOptions
from whisperlib.web.routes import inference
from whisperlib.web.service import Service

NAME = "rms_010"
TEXT = "The train to Paris leaves at five thirty-six from platform five."
# What `get_req_parameters` of whisper.cpp's examples/server/server.cpp reads.
THEIR_FIELDS = """
    offset_t offset_n duration max_context max_len best_of beam_size audio_ctx word_thold entropy_thold logprob_thold
    no_speech_thold debug_mode translate diarize tinydiarize split_on_word no_timestamps token_timestamps language
    detect_language prompt carry_initial_prompt response_format temperature temperature_inc suppress_non_speech
    suppress_nst vad vad_threshold vad_min_speech_duration_ms vad_min_silence_duration_ms vad_max_speech_duration_s
    vad_speech_pad_ms vad_samples_overlap no_language_probabilities
"""

Asked = Callable[..., TranscribeOptions]


def send(client: FlaskClient, name: str = NAME, **fields: Any) -> TestResponse:
    data = (assets.SAMPLES / f"{name}.flac").read_bytes()
    return client.post("/inference", data={"file": (io.BytesIO(data), f"{name}.flac"), **fields})


@pytest.fixture
def options_of(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Send a request; return the options that reached the engine."""
    seen: list[TranscribeOptions] = []
    stream = WhisperLibraryAdapter.stream

    def note(adapter: WhisperLibraryAdapter, source: Any, options: TranscribeOptions) -> TranscriptionStream:
        seen.append(options)
        return stream(adapter, source, options)

    monkeypatch.setattr(WhisperLibraryAdapter, "stream", note)

    def ask(**fields: Any) -> TranscribeOptions:
        response = send(client, **fields)
        assert response.status_code == 200, response.text
        return seen[-1]

    return ask


def test_the_curl_command_of_whisper_server_works(client: FlaskClient) -> None:
    response = send(client, temperature="0.0", temperature_inc="0.2", no_speech_thold="0.6", response_format="json")
    assert response.get_json() == {"text": TEXT}
    assert send(client).get_json() == {"text": TEXT}


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
def test_a_text_format_comes_as_text_of_its_type(client: FlaskClient, service: Service, response_format: str) -> None:
    response = send(client, response_format=response_format)
    result = service.adapter.transcribe(assets.SAMPLES / f"{NAME}.flac")
    assert response.content_type == f"{formats.MEDIA_TYPES[response_format]}; charset=utf-8"
    assert response.text == formats.render(result, response_format)


def test_verbose_json_has_its_keys(client: FlaskClient) -> None:
    answer = send(client, response_format="verbose_json").get_json()
    assert {key: answer[key] for key in answer if key != "segments"} == {
        "task": "transcribe",
        "language": "english",
        "detected_language": "english",
        "duration": 6.343,
        "text": TEXT,
    }
    inference.VerboseText.model_validate(answer)
    [segment] = answer["segments"]
    assert {"id", "text", "start", "end", "tokens", "words", "temperature", "avg_logprob", "no_speech_prob"} <= set(
        segment
    )
    assert segment["text"] == TEXT
    assert [word["word"] for word in segment["words"]] == TEXT.split()
    assert set(segment["words"][0]) == {"word", "start", "end", "probability"}


def test_without_timestamps_there_are_no_times_and_no_words(client: FlaskClient) -> None:
    [segment] = send(client, response_format="verbose_json", no_timestamps="true").get_json()["segments"]
    assert not {"start", "end"} & set(segment)
    assert segment["words"] == []
    fields: dict[str, Any] = {
        "no_timestamps": "true",
        "token_timestamps": "true",
        "response_format": "verbose_json",
    }
    [segment] = send(client, **fields).get_json()["segments"]
    assert [set(word) for word in segment["words"]] == [{"word", "probability"}] * len(TEXT.split())
    fields = {"response_format": "verbose_json", "token_timestamps": "false"}
    [segment] = send(client, **fields).get_json()["segments"]
    assert segment["words"] == []
    assert segment["end"] > segment["start"]


def test_a_language_that_was_given_is_not_called_detected(client: FlaskClient) -> None:
    answer = send(client, "german_001", response_format="verbose_json", language="de").get_json()
    assert answer["language"] == "german"
    assert "detected_language" not in answer


def test_a_translation_tells_the_language_that_was_spoken(client: FlaskClient, service: Service) -> None:
    answer = send(client, "spanish_003", response_format="verbose_json", translate="true").get_json()
    assert (answer["task"], answer["language"], answer["detected_language"]) == ("translate", "spanish", "spanish")
    assert answer["text"] == service.adapter.transcribe(assets.SAMPLES / "spanish_003.flac", task="translate").text


def test_silence_has_no_segments_and_no_language(client: FlaskClient) -> None:
    answer = send(client, "silence_white5_0001", response_format="verbose_json").get_json()
    assert (answer["text"], answer["language"], answer["segments"]) == ("", "", [])


def test_without_fields_our_defaults_hold(options_of: Asked) -> None:
    given = options_of().model_dump(exclude={"cancel", "progress", "timeout_seconds", "max_wait_seconds"})
    assert given == {name: value for name, value in TranscribeOptions().model_dump().items() if name in given}


@pytest.mark.parametrize(
    ("name", "value", "option", "expected"),
    [
        ("language", "auto", "language", None),
        ("language", "english", "language", "en"),
        ("translate", "false", "task", "transcribe"),
        ("prompt", "Paris.", "initial_prompt", "Paris."),
        ("prompt", "x" * 5000 + ".", "initial_prompt", "x" * (MAX_PROMPT_CHARACTERS - 1) + "."),
        ("carry_initial_prompt", "1", "carry_initial_prompt", True),
        ("temperature", "0.4", "temperature", 0.4),
        ("temperature_inc", "0", "temperature_increment", 0.0),
        ("beam_size", "-1", "beam_size", 5),
        ("beam_size", "0", "beam_size", 1),
        ("beam_size", "3", "beam_size", 3),
        ("best_of", "2", "best_of", 2),
        ("entropy_thold", "2.8", "entropy_threshold", 2.8),
        ("logprob_thold", "-0.5", "logprob_threshold", -0.5),
        ("no_speech_thold", "0.3", "no_speech_threshold", 0.3),
        ("suppress_non_speech", "true", "suppress_non_speech", True),
        ("suppress_nst", "true", "suppress_non_speech", True),
        ("suppress_nst", "false", "suppress_non_speech", False),
        ("offset_t", "1500", "offset_seconds", 1.5),
        ("duration", "2000", "duration_seconds", 2.0),
        ("duration", "0", "duration_seconds", None),
        ("offset_n", "0", "offset_seconds", 0.0),
        ("max_len", "30", "max_segment_length", 30),
        ("max_context", "0", "condition_on_previous_text", False),
        ("max_context", "-1", "condition_on_previous_text", True),
        ("max_context", "16384", "condition_on_previous_text", True),
        ("audio_ctx", "768", "audio_ctx", 768),
        ("audio_ctx", "768.0", "audio_ctx", 768),
        ("token_timestamps", "y", "word_timestamps", True),
        ("vad", "no", "vad", False),
        ("profile", "fast", "profile", "fast"),
    ],
)
def test_a_field_becomes_an_option(options_of: Asked, name: str, value: str, option: str, expected: object) -> None:
    assert getattr(options_of(**{name: value}), option) == expected


def test_vad_fields_say_how_speech_is_found(options_of: Asked) -> None:
    fields = {"threshold": "0.4", "min_speech_duration_ms": "250", "min_silence_duration_ms": "900"}
    vad = options_of(**{f"vad_{name}": value for name, value in fields.items()}, vad_speech_pad_ms="30").vad_options
    assert vad.model_dump() == {
        "threshold": 0.4,
        "min_speech_seconds": 0.25,
        "min_silence_seconds": 0.9,
        "pad_seconds": 0.03,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, "true") for name in inference.REFUSED],
        ("offset_n", "3"),
        ("max_context", "64"),
        ("max_context", "some"),
        ("response_format", "tsv"),
        ("language", "xx"),
        ("temperature", "1.5"),
        ("temperature_inc", "0.01"),
        ("beam_size", "9"),
        ("beam_size", "2.5"),
        ("audio_ctx", "700"),
        ("offset_t", "-5"),
        ("duration", "nan"),
        ("vad", "perhaps"),
        ("profile", "quick"),
        ("vad_threshold", "2"),
        ("vad_speech_pad_ms", "99999"),
    ],
)
def test_what_would_give_another_result_is_refused_by_its_name(client: FlaskClient, name: str, value: str) -> None:
    response = send(client, **{name: value})
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_option", name)
    assert error["message"].startswith(f"{name} = ")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("name", [*inference.REFUSED, "offset_n", "split_on_word", "no_context", "unknown"])
def test_what_is_turned_off_or_means_nothing_changes_nothing(client: FlaskClient, name: str) -> None:
    assert send(client, **{name: "0"}).get_json() == {"text": TEXT}


def test_every_field_of_whisper_server_is_thought_of() -> None:
    documented = set(inference.InferenceForm.model_fields)
    assert set(THEIR_FIELDS.split()) <= documented | {"suppress_nst"} | set(inference.REFUSED) | set(
        inference.WITHOUT_EFFECT
    )
    assert {*inference.FIELDS, *inference.VAD_FIELDS} <= documented


def test_a_request_without_a_file_is_told_so(client: FlaskClient) -> None:
    response = client.post("/inference", data={"temperature": "0"})
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, "file")
