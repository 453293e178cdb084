"""The cascade of keyframes and temporal super-resolution, on networks that were not trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_runs import random_run

from configs import keyframe_cascade as configs
from configs import stunet
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.conditioning import expand_first_convolution
from lumiere_jax.pipelines.keyframe_cascade import check_cascade, sample_cascade, window_starts, with_blanks
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.train_config import check_config

PROMPTS = ["a red circle", "a blue square"]


def changed(run, *, frames, fps, masks=None):
    config = run.config.copy_and_resolve_references()
    config.clip.update({"frames": frames, "fps": fps})
    if masks:
        config.conditioning.masks = masks
    return dataclasses.replace(run, config=config)


@pytest.fixture(scope="module")
def keyframes():
    return changed(random_run(), frames=4, fps=2.0)


@pytest.fixture(scope="module")
def between():
    return changed(random_run(conditional=True), frames=9, fps=8.0, masks={"every_fourth_frame": 1.0})


def test_keyframes_are_kept_and_windows_see_theirs(keyframes, between):
    """Each window, made anew by hand with the same noise, is where it belongs."""
    keys = sample_videos(keyframes, PROMPTS, seed=5)
    made = sample_cascade(keyframes, between, PROMPTS, seed=5)
    assert made.shape == (2, 13, *keys.shape[2:])
    np.testing.assert_array_equal(made[:, ::4], keys)
    given = with_blanks(keys)
    for clip in range(2):
        for window, start in enumerate((0, 4)):
            part = type(given)(*(each[clip, start : start + 9] for each in given))
            number = (1 << 30) + 2 * clip + window
            alone = sample_videos(between, [PROMPTS[clip]], seed=5, first_number=number, given=part)[0]
            theirs = [frame for frame in range(start, start + 9) if frame % 4 and (window or frame < 4)]
            for frame in theirs:
                np.testing.assert_allclose(made[clip, frame], alone[frame - start], atol=1e-4)


def test_noise_depends_on_the_number_alone(keyframes, between):
    both = sample_cascade(keyframes, between, PROMPTS, seed=2)
    second = sample_cascade(keyframes, between, PROMPTS[1:], seed=2, first_number=1)
    np.testing.assert_allclose(second[0], both[1], atol=1e-3)
    assert np.abs(both[0] - both[1]).max() > 1e-2


def test_keyframes_at_their_places():
    keys = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4, 3)).astype(np.float32)
    given = with_blanks(keys)
    assert given.mask.shape == (2, 9, 4, 4, 1)
    np.testing.assert_array_equal(np.flatnonzero(given.mask[0, :, 0, 0, 0]), [0, 4, 8])
    np.testing.assert_array_equal(given.video[:, [0, 4, 8]], keys)
    assert not given.video[:, [1, 2, 3, 5, 6, 7]].any()


@pytest.mark.parametrize(
    ("frames", "length", "starts"), [(9, 9, [0]), (17, 9, [0, 8]), (13, 9, [0, 4]), (77, 17, [0, 16, 32, 48, 60])]
)
def test_windows_cover_the_clip(frames, length, starts):
    assert window_starts(frames, length) == starts
    assert {frame for start in starts for frame in range(start, start + length)} == set(range(frames))
    assert all(start % 4 == 0 for start in starts)


def test_runs_that_make_no_cascade(keyframes, between):
    with pytest.raises(ValueError, match="is no temporal super-resolution: stunet:test"):
        check_cascade(keyframes, keyframes)
    with pytest.raises(ValueError, match=r"at 2 fps, random 16x16 at 16: they must have one size, and rates 1 to 4"):
        check_cascade(keyframes, changed(between, frames=9, fps=16.0))
    with pytest.raises(ValueError, match="makes 2 keyframes, which span 5 frames: fewer than the window of random, 9"):
        check_cascade(changed(keyframes, frames=2, fps=2.0), between)


@pytest.mark.parametrize("variant", ["", "_small", "_test", "_if_l"])
def test_configs_have_as_many_parameters_as_the_one_pass(variant):
    """But for the kernel over keyframes and mask; and cover the same clip."""
    one = stunet.get_config(variant[1:] or "demo")
    keys, between = (configs.get_config(f"{stage}{variant}") for stage in configs.STAGES)
    if not one.image_model.pretrained:
        for config in (keys, between):
            check_config(config)
    trained = [parameter_partition.split(abstract_model(config))[1] for config in (one, keys, between)]
    counts = list(map(parameter_partition.count, trained))
    new = parameter_partition.count(trained[2]["unet"]["conv_in"])
    assert counts[0] == counts[1] == counts[2] - new
    assert keys.clip.fps * 4 == between.clip.fps == one.clip.fps
    span = (keys.clip.frames - 1) * 4 + 1
    assert between.clip.frames <= span
    if variant != "_test":
        assert span <= one.clip.frames < span + 4


def test_unknown_stage():
    with pytest.raises(ValueError, match="has no variant 'between': use keyframes, keyframes_demo, "):
        configs.get_config("between")


def test_kernel_over_keyframes_starts_as_the_noisy_clips(keyframes):
    unet = expand_first_convolution(nnx.merge(*nnx.split(keyframes.model.unet)), kernel="pretrained", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 2, 16, 16, 3))
    seen = unet.conv_in(jnp.concatenate([0 * x, x, jnp.ones((*x.shape[:-1], 1))], -1))
    np.testing.assert_allclose(seen, unet.conv_in.spatial(x), atol=1e-5)
    config = configs.get_config("temporal_super_resolution_test")
    config.conditioning.kernel = "ones"
    with pytest.raises(ValueError, match=r"conditioning\.kernel='ones': use 'zeros' or 'pretrained'"):
        check_config(config)
