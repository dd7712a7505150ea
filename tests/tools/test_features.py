import numpy as np
import pytest

from tools.ggml_file import MICRO_MODEL, read_preamble
from tools.micro_model import features
from tools.micro_model.clips import Samples

RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def filters() -> Samples:
    with MICRO_MODEL.open("rb") as file:
        return read_preamble(file).mel_filters


def by_definition(samples: Samples, filters: Samples, frame: int) -> Samples:
    """One frame of the log-mel spectrogram, with the Fourier transform written out."""
    mirrored = np.concatenate([samples[200:0:-1], samples, samples[-2:-202:-1]])
    n = np.arange(400)
    windowed = mirrored[frame * 160 : frame * 160 + 400] * np.sin(np.pi * n / 400) ** 2
    spectrum = np.exp(-2j * np.pi * np.arange(201)[:, None] * n / 400) @ windowed
    return np.asarray(np.log10(np.maximum(filters @ np.abs(spectrum) ** 2, 1e-10)), np.float32)


@pytest.mark.parametrize("frame", [0, 1, 50, 99])
def test_log_mel_follows_its_definition(filters: Samples, frame: int) -> None:
    samples = RNG.uniform(-0.5, 0.5, (2, 16000)).astype(np.float32)
    mels = features.log_mel(samples, filters)
    assert (mels.shape, str(mels.dtype)) == ((2, 80, 100), "float32")
    assert mels[1, :, frame] == pytest.approx(by_definition(samples[1], filters, frame), abs=1e-4)


def test_silence_is_the_floor(filters: Samples) -> None:
    mels = features.normalised(features.log_mel(np.zeros((1, 3200), np.float32), filters))
    assert mels == pytest.approx(np.full((1, 80, 20), -1.5))


def test_a_tone_is_loudest_in_its_band(filters: Samples) -> None:
    tone = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000).astype(np.float32)
    loudest = features.log_mel(tone[None], filters)[0, :, 50].argmax()
    assert features.centres(filters)[loudest] == pytest.approx(2000, rel=0.03)


def test_normalising_keeps_eight_powers_of_ten(filters: Samples) -> None:
    mels = features.normalised(np.linspace(-30, 0, 800, dtype=np.float32).reshape(1, 80, 10))
    assert (mels.min(), mels.max()) == pytest.approx((-1.0, 1.0))


def test_warped_filters_move_the_bands(filters: Samples) -> None:
    assert features.warped(filters, 1.0) == pytest.approx(filters)
    higher = features.centres(features.warped(filters, 0.9)[10:70])
    assert (higher > features.centres(filters[10:70])).all()
