"""Clips of which a part is given, by a conditional model and by one that was never told of conditions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_runs import random_run, write_run

from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.diffusion import condition, samplers
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.diffusion.noise_schedule import from_config
from lumiere_jax.models.conditioning import expand_first_convolution
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.conditional_generation import complete_videos, fitted
from lumiere_jax.pipelines.generation import replacing
from lumiere_jax.pipelines.text_to_video import sample_in_batches, sample_videos

PROMPTS = ["a red circle", "a star"]
FRAMES, SIZE = 4, 16


@pytest.fixture(scope="module")
def base():
    return random_run()


@pytest.fixture(scope="module")
def conditional():
    return random_run(conditional=True)


def clip(seed=0, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).uniform(-1, 1, (FRAMES, height, width, 3)).astype(np.float32)


def left_half(height=SIZE, width=SIZE):
    hole = np.zeros((height, width), np.float32)
    hole[:, : width // 2] = 1
    return hole


def test_a_new_conditional_model_is_its_base(base):
    """Whatever is given: the kernel of the new channels is zero."""
    unet = nnx.merge(*nnx.split(base.model.unet))
    model = TextToVideo(base.model.text_encoder, expand_first_convolution(unet, rngs=nnx.Rngs(0)))
    config = base.config.copy_and_resolve_references()
    with config.unlocked():
        config.conditioning = {"base": "", "masks": {}}
    new = dataclasses.replace(base, config=config, model=model)
    expected = sample_videos(base, PROMPTS, seed=3)
    given = condition.inpainting(clip(), left_half())
    np.testing.assert_array_equal(complete_videos(new, PROMPTS, given, seed=3), expected)


def test_what_is_given_is_seen_and_nothing_else(conditional):
    """What lies behind the mask makes no difference; what is given does, in the rest of the clip, too."""
    hole = left_half()
    given = condition.inpainting(clip(), hole)
    made = complete_videos(conditional, PROMPTS, given)
    behind = given._replace(video=np.where(given.mask > 0, given.video, clip(1)))
    np.testing.assert_array_equal(complete_videos(conditional, PROMPTS, behind), made)
    other = complete_videos(conditional, PROMPTS, condition.inpainting(clip(1), hole))
    assert np.abs(other - made)[..., : SIZE // 2, :].max() > 1e-2
    plain = sample_videos(conditional, PROMPTS)
    assert np.abs(plain - made).max() > 1e-2
    nothing = sample_videos(conditional, PROMPTS, given=condition.nothing_given(FRAMES, SIZE, SIZE))
    np.testing.assert_array_equal(nothing, plain)


def test_a_condition_for_each_prompt(conditional):
    each = [condition.image_to_video(clip(seed)[0], FRAMES) for seed in (0, 1)]
    together = condition.Condition(*(np.stack(parts) for parts in zip(*each, strict=True)))
    made = complete_videos(conditional, PROMPTS, together)
    for number, given in enumerate(each):
        alone = complete_videos(conditional, PROMPTS, given)[number]
        np.testing.assert_allclose(made[number], alone, atol=1e-5)
    batches = sample_in_batches(conditional, PROMPTS, seed=0, batch_size=1, given=together)
    np.testing.assert_allclose(np.concatenate([batch.videos for batch in batches]), made, atol=1e-3)


def test_known_pixels_are_exact_when_pasted(conditional):
    given = condition.image_to_video(clip()[0], FRAMES)
    made = complete_videos(conditional, PROMPTS, given)
    pasted = complete_videos(conditional, PROMPTS, given, paste_known=True)
    for video in pasted:
        np.testing.assert_array_equal(video[0], clip()[0])
    np.testing.assert_array_equal(pasted[:, 1:], made[:, 1:])


def test_larger_conditions_are_brought_to_the_runs_size(conditional):
    large = condition.inpainting(clip(height=48, width=96), left_half(48, 96))
    given = fitted(conditional, large)
    assert given.mask.shape == (FRAMES, SIZE, 32, 1)
    assert complete_videos(conditional, PROMPTS[:1], large).shape == (1, FRAMES, SIZE, 32, 3)
    assert fitted(conditional, given) is given


def test_zero_shot_keeps_what_is_given(base):
    """The last step of every sampler returns the prediction, which holds it; the rest of the clip follows it."""
    given = condition.inpainting(clip(), left_half())
    made = complete_videos(base, PROMPTS, given, zero_shot=True)
    for video in made:
        np.testing.assert_array_equal(video[:, :, SIZE // 2 :], given.video[:, :, SIZE // 2 :])
    again = complete_videos(base, PROMPTS, given, zero_shot=True, resample=3)
    np.testing.assert_array_equal(again[..., SIZE // 2 :, :], made[..., SIZE // 2 :, :])
    assert np.abs(again - made).max() > 1e-2
    other = complete_videos(base, PROMPTS, condition.inpainting(clip(1), left_half()), zero_shot=True)
    assert np.abs(other - made)[..., : SIZE // 2, :].max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver_pp_2m", "dpm_solver_pp_2m_sde", "heun"])
def test_what_is_given_has_the_noise_of_each_time(sampler):
    """The state there is alpha C + sigma noise at every time, whatever the denoiser says of it."""
    schedule, shape = from_config("cosine"), (1, 4, 64, 64, 3)
    noise = jax.random.normal(jax.random.key(0), shape)
    given = condition.Condition(0.7 * jnp.ones(shape), jnp.ones((*shape[:-1], 1)))
    denoise = replacing(lambda x, t: jnp.zeros_like(x), given)
    times = samplers.time_grid(6, schedule)
    plan = samplers.plan(sampler, schedule, times)
    x, previous = noise, jnp.zeros(shape)
    for index in range(plan.calls):
        step = plan.step(index)
        alpha, sigma = schedule.alpha_sigma(step.t)
        left = (x - alpha * 0.7) / sigma
        np.testing.assert_allclose([left.mean(), left.std()], [0, 1], atol=0.03)
        if plan.noise is None:
            np.testing.assert_allclose(left, noise, atol=2e-3)
        x0 = denoise(x, step.t)
        new = None if plan.noise is None else jax.random.normal(jax.random.key(index + 1), shape)
        x = samplers.advance(step, x, x0, noise=new, previous=previous)
        previous = x0
    np.testing.assert_allclose(x, 0.7, atol=1e-6)


def test_conditions_that_are_of_no_use(base, conditional):
    given = condition.image_to_video(clip()[0], FRAMES)
    with pytest.raises(ValueError, match=r"no conditional model: fine-tune it .*, or ask for zero_shot"):
        complete_videos(base, PROMPTS, given)
    with pytest.raises(ValueError, match="is a conditional model, which sees what is given: do without zero_shot"):
        complete_videos(conditional, PROMPTS, given, zero_shot=True)
    three = condition.Condition(*(np.stack([part] * 3) for part in given))
    with pytest.raises(ValueError, match="3 clips are given, but 2 prompts: give one for each, or one for all"):
        complete_videos(conditional, PROMPTS, three)
    with pytest.raises(ValueError, match="resample=2 is for what is given to no conditional model"):
        complete_videos(conditional, PROMPTS, given, resample=2)
    with pytest.raises(ValueError, match="nothing is given"):
        sample_videos(base, PROMPTS, zero_shot=True)
    with pytest.raises(
        ValueError, match=r"clips of \(5, 16, 16\) are asked for, but what is given has \[\(4, 16, 16\)"
    ):
        complete_videos(conditional, PROMPTS, given, frames=5)
    with pytest.raises(ValueError, match="only plain text-to-video is approximated"):
        complete_videos(conditional, PROMPTS, given, approximations=Approximations(half_rate_from=0.5))


def test_a_conditional_run_on_disk(conditional, tmp_path):
    write_run(conditional, tmp_path)
    given = condition.image_to_video(clip()[0], FRAMES)
    loaded = load_run(tmp_path)
    sees = loaded.model.padding_sees_tokens
    in_memory = TextToVideo(loaded.model.text_encoder, conditional.model.unet, padding_sees_tokens=sees)
    expected = complete_videos(dataclasses.replace(loaded, model=in_memory), PROMPTS, given)
    np.testing.assert_array_equal(complete_videos(loaded, PROMPTS, given), expected)
