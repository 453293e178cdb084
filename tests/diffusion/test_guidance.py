import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import classifier_free_guidance, dynamic_threshold, static_threshold
from lumiere_jax.diffusion.noise_schedule import DiscreteCosineSchedule
from lumiere_jax.diffusion.prediction import x0_denoiser


def test_guidance():
    conditional, unconditional = jnp.asarray(
        np.random.default_rng(0).normal(size=(2, 2, 3, 4, 4, 3)).astype(np.float32)
    )
    x_t, t = jnp.zeros_like(conditional), jnp.array(0.5)
    for weight in (0.0, 2.5, 7.0):
        guided = classifier_free_guidance(lambda x, t: (conditional, unconditional), weight)(x_t, t)
        expected = np.float64(unconditional) + weight * (np.float64(conditional) - np.float64(unconditional))
        np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=3e-6)
    exact = classifier_free_guidance(lambda x, t: (conditional, unconditional), 1.0)(x_t, t)
    np.testing.assert_array_equal(exact, conditional)


def test_rescaled_guidance():
    generator = np.random.default_rng(1)
    conditional, unconditional = np.float32(generator.normal(0.3, 0.5, size=(2, 2, 3, 4, 4, 3)))
    x_t = jnp.zeros_like(conditional)

    def guided(share):
        pair = functools.partial(lambda x, t: (jnp.asarray(conditional), jnp.asarray(unconditional)))
        return classifier_free_guidance(pair, 5.0, share)(x_t, jnp.array(0.5))

    mixed = np.float64(unconditional) + 5 * (np.float64(conditional) - unconditional)
    np.testing.assert_allclose(guided(0.0), mixed, atol=1e-5)
    for clip in range(2):  # Lin et al. 2024, eq. 15-16, of each clip by itself
        rescaled = mixed[clip] * conditional[clip].std() / mixed[clip].std()
        np.testing.assert_allclose(guided(0.7)[clip], 0.7 * rescaled + 0.3 * mixed[clip], rtol=1e-4, atol=1e-5)


def test_guidance_hands_on_conditioning():
    guided = classifier_free_guidance(lambda x, t, mask: (x + t * mask, x), 3.0)
    x, mask = jnp.ones((1, 2, 1, 1, 1)), jnp.full((1, 2, 1, 1, 1), 2.0)
    np.testing.assert_allclose(guided(x, jnp.array(0.5), mask), 1 + 3 * 0.5 * 2)


def test_learned_variance_is_the_conditional_one_unguided():
    conditional, unconditional = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4, 4, 6)))
    x_t, t = jnp.zeros((2, 3, 4, 4, 3)), jnp.array(0.5)
    guided = classifier_free_guidance(lambda x, t: (conditional, unconditional), 7.0)(x_t, t)
    np.testing.assert_array_equal(guided[..., 3:], conditional[..., 3:])
    expected = 7 * conditional[..., :3] - 6 * unconditional[..., :3]
    np.testing.assert_allclose(guided[..., :3], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 2, 5, 6, 3), (4, 5, 6, 3)])
@pytest.mark.parametrize(("percentile", "maximum"), [(0.95, 1.5), (0.9, 3.0), (0.95, 1.0)])
def test_dynamic_threshold_is_per_clip(shape, percentile, maximum):
    # scales so that s is 1 (all in range), between, and at its maximum
    scale = np.float32([0.2, 0.6, 1.0, 5.0]).reshape(-1, *(1,) * (len(shape) - 1))
    x0 = np.random.default_rng(1).normal(size=shape).astype(np.float32) * scale
    result = np.asarray(dynamic_threshold(jnp.asarray(x0), percentile, maximum))
    scales = []
    for clip, thresholded in zip(x0, result, strict=True):
        scales.append(float(np.clip(np.quantile(np.abs(clip), percentile), 1, maximum)))
        np.testing.assert_allclose(thresholded, np.clip(clip, -scales[-1], scales[-1]) / scales[-1], rtol=1e-6)
    assert scales[0] == 1
    assert scales[-1] == maximum


def test_dynamic_threshold_against_diffusers(fixtures):
    """DeepFloyd IF's stage I: epsilon -> x0 -> thresholded, at four noise levels.

    The reference takes sigma from float32 1 - alpha^2: 5e-6 at level 10.
    """
    reference = np.load(fixtures / "if_sampling" / "sampling.npz")
    x_t, epsilon = (
        jnp.asarray(np.moveaxis(a, 1, -1)) for a in (reference["step_sample"], reference["step_model_output"][:, :3])
    )
    denoise = jax.jit(
        lambda t: x0_denoiser(lambda x, t: epsilon, DiscreteCosineSchedule(), "epsilon", dynamic_threshold)(x_t, t)
    )
    for level in (990, 500, 10, 0):
        x0 = denoise(jnp.float32((level + 1) / 1000))
        np.testing.assert_allclose(x0, np.moveaxis(reference[f"step{level}_x0"], 1, -1), atol=1e-5)


def test_static_threshold():
    np.testing.assert_array_equal(static_threshold(jnp.array([-3.0, -0.5, 0.5, 1.5])), [-1, -0.5, 0.5, 1])


def test_errors():
    x0 = jnp.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match="percentile must be in"):
        dynamic_threshold(x0, percentile=95.0)
    with pytest.raises(ValueError, match=r"maximum must be at least 1, got 0\.5"):
        dynamic_threshold(x0, maximum=0.5)
