"""What `make demo` shows: here with one sample for all."""

from __future__ import annotations

import pytest

from whisperlib import assets, demo


def test_it_transcribes_asks_a_server_and_says_where_the_page_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [row for row in assets.sample_references() if row["file"] == demo.ASKED_OF_THE_SERVER]
    monkeypatch.setattr(assets, "sample_references", lambda: one)
    assert demo.main() == 0
    shown = capsys.readouterr().out
    assert shown.count(one[0]["text"]) == 3  # what was heard, and the server's text and segment
    assert "its page is at http://127.0.0.1:8000/" in shown
