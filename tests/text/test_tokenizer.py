"""The tokenizer: T5's special tokens, byte fallback, refusal to cut, determinism."""

import io

import numpy as np
import pytest
import sentencepiece

from lumiere_jax.text.tokenizer import Tokenizer, train_tokenizer

SENTENCES = [
    f"a {color} {shape} moves {direction}"
    for color in ("red", "green", "blue")
    for shape in ("circle", "square")
    for direction in ("left", "right", "up")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, vocab_size=400)


def decode(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes).decode(ids.tolist())


def test_encode_pads_with_0_and_ends_with_1(tokenizer):
    ids, mask = tokenizer.encode(["a red circle moves left", "", "a blue square"], length=24)
    assert ids.dtype == mask.dtype == np.int32
    assert ids.shape == mask.shape == (3, 24)
    np.testing.assert_array_equal(ids[1], [1] + [0] * 23)
    for row, row_mask, prompt in zip(ids, mask, ["a red circle moves left", "", "a blue square"], strict=True):
        length = row_mask.sum()
        np.testing.assert_array_equal(row_mask, np.arange(24) < length)
        assert row[length - 1] == 1
        assert not row[length:].any()
        assert (row[: length - 1] > 2).all()
        assert decode(tokenizer, row[: length - 1]) == prompt


def test_words_of_the_training_text_are_tokens(tokenizer):
    """The vocabulary has the words of the sentences, not only bytes and letters."""
    _, mask = tokenizer.encode(["a red circle moves left"], length=32)
    assert mask.sum() == 5 + 1


@pytest.mark.parametrize("prompt", ["a ZEBRA 42%", "Überraschung", "雪が降る", "😀 \U0001f3ff", "<pad> </s>"])
def test_any_prompt_is_encoded_by_its_bytes(tokenizer, prompt):
    ids, mask = tokenizer.encode([prompt], length=64)
    tokens = ids[0, : mask.sum() - 1]
    assert not np.isin(tokens, [0, 1, 2]).any()
    assert decode(tokenizer, tokens) == prompt


def test_a_prompt_that_just_fits_and_one_that_does_not(tokenizer):
    prompt = "a green square moves up " * 4
    _, mask = tokenizer.encode([prompt], length=200)
    needed = int(mask.sum())
    ids, _ = tokenizer.encode(["a red circle", prompt], length=needed)
    assert ids[1, -1] == 1
    with pytest.raises(ValueError, match=rf"'a green square moves up .*has {needed} tokens.*{needed - 1}; shorten"):
        tokenizer.encode(["a red circle", prompt], length=needed - 1)


def test_one_string_is_refused(tokenizer):
    with pytest.raises(TypeError, match="list of prompts"):
        tokenizer.encode("abc", length=8)


def test_training_is_deterministic_and_order_is_kept(tokenizer):
    assert train_tokenizer(iter(SENTENCES), vocab_size=400).model_bytes == tokenizer.model_bytes


def test_few_sentences_are_enough():
    small = train_tokenizer(["one ball"], vocab_size=1000)
    assert 259 < small.vocab_size < 1000
    assert small.encode(["one ball"], length=16)[1].sum() > 1


def test_long_sentences_are_not_skipped():
    """SentencePiece by itself drops sentences beyond 4192 bytes."""
    small = train_tokenizer(["ab", "zq" * 3000], vocab_size=300)
    assert small.encode(["zqzqzqzq"], length=64)[1].sum() < 10


def test_save_and_load(tokenizer, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.model_bytes == tokenizer.model_bytes
    assert loaded.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(loaded.encode(["a red"], 8)[0], tokenizer.encode(["a red"], 8)[0])


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.model"):
        Tokenizer.load(tmp_path / "nothing.model")
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.model.*not a SentencePiece model"):
        Tokenizer.load(tmp_path / "text.model")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    with pytest.raises(ValueError, match=r"ids \(-1, 2\), T5 needs \(0, 1\)"):
        Tokenizer(model.getvalue())


def test_bad_training_input():
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer([], vocab_size=300)
    with pytest.raises(ValueError, match="vocab_size=100"):
        train_tokenizer(SENTENCES, vocab_size=100)
