"""The hierarchy: what is drawn is what there is, and the builtins that callers catch."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from whisperlib import errors

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
}


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Read the tree in the docstring: {class: (parent, builtin)}."""
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+)(?:\s{2,}|\s+|$)(.*)$", line)
        if not match or not (match[1] or match[2] == "WhisperlibError"):
            continue
        depth, name = len(match[1]), match[2]
        above = [(d, n) for d, n in above if d < depth]
        builtin = re.search(r"\((\w+)\)\s*$", match[3])
        found[name] = (above[-1][1] if above else None, builtin[1] if builtin else None)
        above.append((depth, name))
    return found


def test_the_tree_drawn_is_the_tree_there_is() -> None:
    actual = {}
    for name, kind in CLASSES.items():
        own = [base.__name__ for base in kind.__bases__ if base.__name__ in CLASSES]
        foreign = [base.__name__ for base in kind.__bases__ if hasattr(builtins, base.__name__)]
        assert len(own) <= 1
        actual[name] = (own[0] if own else None, foreign[0] if own and foreign else None)
    assert drawn() == actual
    assert len(actual) == 34


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.OptionError, ValueError),
        (errors.AudioError, ValueError),
        (errors.AudioDecodeError, ValueError),
        (errors.AudioTooLongError, ValueError),
        (errors.ModelNotFoundError, FileNotFoundError),
        (errors.LibraryNotFoundError, FileNotFoundError),
        (errors.OutOfMemoryError, MemoryError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_builtins_catch_them(kind: type[errors.WhisperlibError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="why and what to do"):
        raise kind("why and what to do")


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_each_is_one_of_ours_and_says_its_message(kind: type[errors.WhisperlibError]) -> None:
    error = kind("/no/such/file: give another")
    assert isinstance(error, errors.WhisperlibError)
    assert str(error) == "/no/such/file: give another"
    assert kind.__doc__
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_a_cancel_and_a_deadline_keep_the_partial_result_apart_from_the_message() -> None:
    for kind in (errors.TranscriptionCancelled, errors.DeadlineExceeded, errors.InterruptedTranscription):
        partial = object()
        error = kind("stopped", partial)  # type: ignore[arg-type]
        assert (str(error), error.partial, kind("stopped").partial) == ("stopped", partial, None)
    assert not issubclass(errors.TranscriptionCancelled, TimeoutError)


def test_engine_errors_keep_the_code() -> None:
    for kind in (errors.EngineError, errors.OutOfMemoryError, errors.ForkedProcessError):
        assert (str(kind("failed", -7)), kind("failed", -7).code, kind("failed").code) == ("failed", -7, None)
