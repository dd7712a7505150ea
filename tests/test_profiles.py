"""The profiles: what each sets, what goes before it, and the text of each on every sample."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tests.conftest import ROOT
from whisperlib import TranscribeOptions, WhisperLibraryAdapter, assets
from whisperlib.options import _DEFAULTS, PROFILES, Profile
from whisperlib.settings import Settings

REFERENCES = assets.sample_references()
# Where a profile hears something else than the reference; all else is word for word.
MISHEARD = {"ked_002.flac": "Set an alarm for eleven o'clock."}
DIFFERENT: dict[Profile, dict[str, str]] = {
    "accurate": MISHEARD,
    "balanced": MISHEARD,
    "fast": {**MISHEARD, "rms_010.flac": "The train to Paris leaves at five thirty-six from platform twelve."},
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("row", REFERENCES, ids=lambda row: str(row["file"]))
def test_text_of_a_profile_on_a_sample(adapter: WhisperLibraryAdapter, row: dict[str, Any], profile: Profile) -> None:
    result = adapter.transcribe(assets.SAMPLES / row["file"], profile=profile)
    assert result.text == DIFFERENT[profile].get(row["file"], row["text"])


def test_the_page_tells_what_each_sets() -> None:
    page = (ROOT / "docs/profiles.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert rows[0][1:] == ["`accurate`", "`balanced` (default)", "`fast`"]
    table = {row[0].strip("`"): row[1:] for row in rows[2 : 2 + len(_DEFAULTS["fast"])]}
    for number, profile in enumerate(PROFILES):
        for name, value in _DEFAULTS[profile].items():
            said = table[name][number].strip("`")
            assert said.startswith(str(value).lower() if isinstance(value, bool) else str(value)), (profile, name)


def test_the_page_tells_what_is_heard_otherwise() -> None:
    lines = (ROOT / "docs/profiles.md").read_text(encoding="utf-8").splitlines()
    for heard in DIFFERENT.values():
        for file, text in heard.items():
            (row,) = [line for line in lines if line.startswith(f"| {file.removesuffix('.flac')}: ")]
            assert f'"{text}"' in row


def test_profiles_set_the_same_options() -> None:
    assert list(_DEFAULTS) == list(PROFILES) == list(get_args(Settings.model_fields["profile"].annotation))
    assert len({tuple(defaults) for defaults in _DEFAULTS.values()}) == 1
    default = TranscribeOptions()
    assert all(getattr(default, name) == value for name, value in _DEFAULTS["balanced"].items())


@pytest.mark.parametrize("profile", PROFILES)
def test_an_option_that_is_given_goes_before(profile: Profile) -> None:
    other: dict[str, Any] = {"beam_size": 3, "chunking": "parallel", "fit_audio_ctx": True}
    for name, value in other.items():
        options = TranscribeOptions(profile=profile, **{name: value}).with_profile("fast")
        assert {key: getattr(options, key) for key in other} == {**_DEFAULTS[profile], name: value}
    explicit = TranscribeOptions(profile=profile, beam_size=5, chunking="sequential", fit_audio_ctx=False)
    assert explicit.with_profile() == explicit
    for audio_ctx in (0, 512):
        assert not TranscribeOptions(profile=profile, audio_ctx=audio_ctx).with_profile().fit_audio_ctx


def test_the_rest_stays_as_it_is() -> None:
    options = TranscribeOptions(language="de", vad_options={"threshold": 0.3}, timeout_seconds=3)
    fast = options.with_profile("fast")
    assert fast == options.replace(profile="fast", **_DEFAULTS["fast"])
    assert options.profile is None
    assert fast.with_profile("accurate") == fast


def test_the_setting_names_the_profile_of_requests_that_name_none() -> None:
    clip, settings = assets.SAMPLES / "rms_010.flac", Settings(profile="FAST")
    with WhisperLibraryAdapter("micro", threads=1, concurrency=1, settings=settings) as whisper:
        assert whisper.config.beam_size == 1
        assert whisper.transcribe(clip, language="en").text == DIFFERENT["fast"]["rms_010.flac"]
        assert whisper.transcribe(clip, language="en", profile="balanced").text.endswith("platform five.")
