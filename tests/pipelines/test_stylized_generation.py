"""Spatial layers between a style's and the model's own, under temporal layers that stay as they are."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from random_runs import random_run

from lumiere_jax.checkpoints.checkpointing import tree_hash
from lumiere_jax.data.video_io import to_uint8
from lumiere_jax.diffusion.condition import image_to_video
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import deflate
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.conditional_generation import complete_videos
from lumiere_jax.pipelines.stylized_generation import spatial_layers_hash, stylized
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.pipelines.video_editing import image_model_of
from lumiere_jax.sample import sample_styles
from lumiere_jax.sample_tasks import Task

PROMPTS = ["a red circle"]


@pytest.fixture(scope="module")
def base():
    return random_run()


@pytest.fixture(scope="module")
def style(base):
    """The base's spatial layers, each number of them another one."""
    run = image_model_of(base)
    graphdef, state = nnx.split(run.model.unet)
    draw = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: leaf + 0.1 * draw.standard_normal(leaf.shape).astype(np.float32), state)
    config = run.config.copy_and_resolve_references()
    config.style = {"base": "", "zoom": 1.5, "base_unet": spatial_layers_hash(base)}
    model = TextToVideo(run.model.text_encoder, nnx.merge(graphdef, state))
    return dataclasses.replace(run, config=config, model=model)


def spatial(run):
    return nnx.to_pure_dict(nnx.state(deflate(run.model.unet)))


def test_the_ends_are_the_run_and_the_style(base, style):
    jax.tree.map(np.testing.assert_array_equal, stylized(base, style, 0.0).parameters(), base.parameters())
    of_style = nnx.to_pure_dict(nnx.state(style.model.unet))
    jax.tree.map(np.testing.assert_array_equal, spatial(stylized(base, style, 1.0)), of_style)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_spatial_layers_are_mixed_and_temporal_ones_are_not_touched(base, style, alpha):
    before = tree_hash(base.parameters())
    mixed = stylized(base, style, alpha)
    _, temporal, _ = parameter_partition.split(base.model.unet)
    assert tree_hash(parameter_partition.split(mixed.model.unet)[1]) == tree_hash(temporal)
    of_style = nnx.to_pure_dict(nnx.state(style.model.unet))
    expected = jax.tree.map(
        lambda new, old: alpha * np.float64(new) + (1 - alpha) * np.float64(old), of_style, spatial(base)
    )
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, atol=1e-6), spatial(mixed), expected)
    assert tree_hash(base.parameters()) == before


def test_clips_change_with_alpha(base, style):
    plain = sample_videos(base, PROMPTS)
    np.testing.assert_array_equal(sample_videos(stylized(base, style, 0.0), PROMPTS), plain)
    half, whole = (sample_videos(stylized(base, style, alpha), PROMPTS) for alpha in (0.5, 1.0))
    assert np.abs(half - plain).mean() > 1e-2
    assert np.abs(whole - half).mean() > 1e-2


def test_a_style_of_the_image_model_and_of_the_conditional_model(base, style):
    image = image_model_of(base)
    np.testing.assert_array_equal(
        sample_videos(stylized(image, style, 1.0), PROMPTS, frames=1), sample_videos(style, PROMPTS, frames=1)
    )
    conditional = random_run(conditional=True)
    of_it = dataclasses.replace(style, config=style.config.copy_and_resolve_references())
    of_it.config.style.base_unet = spatial_layers_hash(conditional)
    mixed = stylized(conditional, of_it, 0.5)
    kernel = conditional.model.unet.conv_in.condition.kernel
    np.testing.assert_array_equal(mixed.model.unet.conv_in.condition.kernel[...], kernel[...])
    given = image_to_video(np.zeros((16, 16, 3), np.float32), 4)
    assert np.isfinite(complete_videos(mixed, PROMPTS, given)).all()


def test_a_sweep_over_alpha_is_written(base, style, tmp_path):
    task = Task("stylize", alphas=(0.0, 0.5, 1.0), files={"style": "a style"})
    sample_styles(base, style, [], PROMPTS, tmp_path, task=task, seed=0, frames=4, size=(16, 16))
    (sheet,) = tmp_path.glob("*_alphas.png")
    shown = np.asarray(Image.open(sheet))
    assert shown.shape == (3 * 16 + 2 * 2, 4 * 16 + 3 * 2, 3)
    clips = [sample_videos(stylized(base, style, alpha), PROMPTS)[0] for alpha in task.alphas]
    for row, clip in enumerate(clips):
        np.testing.assert_array_equal(shown[row * 18 : row * 18 + 16, 18:34], to_uint8(clip[1]))
    made = {json.loads(file.read_text())["alpha"]: file.stem for file in tmp_path.glob("*.json")}
    assert {alpha: name.rpartition("_alpha_")[2] for alpha, name in made.items()} == {0.0: "0", 0.5: "0.5", 1.0: "1"}


def test_what_does_not_fit(base, style):
    with pytest.raises(ValueError, match=r"alpha=1\.5: give a share of the style"):
        stylized(base, style, 1.5)
    with pytest.raises(ValueError, match="is no style but stunet:test: train one"):
        stylized(base, base, 0.5)
    other = dataclasses.replace(base, model=stylized(base, style, 0.5).model)
    with pytest.raises(ValueError, match="was fine-tuned from other spatial layers"):
        stylized(other, style, 0.5)
