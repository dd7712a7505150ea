import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tools.micro_model.evaluate import SAMPLES, plain, read_recordings, write_set

REFERENCES = json.loads((SAMPLES / "refs.json").read_text(encoding="utf-8"))


def test_every_sample_is_described_and_every_description_has_its_file() -> None:
    assert [entry["file"] for entry in REFERENCES] == sorted(path.name for path in SAMPLES.glob("*.flac"))


@pytest.mark.parametrize("entry", REFERENCES, ids=lambda entry: entry["file"])
def test_a_sample_agrees_with_its_description(entry: dict[str, Any]) -> None:
    info = soundfile.info(SAMPLES / entry["file"])
    assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
    assert set(entry) == {"file", "language", "voice", "text", "micro_f16_exact", "segments"}
    assert entry["language"] in {"en", "de", "es"}
    assert entry["text"] == " ".join(segment["text"] for segment in entry["segments"])
    times = [time for segment in entry["segments"] for time in (segment["start"], segment["end"])]
    assert times == sorted(times)
    assert 0 <= min(times, default=0) <= max(times, default=0) <= info.duration


def test_words_are_compared_without_punctuation() -> None:
    assert plain("It's twenty-one, isn't it?  Sí.") == "it's twenty one isn't it sí"


def test_a_written_test_set_is_read_back(tmp_path: Path) -> None:
    samples, _ = soundfile.read(SAMPLES / "seen_020.flac", dtype="float32")
    segments = [(0.448, 2.088, "Call the doctor on Thursday.")]
    write_set(tmp_path, "single", [(samples, "en", segments)])
    (recording,) = read_recordings(tmp_path / "single.json")
    assert recording.segments == segments
    assert soundfile.info(tmp_path / recording.file).frames == len(samples)
