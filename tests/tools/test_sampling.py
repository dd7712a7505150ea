import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tools.ggml_file import MICRO_MODEL, read_preamble
from tools.micro_model import grammar
from tools.micro_model import tokens as whisper
from tools.micro_model.augment import Augmenter
from tools.micro_model.clips import Clip, load_clips, save_clips, trimmed
from tools.micro_model.human_digits import load_digits, spoken_string
from tools.micro_model.sampling import IGNORED, Batch, ClipBank, Mixture, Sampler
from tools.micro_model.synthesis import KINDS, MissingToolError, check_tools, synthesise
from tools.micro_model.tokens import TokenTable, load_tokeniser

RATE = 16000


def noise(seconds: float) -> npt.NDArray[np.int16]:
    return (np.random.default_rng(1).standard_normal(int(seconds * RATE)) * 3000).astype(np.int16)


def clips(count: int) -> list[Clip]:
    rng = random.Random(2)
    made = []
    for index in range(count):
        language = ("en", "en", "de", "es")[index % 4]
        sentence = grammar.english(rng) if language == "en" else grammar.other(language, rng)
        voice = f"espeak:{language}+voice{index % 3}"
        made.append(Clip(noise(0.5 + index % 5), sentence.text, language, voice, sentence.translation))
    return made


@pytest.fixture(scope="module")
def table() -> TokenTable:
    tokeniser = load_tokeniser()
    return TokenTable(tokeniser, tokeniser.grammar_tokens())


@pytest.fixture(scope="module")
def batches(table: TokenTable) -> list[Batch]:
    with MICRO_MODEL.open("rb") as file:
        augmenter = Augmenter(read_preamble(file).mel_filters, np.random.default_rng(1))
    digits = {"somebody": [[Clip(noise(0.4), grammar.ONES[d], "en", "human:somebody")] for d in range(10)]}
    bank = ClipBank(clips(200), digits, table, digit_share=0.2)
    sampler = Sampler(bank, table, augmenter, random.Random(5), seconds=45, mixture=Mixture(full=0.7))
    return [sampler.batch(strength=0.6) for _ in range(8)]


def test_arrays_of_a_batch_fit_together(batches: list[Batch]) -> None:
    for batch in batches:
        windows, mels, frames = batch.mels.shape
        assert (mels, str(batch.mels.dtype)) == (80, "float32")
        assert np.isfinite(batch.mels).all()
        assert batch.frame_words.shape == (windows, frames // 2)
        assert batch.word_counts.sum() == len(batch.words)
        assert (batch.word_frames <= frames // 2).all()
        assert (batch.offsets + frames // 2 <= 1500).all()
        assert (batch.spans[:, 0] < batch.inputs.size).all()


def test_shares_of_every_target_add_up_to_one(batches: list[Batch]) -> None:
    for batch in batches:
        sums = np.bincount(batch.target_rows, batch.target_weights, batch.inputs.size)
        assert sums[sums > 0] == pytest.approx(1.0, abs=1e-5)


def test_every_window_names_its_language_and_ends(batches: list[Batch], table: TokenTable) -> None:
    languages = [table[token] for token in whisper.LANGUAGES.values()]
    for batch in batches:
        ids = batch.target_ids
        assert np.isin(ids, languages).sum() == len(batch.inputs)
        assert (ids[batch.target_weights == 1] == table[whisper.END]).sum() == len(batch.inputs)


def test_prompts_leave_room_for_the_answer(batches: list[Batch], table: TokenTable) -> None:
    assert max(batch.inputs.shape[1] for batch in batches) <= 448
    prompted = [batch for batch in batches if (batch.inputs == table[whisper.PREVIOUS]).any()]
    assert prompted
    assert any((batch.frame_words == IGNORED).any() for batch in batches)


def test_clips_are_stored_and_loaded(tmp_path: Path) -> None:
    made = clips(5)
    save_clips(tmp_path / "some.npz", made)
    for clip, loaded in zip(made, load_clips(tmp_path.glob("*.npz")), strict=True):
        assert np.array_equal(clip.samples, loaded.samples)
        assert (clip.text, clip.voice, clip.translation) == (loaded.text, loaded.voice, loaded.translation)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


def test_silence_is_trimmed_off() -> None:
    speech = np.zeros(RATE, np.float32)
    speech[4000:12000] = 0.1
    cut = trimmed(speech, threshold=0.02)
    assert cut is not None
    assert (len(cut), cut.max()) == (8000, int(0.7 * 32767))
    assert trimmed(np.zeros(RATE, np.float32), threshold=0.02) is None
    assert trimmed(np.zeros(0, np.float32), threshold=0.02) is None


def test_takes_for_measuring_are_not_trained_on(tmp_path: Path) -> None:
    for digit in range(10):
        for take in range(7):
            name = f"{digit}_somebody_{take}.wav"
            soundfile.write(tmp_path / name, noise(0.3)[::2], 8000, subtype="PCM_16")
    training, test = load_digits(tmp_path), load_digits(tmp_path, test=True)
    assert [len(takes) for takes in training["somebody"]] == [2] * 10
    assert [len(takes) for takes in test["somebody"]] == [5] * 10
    samples, text = spoken_string(test["somebody"], [3, 0, 3], random.Random(1))
    assert text == "Three zero three."
    assert 0.8 * RATE < len(samples) < 3 * RATE


def test_a_folder_without_digits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recordings"):
        load_digits(tmp_path)


def test_missing_synthesisers_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingToolError, match=r"espeak-ng, flite, festival not found: apt-get install espeak-ng"):
        check_tools()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_clip_can_be_spoken(kind: str) -> None:
    try:
        check_tools()
    except MissingToolError as error:
        pytest.skip(str(error))
    request = KINDS[kind](random.Random(1))
    (clip,) = synthesise([request])
    assert 0.15 * RATE <= len(clip.samples) <= 9 * RATE
    assert grammar.held_out(clip.text) == kind.startswith("test")
