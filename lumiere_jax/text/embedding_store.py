"""T5 embeddings of a data set's captions, made ahead of time: training then runs no text encoder.

    metadata.json                   what they were made with
    captions.jsonl                  caption number i on line i, each once, sorted; the first is "", the null prompt
    embeddings-00000.array_record   captions 0 to 1023, a record each: msgpack of {"caption", "embeddings"}

A store is complete when all of its files are there: each appears whole, under its name, or not at all.

What of the padding? DeepFloyd IF's U-Net, hence ours, gets no mask and attends to padding, so that its rows matter as
much as the tokens'. They are not zeros: `T5Encoder` makes them, by one of two conventions (`text.padding_sees_tokens`),
and the store keeps what is needed to give back all `length` rows as they were made:

- T5X's: all padded rows of a caption are the same vector. The valid rows are stored, and that one.
- Hugging Face's and DeepFloyd IF's: each padded row is another, and only the encoder could make it from the valid ones.
  All `length` rows are stored.

So a record has 1 to `length` rows, the last of which stands for all positions behind it.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tqdm
from array_record.python import array_record_data_source, array_record_module
from flax import serialization
from jaxtyping import Float, Int32

from lumiere_jax.text.tokenizer import Tokenizer

FORMAT = 1
RECORDS_PER_FILE = 1024
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
MAKE = "python -m lumiere_jax.prepare_text_embeddings"

# What a store that was stopped at its very beginning may hold.
_BEFORE_METADATA = {"captions.jsonl", "captions.jsonl.partial", "metadata.json.partial"}

Encode = Callable[[Int32[np.ndarray, "batch tokens"]], Float[np.ndarray, "batch tokens text_dim"]]


def made_with(
    encoder_sha256: str, text_dim: int, tokenizer: Tokenizer, length: int, padding_sees_tokens: bool
) -> dict[str, Any]:
    """All that the embeddings of a caption follow from; weights and vocabulary by their SHA-256.

    Args:
      encoder_sha256: of the text encoder's parameters, from `text_encoder_sha256`.
      text_dim: the text encoder's width.
      tokenizer: the SentencePiece model.
      length: tokens per caption, padding included.
      padding_sees_tokens: see `T5Encoder`.
    """
    return {
        "encoder": encoder_sha256,
        "tokenizer": hashlib.sha256(tokenizer.model_bytes).hexdigest(),
        "length": length,
        "text_dim": text_dim,
        "padding_sees_tokens": padding_sees_tokens,
    }


def write_embeddings(
    directory: str | os.PathLike[str],
    captions: Iterable[str],
    tokenizer: Tokenizer,
    encode: Encode,
    facts: Mapping[str, Any],
    *,
    batch_size: int,
    dtype: str = "bfloat16",
    records_per_file: int = RECORDS_PER_FILE,
) -> None:
    """Writes the embeddings of all captions and of the null prompt, or goes on where an earlier call was stopped.

    Args:
      directory: made if need be; empty, or an unfinished (or finished) store of the same captions and `facts`.
      captions: in any order, repeated or not.
      tokenizer: see `made_with`.
      encode: token ids to embeddings, always called with `batch_size` rows.
      facts: from `made_with`.
      batch_size: captions that are encoded at once.
      dtype: bfloat16 or float32.
      records_per_file: what is lost at most when the writing is stopped.

    Raises:
      ValueError: `directory` holds something else, a caption is too long, or an embedding is not finite.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: use one of {list(DTYPES)}")
    if batch_size < 1 or records_per_file < 1:
        raise ValueError(f"batch_size={batch_size} and records_per_file={records_per_file} must be positive")
    directory, captions = pathlib.Path(directory), sorted({"", *captions})
    tokens, mask = tokenizer.encode(captions, facts["length"])
    rows = np.full(len(captions), facts["length"])
    if not facts["padding_sees_tokens"]:
        rows = np.minimum(mask.sum(axis=1) + 1, facts["length"])  # the valid ones and one of padding
    lines = "".join(json.dumps(caption) + "\n" for caption in captions).encode()
    metadata = {
        "format": FORMAT,
        **facts,
        "dtype": dtype,
        "captions": len(captions),
        "captions_sha256": hashlib.sha256(lines).hexdigest(),
        "records_per_file": records_per_file,
    }
    _begin(directory, metadata, lines)
    with tqdm.tqdm(total=len(captions), unit="caption", dynamic_ncols=True) as bar:
        for file, numbers in _files(directory, metadata):
            if not file.exists():
                _write_file(file, numbers, captions, tokens, rows, encode, batch_size, DTYPES[dtype], bar)
            bar.update(numbers.stop - bar.n)


class EmbeddingStore:
    """A complete store, read at random.

    Attributes:
      metadata: of `metadata.json`: what `made_with` gave, dtype and number of captions.

    Raises:
      FileNotFoundError: no store in `directory`, or an unfinished one.
      ValueError: files that do not belong together.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = pathlib.Path(directory)
        metadata = _read_metadata(self.directory)
        if metadata is None:
            raise FileNotFoundError(
                f"{directory} holds no text embeddings: it has no metadata.json. Make them with {MAKE}"
            )
        self.metadata = metadata
        files = [file for file, _ in _files(self.directory, self.metadata)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise FileNotFoundError(
                f"{directory} is unfinished, {len(missing)} of its {len(files)} files are missing ({missing[0]}): "
                f"start the same {MAKE} again, it goes on where it was stopped"
            )
        lines = (self.directory / "captions.jsonl").read_bytes()
        if hashlib.sha256(lines).hexdigest() != self.metadata["captions_sha256"]:
            raise ValueError(
                f"{directory}/captions.jsonl is not the one that belongs to metadata.json: make them again"
            )
        self._numbers = {json.loads(line): number for number, line in enumerate(lines.splitlines())}
        # The file's readers are opened when they are first used.
        self._records = array_record_data_source.ArrayRecordDataSource([os.fspath(file) for file in files])
        if len(self._records) != self.metadata["captions"]:
            raise ValueError(
                f"{directory} has {len(self._records)} records, metadata.json says {self.metadata['captions']}: make "
                "them again"
            )

    def check(self, facts: Mapping[str, Any], captions: Iterable[str]) -> None:
        """Raises a ValueError that names what differs, unless this store serves a run.

        Args:
          facts: the run's `made_with`.
          captions: all that the run will ask for.
        """
        differing = [
            f"  {name}: {self.metadata.get(name)} in the store, {value} in this run"
            for name, value in facts.items()
            if self.metadata.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"text.embeddings={self.directory} were made with another text encoder. Make them again ({MAKE}), or "
                "leave text.embeddings empty:\n" + "\n".join(differing)
            )
        missing = sorted({caption for caption in captions if caption not in self._numbers})
        if missing:
            raise ValueError(
                f"text.embeddings={self.directory} lacks {len(missing)} captions of this data set, the first is "
                f"{missing[0]!r}: make them again for this data set ({MAKE}), in another directory"
            )

    def embeddings(self, captions: Sequence[str]) -> Float[np.ndarray, "captions length text_dim"]:
        """Embeddings of captions as they were made, in the store's dtype; `""` is the null prompt.

        Raises:
          KeyError: a caption that is not in the store.
          ValueError: a damaged record.
        """
        unique = sorted(set(captions))
        records = self._records.__getitems__([self._numbers[caption] for caption in unique])
        found = {caption: self._rows(caption, record) for caption, record in zip(unique, records, strict=True)}
        return np.stack([found[caption] for caption in captions])

    def _rows(self, caption: str, record: bytes) -> np.ndarray:
        content = serialization.msgpack_restore(record)
        rows, width = content["embeddings"], self.metadata["text_dim"]
        if content["caption"] != caption or rows.shape[1:] != (width,):
            raise ValueError(
                f"{self.directory}: the record of caption {caption!r} is that of {content['caption']!r}, of shape "
                f"{rows.shape}: files of several stores were mixed; make them again"
            )
        return rows[np.minimum(np.arange(self.metadata["length"]), len(rows) - 1)]


def _begin(directory: pathlib.Path, metadata: dict[str, Any], lines: bytes) -> None:
    """Writes captions and metadata, or makes sure that those that are there are the same."""
    before = _read_metadata(directory)
    if before is None:
        directory.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in directory.iterdir()} - _BEFORE_METADATA
        if others:
            raise ValueError(f"{directory} holds other files, as {min(others)}: give an empty or a new directory")
        _write_whole(directory / "captions.jsonl", lines)
        _write_whole(directory / "metadata.json", (json.dumps(metadata, indent=2) + "\n").encode())
    elif before != metadata:
        differing = [
            f"  {name}: {before.get(name, 'absent')} there, {metadata.get(name, 'absent')} now"
            for name in sorted(before.keys() | metadata.keys())
            if before.get(name) != metadata.get(name)
        ]
        raise ValueError(f"{directory} holds other text embeddings: give another directory\n" + "\n".join(differing))


def _read_metadata(directory: pathlib.Path) -> dict[str, Any] | None:
    file = directory / "metadata.json"
    if not file.exists():
        return None
    metadata = json.loads(file.read_text())
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{file} does not describe text embeddings of format {FORMAT}: make them with {MAKE}")
    return metadata


def _files(directory: pathlib.Path, metadata: Mapping[str, Any]) -> list[tuple[pathlib.Path, range]]:
    """The files of a store, each with the numbers of its captions."""
    count, size = metadata["captions"], metadata["records_per_file"]
    starts = range(0, count, size)
    return [
        (directory / f"embeddings-{number:05d}.array_record", range(start, min(start + size, count)))
        for number, start in enumerate(starts)
    ]


def _write_file(
    file: pathlib.Path,
    numbers: range,
    captions: Sequence[str],
    tokens: Int32[np.ndarray, "captions tokens"],
    rows: np.ndarray,
    encode: Encode,
    batch_size: int,
    dtype: np.dtype,
    bar: tqdm.tqdm,
) -> None:
    partial = file.with_name(file.name + ".partial")
    # One record a group, so that reading one does not read its neighbours; bfloat16 hardly compresses.
    writer = array_record_module.ArrayRecordWriter(os.fspath(partial), "group_size:1,uncompressed")
    for start in range(numbers.start, numbers.stop, batch_size):
        batch = np.arange(start, min(start + batch_size, numbers.stop))
        # Always as many rows, so that one compiled program serves all; what is too much is dropped.
        embeddings = encode(tokens[np.resize(batch, batch_size)])[: len(batch)]
        for number, embedding in zip(batch, embeddings, strict=True):
            if not np.isfinite(embedding).all():
                raise ValueError(
                    f"the text encoder gives NaN or infinity for caption {captions[number]!r}: does the tokenizer "
                    "belong to this checkpoint?"
                )
            record = {"caption": captions[number], "embeddings": embedding[: rows[number]].astype(dtype)}
            writer.write(serialization.msgpack_serialize(record))
        bar.update(len(batch))
    writer.close()
    partial.replace(file)


def _write_whole(file: pathlib.Path, content: bytes) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)
