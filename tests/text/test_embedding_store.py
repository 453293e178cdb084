"""Stored text embeddings: what comes back, what is stored, resumption, and stores that do not fit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lumiere_jax.checkpoints.frozen_parts import text_encoder_sha256
from lumiere_jax.text import embedding_store
from lumiere_jax.text.embedding_store import EmbeddingStore, made_with, write_embeddings
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import Tokenizer, train_tokenizer

LENGTH = 8
CAPTIONS = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("disk", "box", "ring")]
FULL = "a red disk a blue box a"  # with the end of sentence exactly LENGTH tokens
CAPTIONS += [FULL, "雪", "a\r\nbox", '"', *CAPTIONS[:4]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*CAPTIONS, "circle"] * 3, vocab_size=420)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> T5Encoder:
    sizes = T5Config(vocab_size=tokenizer.vocab_size, emb_dim=8, num_heads=2, num_layers=2, head_dim=4, mlp_dim=12)
    return jax.jit(lambda: T5Encoder(sizes, rngs=nnx.Rngs(0)))()


def live(encoder: T5Encoder, tokenizer: Tokenizer, captions: list[str], padding_sees_tokens: bool) -> np.ndarray:
    embed = jax.jit(lambda encoder, tokens: encoder(tokens, padding_sees_tokens=padding_sees_tokens))
    return np.asarray(embed(encoder, tokenizer.encode(captions, LENGTH)[0]))


def facts_of(encoder: T5Encoder, tokenizer: Tokenizer, length: int, padding_sees_tokens: bool) -> dict:
    return made_with(text_encoder_sha256(encoder, None), encoder.config.emb_dim, tokenizer, length, padding_sees_tokens)


def write(directory, encoder, tokenizer, captions, padding_sees_tokens=False, on_batch=lambda: None, **settings):
    embed = jax.jit(lambda encoder, tokens: encoder(tokens, padding_sees_tokens=padding_sees_tokens))

    def encode(tokens: np.ndarray) -> np.ndarray:
        on_batch()
        assert tokens.shape == (3, LENGTH)
        return np.asarray(embed(encoder, tokens))

    facts = facts_of(encoder, tokenizer, LENGTH, padding_sees_tokens)
    settings = {"batch_size": 3, "records_per_file": 4} | settings
    write_embeddings(directory, captions, tokenizer, encode, facts, **settings)
    return facts


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("padding_sees_tokens", [False, True])
def test_all_rows_come_back_as_the_encoder_makes_them(tmp_path, encoder, tokenizer, padding_sees_tokens):
    """Tokens and padding, by both conventions: in float32 to rounding, in bfloat16 to bfloat16's."""
    asked = ["", *reversed(CAPTIONS), CAPTIONS[0], ""]
    expected = live(encoder, tokenizer, asked, padding_sees_tokens)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert tokenizer.encode([FULL], LENGTH)[1].all()
    stores = {}
    for dtype in ("float32", "bfloat16"):
        facts = write(tmp_path / dtype, encoder, tokenizer, CAPTIONS, padding_sees_tokens, dtype=dtype)
        store = stores[dtype] = EmbeddingStore(tmp_path / dtype)
        store.check(facts, asked)
        assert store.metadata["captions"] == len({"", *CAPTIONS})
    found = stores["float32"].embeddings(asked)
    assert found.dtype == np.float32
    assert found.shape == (len(asked), LENGTH, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    halved = stores["bfloat16"].embeddings(asked)
    assert halved.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(halved, found.astype(ml_dtypes.bfloat16))


def test_what_is_stored(tmp_path, encoder, tokenizer):
    """By T5X's convention the valid rows and one of padding; by Hugging Face's all."""
    _, mask = tokenizer.encode(["a red ring"], LENGTH)
    valid = int(mask.sum())
    assert valid < LENGTH - 1
    for padding_sees_tokens, rows in ((False, valid + 1), (True, LENGTH)):
        directory = tmp_path / str(padding_sees_tokens)
        write(directory, encoder, tokenizer, CAPTIONS, padding_sees_tokens)
        store = EmbeddingStore(directory)
        numbers = {
            json.loads(line): n for n, line in enumerate((directory / "captions.jsonl").read_text().splitlines())
        }
        assert list(numbers) == sorted({"", *CAPTIONS})
        read = embedding_store.serialization.msgpack_restore
        assert read(store._records[numbers["a red ring"]])["embeddings"].shape == (rows, 8)
        assert read(store._records[numbers[FULL]])["embeddings"].shape == (LENGTH, 8)


def test_stopped_and_started_again(tmp_path, encoder, tokenizer):
    write(tmp_path / "whole", encoder, tokenizer, CAPTIONS)
    batches = []

    def stop():
        batches.append(None)
        if len(batches) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", encoder, tokenizer, CAPTIONS, on_batch=stop)
    with pytest.raises(FileNotFoundError, match=r"stopped is unfinished, \d of its \d files are missing"):
        EmbeddingStore(tmp_path / "stopped")
    first = tmp_path / "stopped" / "embeddings-00000.array_record"
    changed = first.stat().st_mtime_ns
    again = []
    write(tmp_path / "stopped", encoder, tokenizer, CAPTIONS, on_batch=lambda: again.append(None))
    assert first.stat().st_mtime_ns == changed
    assert len(again) == 2 + 2 + 1  # 14 captions in files of 4, 4, 4 and 2, the first of which was there
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    write(tmp_path / "stopped", encoder, tokenizer, CAPTIONS, on_batch=lambda: pytest.fail("there was nothing to do"))


KILLED = """
import os, signal, sys
import numpy as np
from lumiere_jax.text.embedding_store import write_embeddings
from lumiere_jax.text.tokenizer import Tokenizer

batches = 0
def encode(tokens):
    global batches
    batches += 1
    if batches == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return np.repeat(tokens[..., None], 8, axis=-1).astype(np.float32)

facts = {"length": 8, "text_dim": 8, "padding_sees_tokens": False, "encoder": "e", "tokenizer": "t"}
tokenizer = Tokenizer.load(sys.argv[2])
write_embeddings(sys.argv[1], "abcdefghijk", tokenizer, encode, facts, batch_size=2, records_per_file=4)
"""


def test_killed(tmp_path, tokenizer):
    """kill -9 in the middle of a file; the same command finishes, and the result is that of an undisturbed one."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)

    def run(directory, batches):
        command = [sys.executable, "-c", KILLED, tmp_path / directory, tmp_path / "tokenizer.model", str(batches)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "80"})

    killed = run("killed", 4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(content(tmp_path / "killed")) == [
        "captions.jsonl",
        "embeddings-00000.array_record",
        "embeddings-00001.array_record.partial",
        "metadata.json",
    ]
    for directory in ("killed", "whole"):
        finished = run(directory, 0)
        assert finished.returncode == 0, finished.stderr
        assert "12/12" in finished.stderr
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_store_that_does_not_fit(tmp_path, encoder, tokenizer):
    facts = write(tmp_path, encoder, tokenizer, CAPTIONS)
    store = EmbeddingStore(tmp_path)
    store.check(facts, CAPTIONS)
    other = jax.tree.map(lambda leaf: leaf, encoder)
    scale = other.encoder.encoder_norm.scale
    scale[...] = scale[...].at[3].add(1e-6)
    others = {
        "encoder": facts_of(other, tokenizer, LENGTH, False),
        "tokenizer": facts_of(encoder, train_tokenizer(["another"], vocab_size=400), LENGTH, False),
        "length": facts_of(encoder, tokenizer, 9, False),
        "padding_sees_tokens": facts_of(encoder, tokenizer, LENGTH, True),
        "text_dim": facts | {"text_dim": 16},
    }
    for name, expected in others.items():
        assert [key for key in facts if facts[key] != expected[key]] == [name]
        with pytest.raises(ValueError, match="made with another text encoder") as error:
            store.check(expected, CAPTIONS)
        assert f"\n  {name}: {facts[name]} in the store, {expected[name]} in this run" in str(error.value)
        assert str(error.value).count("\n") == 1
    with pytest.raises(ValueError, match=r"lacks 2 captions of this data set, the first is 'a black disk'"):
        store.check(facts, [*CAPTIONS, "a black disk", "a white box"])
    with pytest.raises(KeyError, match="a black disk"):
        store.embeddings(["a black disk"])


def test_directories_that_hold_something_else(tmp_path, encoder, tokenizer):
    with pytest.raises(FileNotFoundError, match="holds no text embeddings"):
        EmbeddingStore(tmp_path / "nothing")
    write(tmp_path / "store", encoder, tokenizer, CAPTIONS)
    before = content(tmp_path / "store")
    with pytest.raises(ValueError, match=r"holds other text embeddings(.|\n)*captions: \d+ there, \d+ now"):
        write(tmp_path / "store", encoder, tokenizer, CAPTIONS[:-5])
    with pytest.raises(ValueError, match=r"holds other text embeddings(.|\n)*dtype: bfloat16 there, float32 now"):
        write(tmp_path / "store", encoder, tokenizer, CAPTIONS, dtype="float32")
    assert content(tmp_path / "store") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "clip.mp4").write_text("")
    with pytest.raises(ValueError, match=r"other holds other files, as clip\.mp4"):
        write(tmp_path / "other", encoder, tokenizer, CAPTIONS)
    (tmp_path / "other" / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match=r"metadata\.json does not describe text embeddings of format 1"):
        EmbeddingStore(tmp_path / "other")


def test_mixed_and_damaged_stores(tmp_path, encoder, tokenizer):
    write(tmp_path / "a", encoder, tokenizer, CAPTIONS)
    write(tmp_path / "b", encoder, tokenizer, [caption.replace("red", "ring") for caption in CAPTIONS])
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    shutil.copy(tmp_path / "b" / "embeddings-00002.array_record", tmp_path / "c")
    with pytest.raises(ValueError, match=r"files of several stores were mixed"):
        EmbeddingStore(tmp_path / "c").embeddings(CAPTIONS)
    shutil.copy(tmp_path / "b" / "captions.jsonl", tmp_path / "a")
    with pytest.raises(ValueError, match=r"captions\.jsonl is not the one that belongs to metadata\.json"):
        EmbeddingStore(tmp_path / "a")


def test_bad_input(tmp_path, encoder, tokenizer):
    for settings, message in (
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"captions": ["a " * 20]}, "the limit is 8"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "x", encoder, tokenizer, settings.pop("captions", CAPTIONS), **settings)
    assert not (tmp_path / "x").exists()
    foreign = T5Encoder(
        T5Config(vocab_size=262, emb_dim=8, num_heads=2, num_layers=1, head_dim=4, mlp_dim=8), rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match=r"gives NaN or infinity for caption '.+': does the tokenizer belong"):
        write(tmp_path / "x", foreign, tokenizer, CAPTIONS)
