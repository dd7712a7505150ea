"""Language codes, names and tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisperlib import binding
from whisperlib.errors import OptionError
from whisperlib.languages import LANGUAGES, language_code


def test_the_order_is_the_model_s(library_dir: Path) -> None:
    """Language tokens are numbered; the library's own table has the last word."""
    c = binding.load(library_dir).c
    native = [c.whisper_lang_str(i).decode() for i in range(c.whisper_lang_max_id() + 1)]
    assert native == list(LANGUAGES)
    assert len(native) == 100


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_code_and_name(code: str) -> None:
    name = LANGUAGES[code]
    assert {language_code(form) for form in (code, code.upper(), f" {code} ", f"{code}-XX", f"{code}_XX")} == {code}
    assert {language_code(form) for form in (name, name.title(), name.upper(), f"\t{name}\n")} == {code}


@pytest.mark.parametrize(
    ("other", "code"),
    [("mandarin", "zh"), ("Castilian", "es"), ("valencian", "ca"), ("moldovan", "ro"), ("burmese", "my")],
)
def test_other_names(other: str, code: str) -> None:
    assert language_code(other) == code


def test_every_other_name_leads_to_a_language() -> None:
    from whisperlib.languages import _CODES_BY_NAME  # noqa: PLC0415

    assert set(_CODES_BY_NAME.values()) == set(LANGUAGES)
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)


@pytest.mark.parametrize("auto", [None, "", " ", "auto", "Auto", " AUTO "])
def test_detection(auto: str | None) -> None:
    assert language_code(auto) is None


@pytest.mark.parametrize(
    "unknown", ["xx", "xx-DE", "-", "_", "-en", "englisch", "e n", "auto-en", "none", "\0", "\uff45\uff4e"]
)
def test_unknown(unknown: str) -> None:
    with pytest.raises(OptionError) as caught:
        language_code(unknown)
    assert str(caught.value).startswith(f"unknown language {unknown!r}: give a code such as 'en'")


def test_a_long_unknown_language_is_not_repeated_in_full() -> None:
    with pytest.raises(OptionError) as caught:
        language_code("a" * 100_000)
    assert len(str(caught.value)) < 200
