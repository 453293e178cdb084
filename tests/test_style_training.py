"""The training of a style: what it starts from, what it leaves, what it refuses."""

import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from random_runs import random_run, write_run
from small_runs import at_step, small_config, state_of

from configs import style
from lumiere_jax import train
from lumiere_jax.checkpoints.checkpointing import load_tree, tree_hash
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.distributed.preemption import Preempted
from lumiere_jax.models.stunet import deflate
from lumiere_jax.pipelines.stylized_generation import stylized
from lumiere_jax.pipelines.text_to_video import sample_videos


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What a finished training of a Space-Time U-Net leaves."""
    workdir, run = tmp_path_factory.mktemp("base"), random_run()
    run.config.training.steps = run.step
    write_run(run, workdir)
    return workdir


def test_a_style(base, tmp_path, monkeypatch, capsys):
    """Starts from the spatial layers of its base, ends as an undisturbed run after a stop, and goes with its base."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(images / "red.png")
    config = small_config(style, tmp_path)
    config.dataset.path = str(images)
    with pytest.raises(ValueError, match=r"style\.base is empty: give the --workdir"):
        train.train(config, tmp_path / "style")
    config.style.base = str(base)
    train.train(config, tmp_path / "undisturbed")
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="is saved at step 1 of 4"):
        train.train(config, tmp_path / "style")
    config.style.base = "gone"
    train.train(config, tmp_path / "style")
    assert "continuing from step 1" in capsys.readouterr().out
    assert tree_hash(state_of(tmp_path / "style")) == tree_hash(state_of(tmp_path / "undisturbed"))
    trained, video = load_run(tmp_path / "style"), load_run(base)
    assert tree_hash(load_tree(tmp_path / "style" / "backbone")) == trained.config.style.base_unet
    assert trained.config.clip.crop_from == 24
    spatial = nnx.to_pure_dict(nnx.state(deflate(video.model.unet)))
    changes = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), _unet_of(trained), spatial)
    assert 1e-4 < max(jax.tree.leaves(changes)) < 0.05  # four steps of a small learning rate
    text_encoder = nnx.to_pure_dict(nnx.state(video.model.text_encoder))
    assert tree_hash(nnx.to_pure_dict(nnx.state(trained.model.text_encoder))) == tree_hash(text_encoder)
    assert np.isfinite(sample_videos(stylized(video, trained, 0.5), ["a red circle"])).all()

    config.style.update({"base": str(tmp_path / "style"), "zoom": 1.0})
    with pytest.raises(ValueError, match="is a style itself: give the run that it was fine-tuned from"):
        train.train(config, tmp_path / "next")
    config.style.zoom = 0.5
    with pytest.raises(ValueError, match=r"style\.zoom=0\.5: give 1, for whole images, to 16"):
        train.train(config, tmp_path / "next")


def test_what_a_style_cannot_start_from(tmp_path):
    large = random_run(super_resolution=True)
    large.config.training.steps = large.step
    write_run(large, tmp_path / "large")
    Image.new("RGB", (40, 30)).save(tmp_path / "black.png")
    config = small_config(style, tmp_path)
    config.dataset.path, config.style.base = str(tmp_path / "black.png"), str(tmp_path / "large")
    with pytest.raises(ValueError, match=r"style\.base=.*large is a super-resolution run: ssr:test"):
        train.train(config, tmp_path / "style")


def _unet_of(run):
    return nnx.to_pure_dict(nnx.state(run.model.unet))
