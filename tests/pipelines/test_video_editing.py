"""SDEdit: where it starts, how many steps it takes, and its two ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_runs import random_run

from lumiere_jax.diffusion import samplers
from lumiere_jax.diffusion.clip_noise import clip_key
from lumiere_jax.diffusion.noise_schedule import from_config
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.pipelines.video_editing import edit_videos, image_model_of

PROMPTS = ["a red circle", "a star"]


@pytest.fixture(scope="module")
def run():
    return random_run()


@pytest.fixture(scope="module")
def originals():
    return np.random.default_rng(0).uniform(-1, 1, (2, 4, 16, 16, 3)).astype(np.float32)


def test_the_tail_of_a_grid():
    schedule = from_config("cosine")
    grid = samplers.time_grid(4, schedule)
    for start, expected in (
        (1.0, [1, 0.75, 0.5, 0.25, 0]),
        (0.75, [0.75, 0.5, 0.25, 0]),
        (0.6, [0.6, 0.5, 0.25, 0]),
        (0.25, [0.25, 0]),
        (0.01, [0.01, 0]),
    ):
        assert samplers.tail(grid, start, schedule).tolist() == expected
    levels = from_config("discrete_cosine", 0.0)
    leading = samplers.time_grid(10, levels, "leading")
    assert samplers.tail(leading, 1.0, levels) is leading
    assert samplers.tail(leading, 0.5, levels)[0] == 0.5
    np.testing.assert_allclose(samplers.tail(leading, 0.25012, levels)[:3], [0.25, 0.201, 0.101])
    for start in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match=f"start={start}: give a diffusion time above 0"):
            samplers.tail(grid, start, schedule)


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 8), (0.5, 4), (0.51, 5), (0.125, 1), (0.001, 1)])
def test_the_number_of_steps_is_the_strengths_share(run, strength, calls):
    assert sampling_settings(run.config, steps=8, start=strength).calls == calls


def test_strength_0_returns_the_clips_and_strength_1_ignores_them(run, originals):
    np.testing.assert_array_equal(edit_videos(run, originals, PROMPTS, strength=0.0), originals)
    expected = sample_videos(run, PROMPTS, seed=5)
    np.testing.assert_array_equal(edit_videos(run, originals, PROMPTS, strength=1.0, seed=5), expected)


def test_a_clip_is_taken_up_at_the_noise_level_of_the_strength(run, originals):
    """Of one step the result is the prediction at that level: the network is asked for it here, without guidance."""
    strength, key = 0.3, jax.random.key(7)
    edited = edit_videos(run, originals, PROMPTS, strength=strength, seed=7, steps=2, guidance_weight=1.0)
    settings = sampling_settings(run.config, steps=2, guidance_weight=1.0, start=strength)
    assert settings.calls == 1
    alpha, sigma = settings.schedule.alpha_sigma(jnp.asarray(strength))
    noise = np.stack([jax.random.normal(clip_key(key, 0, number), originals.shape[1:]) for number in range(2)])
    text = run.model.embed_text(jnp.asarray(run.tokenizer.encode(PROMPTS, run.config.text.length)[0]))

    def predict(x_t, t):
        return run.model.predict(x_t, jnp.full(2, settings.schedule.network_time(t)), text)

    expected = settings.to_x0(predict)(alpha * originals + sigma * noise, jnp.asarray(strength))
    np.testing.assert_allclose(edited, expected, atol=1e-4)


def test_frame_by_frame_each_frame_is_by_itself(run, originals):
    other = originals.copy()
    other[:, 0] *= -1
    choices = {"strength": 0.5, "steps": 2}
    made, changed = (edit_videos(run, clips, PROMPTS, frame_by_frame=True, **choices) for clips in (originals, other))
    np.testing.assert_allclose(made[:, 1:], changed[:, 1:], atol=1e-6)
    assert np.abs(made[:, 0] - changed[:, 0]).max() > 1e-3
    together, changed = (edit_videos(run, clips, PROMPTS, **choices) for clips in (originals, other))
    assert np.abs(together[:, 1] - changed[:, 1]).max() > 1e-3


def test_what_cannot_be_edited(run, originals):
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="give 0, which changes nothing, to 1, which keeps nothing"):
            edit_videos(run, originals, PROMPTS, strength=strength)
    with pytest.raises(ValueError, match="2 videos and 1 prompts"):
        edit_videos(run, originals, PROMPTS[:1], strength=0.5)
    with pytest.raises(ValueError, match=r"start=0\.5 is where an original clip is taken up, and there is none"):
        sample_videos(run, PROMPTS, start=0.5)
    with pytest.raises(ValueError, match="is an image model already"):
        image_model_of(image_model_of(run))
