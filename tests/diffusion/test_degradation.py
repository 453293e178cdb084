"""Blur against SciPy, compression against JPEG files that Pillow (libjpeg) writes and reads."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from lumiere_jax import train_step
from lumiere_jax.diffusion.degradation import blur, jpeg
from lumiere_jax.diffusion.low_resolution import downsample, upsample
from lumiere_jax.diffusion.noise_schedule import CosineSchedule


def picture(height, width, seed=0):
    """Smooth colours with some detail, as photographs have; uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (1.5, 1.5, 0.3))
    return np.rint(127.5 + 127.5 * np.clip(1.3 * smooth / np.abs(smooth).max(), -1, 1)).astype(np.uint8)


# ------------------------------------------------------------------------------------ blur


def test_blur_is_scipys():
    """Each clip by its own deviation; a frame's border as if there were nothing beyond it."""
    deviations = [0.0, 0.4, 1.0, 2.5]
    video = np.random.default_rng(0).normal(size=(4, 2, 24, 17, 3))
    blurred = np.asarray(jax.jit(blur)(jnp.asarray(video, jnp.float32), jnp.array(deviations)))
    np.testing.assert_array_equal(blurred[0], video[0].astype(np.float32))
    settings = {"mode": "constant", "truncate": 30}
    for clip, result, deviation in zip(video[1:], blurred[1:], deviations[1:], strict=True):
        sigma = (0, deviation, deviation, 0)
        weight = scipy.ndimage.gaussian_filter(np.ones_like(clip), sigma, **settings)
        expected = scipy.ndimage.gaussian_filter(clip, sigma, **settings) / weight
        np.testing.assert_allclose(result, expected, atol=3e-6)


# ------------------------------------------------------------------------------------ compression


def through_a_file(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(("height", "width"), [(64, 40), (61, 45), (5, 90)])
def test_jpeg_is_that_of_a_file(height, width):
    """To two grey levels, but for blocks that have a coefficient halfway between two steps, to a rounding.

    libjpeg computes in fixed point, so that it may round such a coefficient the other way.
    """
    qualities = np.array([1, 5, 10, 25, 49, 50, 75, 90, 95, 100])
    images = np.stack([picture(height, width, seed) for seed in range(len(qualities))])
    videos = jnp.asarray(images[:, None] / 127.5 - 1, jnp.float32)
    compressed = np.asarray(jax.jit(jpeg)(videos, jnp.asarray(qualities)))[:, 0]
    assert np.abs(compressed).max() <= 1
    for image, result, quality in zip(images, compressed, qualities, strict=True):
        expected = through_a_file(image, int(quality)).astype(int)
        off = np.abs(np.rint((result + 1) * 127.5) - expected)
        assert (off > 2).mean() < 0.08, quality
        assert off.mean() < 0.4, quality
        if quality < 100:  # the file did something that this was compared with
            assert np.abs(expected - image).mean() > 1.5


def test_jpeg_takes_each_frame_by_itself():
    first, second = (jnp.asarray(picture(16, 16, seed) / 127.5 - 1, jnp.float32) for seed in (0, 1))
    video = jnp.stack([first, second])[None]
    whole = jax.jit(jpeg)(video, jnp.array([20]))
    for frame in range(2):
        alone = jax.jit(jpeg)(video[:, frame : frame + 1], jnp.array([20]))
        np.testing.assert_allclose(whole[:, frame], alone[:, 0], atol=1e-6)


# ------------------------------------------------------------------------------------ in the training step


class Recorder:
    """Stands where the model does and keeps what it is given."""

    def embed_text(self, tokens):
        return tokens

    def predict(self, x_t, time, text, low_res, noise_level):
        self.low_res = low_res
        return x_t


CLIPS = np.random.default_rng(1).uniform(-1, 1, (64, 2, 16, 24, 3)).astype(np.float32)


def shown(**fields):
    """What training shows the network of clips without noise that could be seen, and the draws."""
    schedule = CosineSchedule(log_snr_max=40.0)
    objective = train_step.Objective(schedule, low_res_factor=2, max_noise_level=1e-9, **fields)
    batch = train_step.Batch(jnp.asarray(CLIPS), jnp.zeros((len(CLIPS), 2), jnp.int32))
    key = jax.random.key(0)

    @jax.jit
    def record(batch):
        model = Recorder()
        draws = train_step._draw(jnp.full(len(CLIPS), 0.5), key, key, batch.video, objective)
        train_step._loss(model, batch, draws, objective)
        return model.low_res, draws

    return record(batch)


def test_what_training_shows_the_network():
    """Blurred, then compressed, each clip by a draw of its own, and all of its frames alike; then enlarged."""
    low_res, draws = shown(max_blur=1.5, min_jpeg_quality=30, align_corners=False)
    assert draws.blur.shape == draws.jpeg_quality.shape == (64,)
    assert 0 <= draws.blur.min() < 0.2
    assert 1.3 < draws.blur.max() < 1.5
    assert 30 <= draws.jpeg_quality.min() < 35
    assert 95 < draws.jpeg_quality.max() <= 100
    assert abs(np.corrcoef(draws.blur, draws.jpeg_quality)[0, 1]) < 0.4
    small = jpeg(blur(downsample(jnp.asarray(CLIPS), 2), draws.blur), draws.jpeg_quality)
    expected = upsample(small, 16, 24, align_corners=False)
    off = np.abs(low_res - expected)
    assert off.mean() < 1e-3  # a coefficient halfway between two steps may be rounded the other way
    assert off[0].max() < 0.3


def test_each_by_itself():
    low_res, draws = shown(max_blur=1.5)
    assert draws.jpeg_quality is None
    expected = upsample(blur(downsample(jnp.asarray(CLIPS), 2), draws.blur), 16, 24)
    np.testing.assert_allclose(low_res, expected, atol=1e-5)
    _, draws = shown(min_jpeg_quality=100)
    assert draws.blur is None
    np.testing.assert_array_equal(draws.jpeg_quality, 100)


def test_without_degradation_the_program_has_none_of_it():
    """And the other draws are those of a run with it."""
    _, plain = shown()
    _, degraded = shown(max_blur=1.0, min_jpeg_quality=50)
    assert plain.blur is plain.jpeg_quality is None
    np.testing.assert_array_equal(plain.low_res_level, degraded.low_res_level)
    np.testing.assert_array_equal(plain.low_res_noise, degraded.low_res_noise)

    def operations(**fields):
        objective = train_step.Objective(CosineSchedule(), low_res_factor=2, **fields)
        batch = train_step.Batch(jnp.asarray(CLIPS), jnp.zeros((len(CLIPS), 2), jnp.int32))
        key = jax.random.key(0)

        def loss(batch):
            draws = train_step._draw(jnp.full(len(CLIPS), 0.5), key, key, batch.video, objective)
            return train_step._loss(Recorder(), batch, draws, objective)

        return str(jax.make_jaxpr(loss)(batch))

    assert operations().count("dot_general") == 2  # the enlargement
    assert operations(max_blur=1.0).count("dot_general") == 4
