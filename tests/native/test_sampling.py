"""How libwhisper chooses tokens, against the standard library's exponential and distribution."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from native.source import BUILD
from whisperlib import variants

PROGRAM = Path(__file__).with_name("sampling.cpp")
FLOAT_EPSILON = 1.2e-7


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """What the program prints, line by line. It is the library's source with a `main`, as its functions are static."""
    source, libraries = BUILD / "source", variants.choose("cpu").directory
    program = tmp_path_factory.mktemp("sampling") / "sampling"
    include = [f"-I{source / part}" for part in (".", "src", "include", "ggml/include")]
    link = [f"-L{libraries}", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{libraries}", "-pthread"]
    flags = ["-std=c++17", "-Wno-psabi", '-DWHISPER_VERSION="test"']
    subprocess.run([os.environ.get("CXX", "g++"), *flags, *include, PROGRAM, "-o", program, *link], check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    return [[float(word) for word in line.split()] for line in lines]


def test_probabilities_are_those_of_a_softmax(printed: list[list[float]]) -> None:
    lost, worst_log_probability, worst_probability = printed[0]

    assert lost == 0, "suppressed tokens, and those below the exponent of a float, have no probability"
    assert worst_log_probability < 90 * FLOAT_EPSILON
    assert worst_probability < 2 * FLOAT_EPSILON
    assert printed[1] == [1], "the maximum is found wherever it is"


def test_where_everything_is_suppressed_nothing_is_probable(printed: list[list[float]]) -> None:
    assert printed[2] == [51865, 51865]


def test_draws_are_those_of_the_standard_distribution(printed: list[list[float]]) -> None:
    assert printed[3] == [0], "different ones of 10,000"
    assert printed[4] == [-2, -1], "the only one that has a probability; the last, where none has"
