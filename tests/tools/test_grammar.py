import random

import pytest

from tools.ggml_file import MICRO_MODEL, read_preamble, read_tensors
from tools.micro_model import grammar
from tools.micro_model.evaluate import SAMPLES, read_recordings
from tools.micro_model.tokens import LANGUAGES, SPECIAL, TokenTable, load_tokeniser


@pytest.fixture(scope="module")
def table() -> TokenTable:
    tokeniser = load_tokeniser()
    return TokenTable(tokeniser, tokeniser.grammar_tokens())


def sentences(count: int) -> list[grammar.Sentence]:
    rng = random.Random(3)
    return [
        grammar.english(rng) if index % 2 else grammar.other(rng.choice(["de", "es"]), rng) for index in range(count)
    ]


@pytest.mark.parametrize(
    ("text", "held_out"),
    [
        ("Wake me up at half past seven today.", True),
        ("El número es ochenta y siete.", True),
        ("Wake me up at half past eight today.", False),
        ("The black cat is new.", False),
        ("This is a test.", False),  # a fixed phrase
        ("Mache das Licht im Garten an.", False),  # a template with few fillers
        ("Two two two.", False),  # too short
    ],
)
def test_the_same_texts_are_always_held_out(text: str, held_out: bool) -> None:
    assert grammar.held_out(text) is held_out


def test_about_eight_percent_are_held_out() -> None:
    texts = {s.text for s in sentences(6000) if len(s.text.split()) >= 4}
    assert sum(map(grammar.held_out, texts)) / len(texts) == pytest.approx(0.08, abs=0.01)


def test_the_samples_were_never_trained_on() -> None:
    for recording in read_recordings(SAMPLES / "refs.json"):
        assert all(grammar.held_out(text) for _, _, text in recording.segments if len(text.split()) >= 4)


def test_the_bundled_model_knows_exactly_the_words_of_the_grammar(table: TokenTable) -> None:
    with MICRO_MODEL.open("rb") as file:
        read_preamble(file)
        embedding = next(values for name, values in read_tensors(file) if name == "decoder.token_embedding.weight")
    assert table.text == [token for token in range(50257) if embedding[token, -1] == 0]


def test_every_sentence_can_be_written(table: TokenTable) -> None:
    for sentence in sentences(500):
        assert all(0 <= token < table.n_text for token in table.encode(sentence.text))
        assert sentence.text[0].isupper() or sentence.text[0] == "¿"
        assert not set("<>[]{}") & set(sentence.text)
        assert (sentence.translation is None) == (sentence.language == "en")


def test_words_outside_the_grammar_are_refused(table: TokenTable) -> None:
    with pytest.raises(KeyError):
        table.encode("xylophone")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "zero"), (21, "twenty-one"), (40, "forty"), (100, "one hundred"), (7019, "seven thousand nineteen")],
)
def test_numbers_in_words(value: int, words: str) -> None:
    assert grammar.number(value) == words


def test_a_rule_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        grammar.expand("Buy <nothing>.", random.Random(1))


def test_compact_ids_do_not_overlap(table: TokenTable) -> None:
    assert table[SPECIAL[0]] == table.n_text
    assert table.timestamp(0) == table.n_text + len(SPECIAL)
    assert table.timestamp(30.0) == table.size - 1 == table.timestamp(99.0)
    assert table.timestamp(1.0, offset=5) == table.timestamp(1.1)
    assert len({table[token] for token in (*table.text, *LANGUAGES.values())}) == table.n_text + 3


def test_tokens_are_spread_over_the_time_they_take(table: TokenTable) -> None:
    edges = table.boundaries(table.encode("The heating is on."), 1.0, 3.0)
    assert (edges[0], edges[-1]) == pytest.approx((1.0, 3.0))
    lengths = edges[1:] - edges[:-1]
    assert (lengths > 0).all()
    assert lengths[1] > lengths[2]  # "heating" takes longer than "is"
