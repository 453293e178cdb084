"""The sweep over alpha: what is measured, drawn and read."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from random_runs import random_run

from benchmarks import style_alpha
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.stylized_generation import spatial_layers_hash
from lumiere_jax.pipelines.video_editing import image_model_of


def test_a_style_that_paints_all_white(tmp_path):
    """Clips come nearer to the style with alpha, and stand still at its end."""
    run = random_run()
    image = image_model_of(run)
    unet = nnx.merge(*nnx.split(image.model.unet))
    unet.conv_out.kernel = nnx.Param(0 * unet.conv_out.kernel[...])
    unet.conv_out.bias = nnx.Param(0 * unet.conv_out.bias[...] + 5.0)
    config = image.config.copy_and_resolve_references()
    config.style = {"base": "", "zoom": 1.5, "base_unet": spatial_layers_hash(run)}
    style = dataclasses.replace(image, config=config, model=TextToVideo(image.model.text_encoder, unet))
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    images = style_alpha.read_images(tmp_path, 24)
    np.testing.assert_array_equal(images, np.ones((1, 24, 24, 3)))
    rows, shown = style_alpha.measure(run, style, images, ["a red circle", "a star"], [0.0, 1.0])
    assert rows[1]["style distance"] < 1e-3 < 0.1 < rows[0]["style distance"]
    assert rows[1]["motion"] < 1e-3 < 0.01 < rows[0]["motion without flicker"] <= rows[0]["motion"]
    assert [clip.shape for clip in shown] == [(4, 16, 16, 3)] * 2
    style_alpha.plot(rows, 0.1, tmp_path / "plot.png")
    assert np.asarray(Image.open(tmp_path / "plot.png")).std() > 1


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="there is no image"):
        style_alpha.read_images(tmp_path, 24)
