"""Text embeddings ahead of time, end to end: made by the command, trained on, and refused where they do not fit."""

import contextlib
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from raw_videos import brightening
from small_runs import state_of

from configs import stunet, text_to_image
from lumiere_jax import train
from lumiere_jax.abstract_program import lower_training_step
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.data import video_io
from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.open_dataset import captions_of, open_dataset
from lumiere_jax.data.preparation import prepare_clips
from lumiere_jax.data.source_videos import find_sources
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.distributed.saved_program import save_program
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.prepare_text_embeddings import prepare_text_embeddings
from lumiere_jax.text.embedding_store import EmbeddingStore
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.t5x_checkpoint import write_t5x_checkpoint
from lumiere_jax.text.tokenizer import train_tokenizer
from lumiere_jax.train_setup import open_embeddings, prepare_image_model

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A data directory, and a tiny T5 with its tokenizer."""
    directory = tmp_path_factory.mktemp("t5")
    config = text_to_image.get_config("test")
    config.dataset.data_dir = str(directory / "data")
    tokenizer = train_tokenizer(captions_of(open_dataset(config.dataset)[0]), vocab_size=600)
    (directory / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    sizes = T5Config(tokenizer.vocab_size, emb_dim=64, num_heads=2, num_layers=1, head_dim=8, mlp_dim=16)
    parameters = jax.jit(lambda: nnx.state(T5Encoder(sizes, rngs=nnx.Rngs(5))))()
    write_t5x_checkpoint(directory, 1, nnx.to_pure_dict(parameters))
    return directory


def image_config(t5, **text):
    config = text_to_image.get_config("test")
    config.dataset.data_dir = str(t5 / "data")
    config.text.update({"checkpoint": str(t5), "tokenizer": str(t5 / "tokenizer.model"), "dropout": 0.4, **text})
    config.training.update({"steps": 2, "preview_every": 0})
    return config


@pytest.fixture(scope="module")
def store(t5):
    """Made by the command, as a user makes it."""
    command = [
        *(sys.executable, "-m", "lumiere_jax.prepare_text_embeddings", "--config=configs/text_to_image.py:test"),
        *(f"--config.dataset.data_dir={t5 / 'data'}", f"--config.text.checkpoint={t5}"),
        *(f"--config.text.tokenizer={t5 / 'tokenizer.model'}", f"--output={t5 / 'store'}"),
        *("--config.text.padding_sees_tokens", "--batch_size=8"),
    ]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert printed.returncode == 0, printed.stderr
    assert f"train with --config.text.embeddings={t5 / 'store'}" in printed.stdout
    assert "captions" in printed.stderr or "caption/s" in printed.stderr
    return t5 / "store"


def train_and_record(config, workdir, monkeypatch):
    """Losses of the steps, and what the train step got as text."""
    losses, texts = [], []
    act, to_device = train.act, train._to_device

    def recorded(metrics, *rest):
        losses.append(metrics["loss"])
        act(metrics, *rest)

    def recorded_batch(mesh, batch):
        texts.append(batch["text"])
        return to_device(mesh, batch)

    with monkeypatch.context() as patch:
        patch.setattr(train, "act", recorded)
        patch.setattr(train, "_to_device", recorded_batch)
        train.train(config, workdir)
    return np.array(losses), texts


def test_training_is_the_same_as_with_the_live_encoder(t5, store, tmp_path, monkeypatch):
    """DeepFloyd IF's convention, where every padded row counts: bfloat16's rounding is all that differs."""
    config = image_config(t5, padding_sees_tokens=True)
    live, tokens = train_and_record(config, tmp_path / "live", monkeypatch)
    config.text.embeddings = str(store)
    config.training.preview_every = 2
    # A training that runs the text encoder on more than the previews' prompts fails here.
    embed = TextToVideo.embed_text

    def no_encoder(self, text):
        assert self.text_encoder is not None or text.dtype == jax.numpy.bfloat16
        return embed(self, text)

    monkeypatch.setattr(TextToVideo, "embed_text", no_encoder)
    stored, embeddings = train_and_record(config, tmp_path / "stored", monkeypatch)
    assert tokens[0].shape == (2, 32)
    assert embeddings[0].shape == (2, 32, 64)
    assert len(live) == 2
    np.testing.assert_allclose(stored, live, rtol=3e-4)
    # Caption dropout: the null prompt's embedding.
    null = EmbeddingStore(store).embeddings([""])[0]
    dropped = [(row == null).all() for batch in embeddings[1:] for row in batch]
    assert [(row[1:] == 0).all() for batch in tokens[1:] for row in batch] == dropped
    assert 0 < sum(dropped) < len(dropped)
    # The run is as whole as the other: the same text encoder, previews.
    runs = [load_run(tmp_path / name) for name in ("live", "stored")]
    assert runs[1].model.padding_sees_tokens
    encoders = [nnx.state(run.model.text_encoder) for run in runs]
    jax.tree.map(np.testing.assert_array_equal, *encoders)
    assert runs[0].references.text_encoder == runs[1].references.text_encoder  # referred to, not copied
    assert not (tmp_path / "stored" / "text_encoder").exists()
    assert (tmp_path / "stored" / "previews" / "step_000002" / "sheet.png").is_file()

    # The stage over it takes the same embeddings, and those made for `init_from`.
    prepare_text_embeddings(video_config(t5, tmp_path / "stored"), tmp_path / "again", batch_size=8)
    assert (tmp_path / "again" / "metadata.json").read_bytes() == (store / "metadata.json").read_bytes()
    video = video_config(t5, tmp_path / "stored", embeddings=str(store))
    video.compute_dtype = "bfloat16"  # the encoder's hash is of its float32 values all the same
    datasets = open_dataset(video.dataset)
    prepared = prepare_image_model(video, RunDirectory(tmp_path / "video"), make_mesh(**video.mesh), train.train)
    assert prepared.config.text.padding_sees_tokens
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(prepared.text_encoder))} == {"bfloat16"}
    stored = open_embeddings(prepared, *datasets)
    assert stored.metadata["captions"] > 1


@contextlib.contextmanager
def without_compilation_cache():
    """What it gives on a CPU cannot be written again."""
    for is_on in (False, True):
        jax.config.update("jax_enable_compilation_cache", is_on)
        compilation_cache.reset_cache()
        if not is_on:
            yield


def test_a_training_step_that_was_compiled_ahead_of_time(t5, store, tmp_path, capsys):
    """From shapes alone, as `compile_for_tpu --save_program` does it, it is the one that a run would compile."""
    image = image_config(t5, padding_sees_tokens=True, embeddings=str(store))
    train.train(image, tmp_path / "image")
    config = video_config(t5, tmp_path / "image", embeddings=str(store))
    config.training.update({"steps": 2, "preview_every": 0})
    lowered, program = lower_training_step(config, make_mesh()), tmp_path / "program"
    with pytest.raises(FileNotFoundError, match=f"--program={program}: there is no such file"):
        train.train(config, tmp_path / "early", program)
    assert not (tmp_path / "early").exists()
    with without_compilation_cache():
        save_program(program, lowered, lowered.compile(), jax.devices())
    train.train(config, tmp_path / "compiled")
    assert "comes from" not in capsys.readouterr().out
    train.train(config, tmp_path / "loaded", program)
    assert f"the training step's program comes from {program}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path / "loaded"), state_of(tmp_path / "compiled"))
    config.training.learning_rate *= 2
    with pytest.raises(ValueError, match=r"cannot be used, compile it again\. program: \w+ there, \w+ here$"):
        train.train(config, tmp_path / "other", program)


def video_config(t5, image, **text):
    config = stunet.get_config("test")
    config.dataset.data_dir = str(t5 / "data")
    config.init_from = str(image)
    config.text.update(text)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text.padding_sees_tokens": False}, "padding_sees_tokens: True in the store, False in this run"),
        ({"text.length": 33}, "length: 32 in the store, 33 in this run"),
        ({"dataset.path": "one_caption"}, r"lacks \d+ captions of this data set, the first is '"),
        ({"text.embeddings": "nowhere"}, "nowhere holds no text embeddings"),
        ({"text.checkpoint": "", "text.tokenizer": ""}, "needs a text encoder that is trained already"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_by_name(t5, store, tmp_path, monkeypatch, changes, message):
    config = image_config(t5, padding_sees_tokens=True, embeddings=str(store))
    if "dataset.path" in changes:
        records = [{"caption": b"a caption that is in no data set"}]
        monkeypatch.setattr(train, "open_dataset", lambda _: (records, records))
    else:
        config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_encoder_is_refused(t5, store, tmp_path):
    sizes = T5Config(600, emb_dim=64, num_heads=2, num_layers=1, head_dim=8, mlp_dim=16)
    parameters = jax.jit(lambda: nnx.state(T5Encoder(sizes, rngs=nnx.Rngs(6))))()
    write_t5x_checkpoint(tmp_path / "t5", 1, nnx.to_pure_dict(parameters))
    config = image_config(t5, padding_sees_tokens=True, embeddings=str(store), checkpoint=str(tmp_path / "t5"))
    with pytest.raises(ValueError, match=r"encoder: [0-9a-f]{64} in the store, [0-9a-f]{64} in this run"):
        train.train(config, tmp_path / "run")


def test_captions_of_prepared_clips(t5, tmp_path):
    """Beside the clips, and training finds those of every caption there."""
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        video_io.write_mp4(tmp_path / "videos" / f"{name}.mp4", brightening(10, first=ord(name)), 10)
        (tmp_path / "videos" / f"{name}.txt").write_text(f"a {name}")
    sources = find_sources(tmp_path / "videos")
    prepare_clips(sources, tmp_path / "prepared", ClipSettings(frames=4, fps=4, size=16))
    config = image_config(t5)
    config.dataset.update({"name": "prepared", "path": str(tmp_path / "prepared")})
    prepare_text_embeddings(config, tmp_path / "prepared" / "embeddings", batch_size=8)
    store = EmbeddingStore(tmp_path / "prepared" / "embeddings")
    assert store.embeddings(["a a", "a b"]).shape == (2, 32, 64)
    assert len(open_dataset(config.dataset)[0]) == 2  # the clips are as they were


def test_what_cannot_be_prepared(t5, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "t5x", None)
    with pytest.raises(ImportError, match="t5x is not installed"):
        prepare_text_embeddings(image_config(t5, checkpoint="nowhere"), tmp_path / "out", implementation="t5x")
    with pytest.raises(FileNotFoundError, match="no T5X checkpoint at"):
        prepare_text_embeddings(image_config(t5, checkpoint=str(tmp_path / "nowhere")), tmp_path / "out")
    for config in (image_config(t5, checkpoint="", tokenizer=""), video_config(t5, "")):
        with pytest.raises(ValueError, match="names no text encoder"):
            prepare_text_embeddings(config, tmp_path / "out")
    with pytest.raises(ValueError, match="the limit is 3"):
        prepare_text_embeddings(image_config(t5, length=3), tmp_path / "out")
    small = T5Config(100, emb_dim=8, num_heads=2, num_layers=1, head_dim=8, mlp_dim=16)
    parameters = jax.jit(lambda: nnx.state(T5Encoder(small, rngs=nnx.Rngs(6))))()
    write_t5x_checkpoint(tmp_path / "t5", 1, nnx.to_pure_dict(parameters))
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the text encoder .* has 100: give"):
        prepare_text_embeddings(image_config(t5, checkpoint=str(tmp_path / "t5")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
