"""The variants of configs/ssr.py that are trained from nothing: they can be trained, and their sizes fit together."""

import pytest

from configs import ssr
from lumiere_jax import train_config, train_setup
from lumiere_jax.data.moving_shapes import BUILDER_CONFIGS

FROM_NOTHING = ("demo", "demo_4x", *ssr.EFFICIENT, "test")


@pytest.mark.parametrize("variant", FROM_NOTHING)
def test_both_stages_can_be_trained(variant):
    config = ssr.get_config(variant)
    for stage in (config, config.image_model):
        train_config.check_config(stage)
        assert stage.diffusion.low_res_factor == config.diffusion.low_res_factor > 1
        assert (stage.clip.size, stage.clip.crop_from) == (config.clip.size, config.clip.crop_from)


@pytest.mark.parametrize("variant", ["demo_4x", *ssr.EFFICIENT])
def test_crops_are_enlarged_as_frames_are(variant):
    """With aligned corners a crop would be shifted against its frame."""
    config = ssr.get_config(variant)
    assert config.clip.crop_from > config.clip.size
    assert not train_setup.make_objective(config).align_corners


@pytest.mark.parametrize(("variant", "factor"), [("efficient", 8), ("efficient_4x", 4)])
def test_the_efficient_ones_end_at_1024(variant, factor):
    config = ssr.get_config(variant)
    assert (config.diffusion.low_res_factor, config.clip.crop_from, config.dataset.stored_size) == (factor, 1024, 1024)
    assert config.dataset.stored_frames >= config.clip.frames


def test_clips_of_the_demo():
    """As large as crops are taken from, long enough, and all decoded ones fit into the cache."""
    config = ssr.get_config("demo_4x")
    clips = BUILDER_CONFIGS[config.dataset.path]
    assert clips.size == config.clip.crop_from
    assert clips.duration >= config.clip.frames / config.clip.fps
    assert 3 * clips.size**2 * clips.frames * clips.train <= config.dataset.cache_bytes
