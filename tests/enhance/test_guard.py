"""What counts as a correction and what does not."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

import pytest

from whisperlib.enhance import guard, prompt

MARK = "transcript-0a1b2c3d"
SAID = (
    "so um we was meeting on tuesday the the budget is to small i think and and marie will right the report "
    "until friday thank you thank you thank you thank you thank you thank you"
)


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        (SAID, "So we were meeting on Tuesday. The budget is too small, I think, and Marie will write the report by "
         "Friday. Thank you."),
        ("hello", "Hello."),
        ("Yes.", "Yes."),
        ("it costs twenty five euros and ten cents", "It costs 25 euros and 10 cents."),
        ("wie gehts dir heute ich hoffe gut", "Wie geht's dir heute? Ich hoffe gut."),
        ("今天天气很好我们去公园吧", "今天天气很好，我们去公园吧。"),
        ("สวัสดีครับวันนี้อากาศดีมาก", "สวัสดีครับ วันนี้อากาศดีมาก"),
        ("the list is milk eggs bread", "The list is: milk, eggs, bread."),
        ("... ?", "?"),
    ],
)  # fmt: skip
def test_a_correction_passes(source: str, answer: str) -> None:
    assert guard.why_refused(source, answer, "stop", MARK) is None
    assert guard.why_refused(source, answer, None, MARK) is None


LONG = " ".join(f"this is sentence number {number} and it says something about topic {number}" for number in range(40))


@pytest.mark.parametrize(
    ("source", "answer", "reason"),
    [
        (LONG, f"Here is the corrected transcript you asked for: {LONG}", "nobody said"),
        (LONG, f"{LONG} Let me know if there is anything else.", "nobody said"),
        (LONG, LONG.replace("number 9 and", "number 9. Buy cheap watches at our shop. And"), "nobody said"),
        (LONG, LONG[: int(len(LONG) * 0.8)], "leaves out"),
        (LONG, f"Transcript:\n{LONG}", "layout"),
        (LONG, f"```\n{LONG}\n```", "layout"),
        (LONG, f"{LONG}\n</{MARK}>", "prompt"),
        ("hello there", prompt.SYSTEM[:40], "longer"),
        ("...", "Hm.", "has none"),
        ("le train pour paris part à cinq heures", "The train to Paris leaves at five o'clock.", "other words"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(source: str, answer: str, reason: str) -> None:
    assert reason in str(guard.why_refused(source, answer, "stop", MARK))


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("a b " * 750, "a " * 1500),
        ("a " * 1500, "a b " * 750),
        ("a b c d e f g h " * 180, "h g f e d c b a " * 180),
    ],
)
def test_an_answer_that_repeats_itself_is_compared_within_bounds(
    source: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_steps = 0
    find = SequenceMatcher.find_longest_match

    def counted(self: Any, alo: int = 0, ahi: int | None = None, *others: Any) -> Any:
        nonlocal n_steps
        n_steps += sum(len(self.b2j.get(word, ())) for word in self.a[alo:ahi])
        return find(self, alo, ahi, *others)

    monkeypatch.setattr(SequenceMatcher, "find_longest_match", counted)
    refusal = guard.why_refused(source, answer, "stop", MARK)
    assert n_steps <= guard.MAX_STEPS
    assert refusal is not None


def test_a_loop_of_the_recogniser_may_be_corrected() -> None:
    said = f"so {'thank you ' * 300}bye"
    assert guard.why_refused(said, said, "stop", MARK) is None
    assert guard.why_refused(said, f"So, {'thank you, ' * 200}thank you. Bye.", "stop", MARK) is None


def test_what_somebody_really_said_is_no_echo() -> None:
    said = "the html has a <transcript tag and two ``` marks"
    assert guard.why_refused(said, said.capitalize(), "stop", MARK) is None
