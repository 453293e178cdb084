"""What super-resolution is conditioned on; DeepFloyd IF's conventions against diffusers where it is at hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lumiere_jax import train_step
from lumiere_jax.diffusion.low_resolution import augment, check_level, downsample, upsample, upsample_part
from lumiere_jax.diffusion.noise_schedule import CosineSchedule, DiscreteCosineSchedule


def test_downsample_is_the_mean_of_blocks():
    video = np.random.default_rng(0).normal(size=(2, 3, 4, 6, 3)).astype(np.float32)
    small = jax.jit(downsample, static_argnums=1)(video, 2)
    assert small.shape == (2, 3, 2, 3, 3)
    np.testing.assert_allclose(small[1, 2, 1, 0], video[1, 2, 2:4, :2].mean((0, 1)), rtol=1e-5)
    with pytest.raises(ValueError, match="4x6 frames cannot be reduced 4 times"):
        downsample(jnp.asarray(video), 4)


def test_upsample_aligns_the_corners():
    """A ramp from corner to corner stays one, and pixels between are interpolated from their neighbours alone."""
    rows, columns = np.linspace(-1, 1, 3), np.linspace(0, 5, 4)
    ramp = (rows[:, None] + columns)[None, None, ..., None].astype(np.float32)
    large = jax.jit(upsample, static_argnums=(1, 2))(ramp, 7, 13)
    expected = np.linspace(-1, 1, 7)[:, None] + np.linspace(0, 5, 13)
    np.testing.assert_allclose(large[0, 0, ..., 0], expected, atol=1e-6)
    spike = np.zeros((1, 1, 3, 3, 1), np.float32)
    spike[0, 0, 1, 1] = 1
    large = jax.jit(upsample, static_argnums=(1, 2))(spike, 5, 5)
    tent = [0, 0.5, 1, 0.5, 0]
    np.testing.assert_allclose(large[0, 0, ..., 0], np.outer(tent, tent), atol=1e-7)


def test_upsample_without_aligned_corners_shifts_nothing():
    """Against Pillow; the means of blocks of a ramp come back in their places, and a crop as its frame does."""
    video = np.random.default_rng(2).normal(size=(1, 1, 5, 7, 1)).astype(np.float32)
    enlarge = jax.jit(functools.partial(upsample, align_corners=False), static_argnums=(1, 2))
    large = enlarge(video, 20, 28)
    expected = Image.fromarray(video[0, 0, ..., 0]).resize((28, 20), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(large[0, 0, ..., 0], expected, atol=1e-6)
    ramp = np.add.outer(np.arange(32.0), 3 * np.arange(24.0))[None, None, ..., None].astype(np.float32)
    back = enlarge(downsample(jnp.asarray(ramp), 4), 32, 24)
    np.testing.assert_allclose(back[:, :, 2:-2, 2:-2], ramp[:, :, 2:-2, 2:-2], atol=1e-4)
    crop = enlarge(video[:, :, 1:4, 2:6], 12, 16)
    np.testing.assert_allclose(crop[:, :, 2:-2, 2:-2], large[:, :, 6:14, 10:22], atol=1e-6)


def test_against_diffusers(fixtures):
    """One clip noised to DeepFloyd IF's level 250, the other to level 0; the network is told the integers."""
    reference = np.load(fixtures / "if_sampling" / "sampling.npz")
    low_res, expected, noise, noised = (
        np.moveaxis(reference[name], 1, -1)[:, None]
        for name in ("lowres", "lowres_up", "lowres_noise", "lowres_noised_250_0")
    )
    schedule, level = DiscreteCosineSchedule(), jnp.array([0.251, 0.001])
    full_size = jax.jit(upsample, static_argnums=(1, 2))(low_res, 32, 48)
    np.testing.assert_allclose(full_size, expected, atol=1e-6)
    result = jax.jit(lambda *arrays: augment(*arrays, schedule))(full_size, level, noise)
    # diffusers takes 1 - alpha-bar in float32: 4e-5, rounded, at level 0.
    np.testing.assert_allclose(result, noised, atol=1e-5)
    np.testing.assert_array_equal(jax.jit(schedule.network_time)(level), [250, 0])


def test_every_integer_level_is_the_networks():
    """As a config gives it: level i is (i + 1) / 1000, rounded to float32."""
    levels = jax.jit(DiscreteCosineSchedule().network_time)(jnp.asarray((np.arange(1000) + 1) / 1000, jnp.float32))
    np.testing.assert_array_equal(levels, np.arange(1000))


class Recorder:
    """Stands where the model does and keeps what it is given."""

    def embed_text(self, tokens):
        return tokens

    def predict(self, x_t, time, text, low_res, noise_level):
        self.time, self.low_res, self.noise_level = time, low_res, noise_level
        return x_t


def test_training_tells_the_network_the_level_that_was_applied():
    video = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (64, 1, 4, 4, 3)), jnp.float32)
    batch = train_step.Batch(video, jnp.zeros((64, 2), jnp.int32))
    objective = train_step.Objective(DiscreteCosineSchedule(), low_res_factor=2, max_noise_level=0.02)
    key = jax.random.key(0)

    @jax.jit
    def record(video):
        model = Recorder()
        draws = train_step._draw(jnp.full((64,), 0.5), key, key, video, objective)
        train_step._loss(model, batch, draws, objective)
        return model.time, model.low_res, model.noise_level

    time, low_res, label = (np.asarray(a) for a in record(video))
    np.testing.assert_array_equal(time, 499)
    np.testing.assert_array_equal(label, np.rint(label))
    assert set(label) <= set(range(20))
    assert len(set(label)) > 10
    # alpha-bar at the integer label, from the published formula
    f = np.cos((np.arange(21) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[label.astype(int)].reshape(-1, 1, 1, 1, 1)
    clean = upsample(downsample(video, 2), 4, 4)
    noise = jax.random.normal(jax.random.split(key)[1], video.shape)
    np.testing.assert_allclose(low_res, np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * noise, atol=1e-6)


def test_levels_out_of_range():
    for schedule, good in ((DiscreteCosineSchedule(), (0.001, 0.251, 1.0)), (CosineSchedule(), (0.0, 0.1, 1.0))):
        for level in good:
            check_level("sampling.noise_level", level, schedule)
        for level in (-0.1, 1.5, 250.0):
            with pytest.raises(ValueError, match=rf"sampling.noise_level={level}: .*to 1"):
                check_level("sampling.noise_level", level, schedule)
    with pytest.raises(
        ValueError, match=r"noise_level=0.0: level i of .* \(i \+ 1\) / 1000; give a time from 0.001 to 1"
    ):
        check_level("sampling.noise_level", 0.0, DiscreteCosineSchedule())


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_part_of_the_enlarged_video_is_enlarged_alone(align_corners):
    video = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5, 6, 3)), jnp.float32)
    whole = upsample(video, 20, 24, align_corners=align_corners)
    part = jax.jit(
        lambda top, left: upsample_part(video[0], (20, 24), (top, left), (7, 9), align_corners=align_corners)
    )(11, 15)
    np.testing.assert_allclose(part, whole[0, :, 11:18, 15:24], atol=1e-6)
