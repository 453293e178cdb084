"""CLIP's tokenizer: byte pairs of lower-cased text, from Hugging Face's `tokenizer.json`."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

_END = "<|endoftext|>"


class CLIPTokenizer:
    """Prompts to token ids: the start, the text, its end; the end once more wherever there is room left."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CLIPTokenizer":
        """Loads `tokenizer.json`, or that of a directory.

        Raises:
          ImportError: the library `tokenizers` is not installed.
          FileNotFoundError: there is no such file.
          ValueError: a tokenizer without CLIP's end-of-text token.
        """
        path = pathlib.Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: it lies beside CLIP's model.safetensors")
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("CLIP's prompts need the library tokenizers: pip install 'lumiere-jax[clip]'") from error
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        if tokenizer.token_to_id(_END) is None:
            raise ValueError(f"{path} has no token {_END}: it is not CLIP's")
        return cls(tokenizer)

    def encode(self, prompts: Sequence[str], length: int = 77) -> Int[np.ndarray, "prompts {length}"]:
        """Token ids; of a longer text the beginning, and the end-of-text token."""
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=self._tokenizer.token_to_id(_END), pad_token=_END)
        return np.array([encoding.ids for encoding in self._tokenizer.encode_batch(list(prompts))], np.int32)
