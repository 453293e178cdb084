"""Prompts to token ids: a SentencePiece model with T5's special tokens (pad 0, end of sentence 1)."""

import io
import os
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from jaxtyping import Int32

from lumiere_jax.text.storage import read_file

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2


class Tokenizer:
    """A SentencePiece model with T5's conventions.

    Attributes:
      model_bytes: the serialised SentencePiece model; writing them to a file saves the tokenizer.
    """

    def __init__(self, model_bytes: bytes):
        """Parses a serialised SentencePiece model.

        Raises:
          ValueError: not a SentencePiece model, or one whose pad and end-of-sentence ids are not T5's 0 and 1.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise ValueError(f"model_bytes ({len(model_bytes)} bytes) is not a SentencePiece model") from error
        special = (self._processor.pad_id(), self._processor.eos_id())
        if special != (PAD_ID, EOS_ID):
            raise ValueError(
                f"the SentencePiece model has (pad, eos) ids {special}, T5 needs {(PAD_ID, EOS_ID)}; "
                "use the model that belongs to the T5 checkpoint, or train one with train_tokenizer"
            )
        self.model_bytes = model_bytes

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads a SentencePiece model file, local or `gs://`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not a SentencePiece model with T5's special tokens.
        """
        model_bytes = read_file(path)
        try:
            return cls(model_bytes)
        except ValueError as error:
            raise ValueError(f"tokenizer {os.fspath(path)}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of token ids. T5's published embedding has more rows (32128) than its tokenizer (32000 ids)."""
        return self._processor.vocab_size()

    def encode(
        self, prompts: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "batch tokens"], Int32[np.ndarray, "batch tokens"]]:
        """Token ids and mask of the prompts, each ended by EOS (1) and padded with 0 to `length`.

        Args:
          prompts: the texts; `""` becomes EOS alone, which is the unconditional prompt.
          length: number of tokens per prompt, EOS included.

        Returns:
          Ids `[batch, length]`, and a mask that is 1 at tokens and 0 at padding.

        Raises:
          ValueError: a prompt needs more than `length` tokens: it is never cut silently.
          TypeError: `prompts` is one string.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts={prompts!r} is one string; pass a list of prompts")
        ids = np.full((len(prompts), length), PAD_ID, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = [*self._processor.encode(prompt), EOS_ID]
            if len(tokens) > length:
                start = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
                raise ValueError(
                    f"prompt {start!r} has {len(tokens)} tokens (end of sentence included), the limit is "
                    f"{length}; shorten the prompt or raise the text length"
                )
            row[: len(tokens)] = tokens
        return ids, (ids != PAD_ID).astype(np.int32)


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a small tokenizer, deterministically, with T5's special tokens.

    Characters that the sentences do not have fall back to their UTF-8 bytes, so any prompt can be encoded.

    Args:
      sentences: training texts.
      vocab_size: the largest number of token ids; few sentences give fewer. 259 ids are the special tokens
        and the 256 bytes; every distinct character of the sentences takes one more, and so does every word
        part. Captions made of some 50 words are encoded word by word from about 512 on.

    Raises:
      ValueError: no sentences, or `vocab_size` too small for their characters.
    """
    sentences = list(sentences)
    if not any(sentence.strip() for sentence in sentences):
        raise ValueError(f"sentences has no text ({len(sentences)} sentences): a tokenizer needs some to train on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            # T5's own is a unigram model, but on a few thousand captions made of few words unigram training
            # keeps hardly more than letters, byte-pair encoding finds the words.
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            byte_fallback=True,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            # SentencePiece silently skips longer sentences than this: its largest value, in bytes.
            max_sentence_length=2**30,
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"vocab_size={vocab_size}: SentencePiece says {error}") from error
    return Tokenizer(model.getvalue())
