"""The routes of OpenAI's audio API: their fields, and the shape of their answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openai.types.audio.transcription_create_params import TranscriptionCreateParamsStreaming
from openai.types.audio.translation_create_params import TranslationCreateParams
from werkzeug.test import TestResponse

from whisperlib import WhisperLibraryAdapter, assets, formats
from whisperlib.errors import EngineError
from whisperlib.job import TranscriptionStream
from whisperlib.options import MAX_PROMPT_CHARACTERS, TranscribeOptions
from whisperlib.results import Segment, Transcription, join
from whisperlib.web.routes import openai
from whisperlib.web.running import Outcome
from whisperlib.web.service import Service

NAME = "rms_010"
TEXT = "The train to Paris leaves at five thirty-six from platform five."
SPEAKERS = {"known_speaker_names", "known_speaker_references"}  # for diarized_json, which is refused

Asked = Callable[..., TranscribeOptions]


def send(
    client: FlaskClient, name: str = NAME, *, path: str = "transcriptions", data: bytes | None = None, **fields: Any
) -> TestResponse:
    data = (assets.SAMPLES / f"{name}.flac").read_bytes() if data is None else data
    return client.post(f"/v1/audio/{path}", data={"file": (io.BytesIO(data), f"{name}.flac"), **fields})


def error_of(response: TestResponse) -> tuple[int, str, str | None]:
    """Return status, code and field of a refusal; check that it is in OpenAI's shape, and final."""
    error = response.get_json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    return response.status_code, error["code"], error["param"]


def events_of(response: TestResponse) -> list[dict[str, Any]]:
    """Return the events of a whole stream, which `[DONE]` ends; check that the rest is comments."""
    assert response.content_type == "text/event-stream; charset=utf-8"
    blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


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
        response = send(client, "esp_010", **fields)
        assert response.status_code == 200, response.text
        return seen[-1]

    return ask


def test_json_is_the_default_and_tells_the_text_and_the_seconds_used(client: FlaskClient) -> None:
    assert send(client).get_json() == {"text": TEXT, "usage": {"type": "duration", "seconds": 7}}


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
def test_a_text_format_comes_as_text_of_its_type(client: FlaskClient, service: Service, response_format: str) -> None:
    response = send(client, response_format=response_format)
    result = service.adapter.transcribe(assets.SAMPLES / f"{NAME}.flac")
    assert response.content_type == f"{formats.MEDIA_TYPES[response_format]}; charset=utf-8"
    assert response.text == formats.render(result, response_format)


def test_verbose_json_has_segments_and_no_words_unless_told_otherwise(client: FlaskClient) -> None:
    answer = send(client, "german_001", response_format="verbose_json").get_json()
    assert {key: answer[key] for key in ("task", "language", "duration", "text", "words")} == {
        "task": "transcribe",
        "language": "german",
        "duration": pytest.approx(2.0, abs=0.5),
        "text": "Rufe fünf drei eins acht an.",
        "words": None,
    }
    assert [segment["text"] for segment in answer["segments"]] == [answer["text"]]
    assert openai.TranscriptionVerbose.model_validate(answer).model_dump(exclude_unset=True).keys() == answer.keys()


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
@pytest.mark.parametrize(
    ("asked", "filled"),
    [(["word"], {"words"}), (["segment"], {"segments"}), (["segment", "word"], {"segments", "words"})],
)
def test_granularities_choose_what_is_filled(
    client: FlaskClient, name: str, asked: list[str], filled: set[str]
) -> None:
    fields: dict[str, Any] = {name: asked, "response_format": "verbose_json"}
    answer = send(client, **fields).get_json()
    assert {key for key in ("segments", "words") if answer[key] is not None} == filled
    if "word" in asked:
        assert [word["word"] for word in answer["words"]] == TEXT.split()
        times = [time for word in answer["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": "json", "timestamp_granularities[]": "word"}, (400, "timestamp_granularities")),
        ({"timestamp_granularities[]": "word"}, (400, "timestamp_granularities")),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "line"}, (400, "timestamp_granularities")),
        ({"response_format": "diarized_json"}, (400, "response_format")),
        ({"response_format": "JSON"}, (400, "response_format")),
        ({"response_format": ["json", "text"]}, (400, "response_format")),
        ({"stream": "true", "response_format": "srt"}, (400, "response_format")),
        ({"stream": "maybe"}, (400, "stream")),
        ({"language": "xx"}, (400, "language")),
        ({"profile": "quick"}, (400, "profile")),
        ({"temperature": "2"}, (400, "temperature")),
        ({"temperature": "nan"}, (400, "temperature")),
        ({"temperature": "warm"}, (400, "temperature")),
        ({"prompt": "a\0b"}, (400, "prompt")),
        ({"include[]": "logprobs", "response_format": "verbose_json"}, (400, "include")),
        ({"chunking_strategy": "none"}, (400, "chunking_strategy")),
        ({"chunking_strategy": '{"type":'}, (400, "chunking_strategy")),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "x"}, (400, "chunking_strategy")),
        (
            {"chunking_strategy": '{"type": "server_vad", "threshold": 2}'},
            (400, "chunking_strategy[threshold]"),
        ),
        (
            {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": ["0.4", "0.5"]},
            (400, "chunking_strategy[threshold]"),
        ),
        ({"chunking_strategy": "auto", "chunking_strategy[type]": "server_vad"}, (400, "chunking_strategy")),
        ({"model": "gpt-4o-transcribe"}, (404, "model")),
        ({"data": b"not audio"}, (400, None)),
        ({"data": b""}, (400, None)),
    ],
)
def test_a_refusal_names_the_field(
    client: FlaskClient, service: Service, fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    status, _, param = error_of(send(client, **fields))
    assert (status, param) == expected
    assert service.in_flight == 0


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
def test_a_request_without_a_file_is_told_so(client: FlaskClient, path: str) -> None:
    assert error_of(client.post(f"/v1/audio/{path}", data={"model": "micro"})) == (400, "missing_audio", "file")
    assert error_of(client.post(f"/v1/audio/{path}", json={"model": "micro"})) == (400, "missing_audio", "file")
    two = [(io.BytesIO(b"1"), "1.wav"), (io.BytesIO(b"2"), "2.wav")]
    assert error_of(client.post(f"/v1/audio/{path}", data={"file": two})) == (400, "conflict", "file")


def test_another_model_is_refused_with_what_is_served(client: FlaskClient) -> None:
    response = send(client, model="large-v3")
    assert error_of(response) == (404, "model_not_found", "model")
    assert "'micro'" in response.text
    assert "'whisper-1'" in response.text


@pytest.mark.parametrize("fields", [{}, {"model": ""}, {"model": "whisper-1"}, {"model": "micro"}])
def test_the_model_may_be_left_out_or_called_either_name(client: FlaskClient, fields: dict[str, Any]) -> None:
    assert send(client, **fields).get_json()["text"] == TEXT


def test_fields_that_mean_nothing_here_change_nothing(client: FlaskClient) -> None:
    assert send(client, user="me", hotwords="train").get_json()["text"] == TEXT


def test_without_fields_the_defaults_hold(options_of: Asked) -> None:
    given = options_of().model_dump(exclude={"cancel", "progress", "timeout_seconds", "max_wait_seconds"})
    assert given == {name: value for name, value in TranscribeOptions().model_dump().items() if name in given}


def test_the_language_is_a_code_a_tag_or_a_name_or_the_only_one_of_several(options_of: Asked) -> None:
    assert options_of(language="de").language == "de"
    assert options_of(language="de-AT").language == "de"
    assert options_of(language="German").language == "de"
    assert options_of(language="").language is None
    assert options_of(**{"languages[]": ["de"]}).language == "de"
    assert options_of(**{"languages[]": ["de", "en"]}).language is None
    assert options_of(language="es", **{"languages[]": ["de"]}).language == "es"


def test_of_a_long_prompt_the_end_counts(options_of: Asked) -> None:
    assert options_of(prompt="Paris.").initial_prompt == "Paris."
    prompt = "".join(f"{number} " for number in range(MAX_PROMPT_CHARACTERS))
    assert options_of(prompt=prompt).initial_prompt == prompt[-MAX_PROMPT_CHARACTERS:]


def test_keywords_go_before_the_prompt_and_with_it_to_all_of_the_audio(options_of: Asked) -> None:
    assert not options_of(prompt="Paris.").carry_initial_prompt
    given = options_of(prompt="On trains.", **{"keywords[]": ["Paris", " ", "platform"]})
    assert given.initial_prompt == "Paris, platform. On trains."
    assert given.carry_initial_prompt
    long = options_of(prompt="x" * 5000 + "end", keywords=["Paris", "k" * 5000]).initial_prompt
    assert long is not None
    assert len(long) <= MAX_PROMPT_CHARACTERS
    assert long.startswith("Paris, k")
    assert long.endswith("xend")


def test_temperature_zero_leaves_the_fallback_to_the_model(options_of: Asked) -> None:
    given = options_of(temperature="0")
    assert (given.temperature, given.temperature_increment) == (0.0, TranscribeOptions().temperature_increment)
    assert options_of(temperature="1").temperature == 1.0


def test_a_profile_may_be_named(options_of: Asked) -> None:
    assert options_of().profile is None
    given = options_of(profile="fast")
    assert given.profile == "fast"
    assert given.with_profile().beam_size == 1


def test_a_chunking_strategy_says_how_speech_is_found(options_of: Asked) -> None:
    assert options_of(chunking_strategy="auto").vad_options == TranscribeOptions().vad_options
    strategy = {"type": "server_vad", "threshold": 0.4, "prefix_padding_ms": 300, "silence_duration_ms": 700}
    in_fields = {f"chunking_strategy[{name}]": str(value) for name, value in strategy.items()}
    for fields in (in_fields, {"chunking_strategy": json.dumps(strategy)}):
        vad = options_of(**fields).vad_options
        assert (vad.threshold, vad.pad_seconds, vad.min_silence_seconds) == (0.4, 0.3, 0.7)
        assert vad.min_speech_seconds == TranscribeOptions().vad_options.min_speech_seconds
    without = json.dumps({"type": "server_vad", "threshold": None})
    assert options_of(chunking_strategy=without).vad_options == TranscribeOptions().vad_options


def test_a_complaint_about_milliseconds_tells_that_its_limit_is_in_seconds(client: FlaskClient) -> None:
    name = "chunking_strategy[silence_duration_ms]"
    fields: dict[str, Any] = {"chunking_strategy[type]": "server_vad", name: "40000"}
    message = send(client, **fields).get_json()["error"]["message"]
    assert message == f"{name} = 40.0: input should be less than or equal to 30 (in seconds)"


def test_a_translation_is_not_streamed_and_has_no_words(client: FlaskClient) -> None:
    fields: dict[str, Any] = {"response_format": "verbose_json", "timestamp_granularities[]": "word", "stream": "true"}
    answer = send(client, path="translations", **fields).get_json()
    assert answer["segments"]
    assert answer["words"] is None


def test_a_translation_is_english(client: FlaskClient, service: Service) -> None:
    answer = send(client, "spanish_003", path="translations", response_format="verbose_json").get_json()
    assert (answer["task"], answer["language"], answer["words"]) == ("translate", "english", None)
    assert answer["text"] == service.adapter.transcribe(assets.SAMPLES / "spanish_003.flac", task="translate").text
    assert answer["text"] != service.adapter.transcribe(assets.SAMPLES / "spanish_003.flac").text
    assert send(client, "spanish_003", path="translations").get_json()["text"] == answer["text"]


def test_a_translation_is_refused_as_a_transcription_is(client: FlaskClient) -> None:
    assert error_of(send(client, path="translations", response_format="tsv"))[2] == "response_format"
    assert error_of(send(client, path="translations", model="x")) == (404, "model_not_found", "model")


def test_silence_is_an_empty_text(client: FlaskClient) -> None:
    answer = send(client, "silence_white5_0001", response_format="verbose_json").get_json()
    assert (answer["text"], answer["language"], answer["segments"]) == ("", "", [])
    assert send(client, "silence_white5_0001", response_format="text").text == "\n"


def test_the_deltas_of_a_stream_are_its_whole_text(client: FlaskClient) -> None:
    expected = send(client, "long_slt75").get_json()
    events = events_of(send(client, "long_slt75", stream="true"))
    deltas = [event["delta"] for event in events if event["type"] == "transcript.text.delta"]
    assert len(deltas) > 5
    assert "".join(deltas) == expected["text"]
    assert events[-1] == {"type": "transcript.text.done", **expected}
    segments = [event for event in events if event["type"] == "transcript.text.segment"]
    assert [segment["id"] for segment in segments] == [f"seg_{number}" for number in range(len(segments))]
    assert [segment["text"] for segment in segments] == [delta.strip() for delta in deltas]


def test_a_stream_tells_its_progress_in_comments(client: FlaskClient) -> None:
    assert ": progress 1.000\n\n" in send(client, stream="true", response_format="text").text


def test_a_stream_of_silence_is_done_at_once(client: FlaskClient) -> None:
    [done] = events_of(send(client, "silence_white5_0001", stream="true"))
    assert (done["type"], done["text"]) == ("transcript.text.done", "")


def test_what_a_stream_writes_is_what_joins_to_the_text() -> None:
    """The samples have no language without spaces, and no empty segment."""
    segments = [
        Segment(0, 0, 1, ""),
        Segment(1, 1, 2, "一"),
        Segment(2, 2, 3, ""),
        Segment(3, 3, 4, "二", separator=""),
    ]
    done = Outcome(Transcription(join(segments), tuple(segments), "zh", 4.0), 0, 0)
    app = Flask(__name__)
    with app.test_request_context():
        response = openai._stream(iter([*segments, done]))
        text = response.get_data(as_text=True)
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    deltas = "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta")
    assert deltas == events[-1]["text"] == "一二"


def test_a_failure_within_a_stream_is_its_last_event(
    client: FlaskClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: TranscriptionStream) -> Any:
        """A double: the engine does not fail on demand."""
        raise EngineError("whisper_full returned -6", -6)

    monkeypatch.setattr(TranscriptionStream, "result", property(fail))
    response = send(client, stream="true")
    assert response.status_code == 200
    last = response.text.removesuffix("\n\n").split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert service.in_flight == 0


def test_what_is_wrong_with_a_stream_is_told_as_a_status(client: FlaskClient) -> None:
    assert error_of(send(client, stream="true", data=b"not audio")) == (400, "invalid_audio", None)


def test_the_models_are_the_loaded_one_and_its_alias(client: FlaskClient) -> None:
    listed = client.get("/v1/models").get_json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["micro", "whisper-1"]
    for model in listed["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert isinstance(model["created"], int)
        assert client.get(f"/v1/models/{model['id']}").get_json() == model
    for other in ("large-v3", "some/where"):
        assert error_of(client.get(f"/v1/models/{other}")) == (404, "model_not_found", "model")


def test_every_field_of_openais_client_is_documented() -> None:
    transcription = get_type_hints(TranscriptionCreateParamsStreaming).keys() - SPEAKERS
    assert transcription | {"profile", "enhance"} == openai.TranscriptionForm.model_fields.keys()
    translation = get_type_hints(TranslationCreateParams).keys()
    assert translation | {"profile"} == openai.TranslationForm.model_fields.keys()
