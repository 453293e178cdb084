"""Settings of a config, and super-resolution by a tiny network of DeepFloyd IF's stage II class."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_runs import random_run

from configs import ssr, text_to_image
from lumiere_jax.checkpoints.trained_run import Run, build_unet
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.diffusion.low_resolution import upsample
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.super_resolution import super_resolve
from lumiere_jax.pipelines.text_to_video import sample_in_batches, sample_videos, watch_denoising
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import train_tokenizer

IF_SAMPLING = {"sampler": "ddpm", "steps": 2, "spacing": "leading", "variance": "learned_range", "threshold": "dynamic"}


def stage_2_config():
    """The image super-resolution model of the `test` variant, with DeepFloyd IF's output and sampling."""
    fields = ssr.get_config("test")
    config = fields.image_model.copy_and_resolve_references()
    config.clip = fields.clip
    config.multidiffusion = fields.multidiffusion
    config.unet.update({"out_channels": 6, "layers_per_block": (1, 1)})
    config.diffusion.update({"schedule": "discrete_cosine", "log_snr_shift": 0.0, "prediction": "epsilon"})
    config.sampling.update({**IF_SAMPLING, "guidance": 4.0, "noise_level": 0.251})
    return config


@pytest.fixture(scope="module")
def stage_2():
    config = stage_2_config()
    text_encoder = T5Encoder(
        T5Config(vocab_size=300, emb_dim=config.unet.text_dim, num_heads=1, num_layers=1, head_dim=4, mlp_dim=8),
        rngs=nnx.Rngs(0),
    )
    tokenizer = train_tokenizer(["a red circle"], vocab_size=300)
    model = TextToVideo(text_encoder, build_unet(config))
    return Run(config, tokenizer, model, 0, pathlib.Path("stage_2"), make_mesh())


def test_super_resolution_of_ifs_class(stage_2, monkeypatch):
    """More frames than a window, by guided DDPM with learned variance; the network is told IF's integers."""
    told = []
    forward = UNet2D.predict_with_deep_features

    def recording(self, x, time, text, *, noise_level, **deep):
        jax.debug.callback(lambda *values: told.append([np.asarray(v) for v in values]), x, time, noise_level)
        return forward(self, x, time, text, noise_level=noise_level, **deep)

    monkeypatch.setattr(UNet2D, "predict_with_deep_features", recording)
    videos = np.random.default_rng(0).uniform(-1, 1, (1, 5, 8, 8, 3)).astype(np.float32)
    result = super_resolve(stage_2, videos, ["a red circle"])
    jax.effects_barrier()
    assert result.shape == (1, 5, 16, 16, 3)
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= 1
    clean = upsample(jnp.asarray(videos), 16, 16)
    assert sorted(float(time[0]) for _, time, _ in told) == [0, 500]
    for x, _, noise_level in told:
        assert x.shape == (2 * 2, 4, 16, 16, 6)  # guidance doubles two windows
        np.testing.assert_array_equal(noise_level, 250)
        # alpha-bar of level 250, from the published formula (without its cap, which acts at the end alone)
        alpha_bar = np.cos((0.251 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
        noise = (x[0, ..., 3:] - np.sqrt(alpha_bar) * clean[0, :4]) / np.sqrt(1 - alpha_bar)
        np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.1)
    monkeypatch.undo()
    # From the same noises with the posterior's variance: other clips.
    config = stage_2.config.copy_and_resolve_references()
    config.sampling.variance = "posterior"
    fixed = dataclasses.replace(stage_2, config=config)
    assert np.abs(super_resolve(fixed, videos, ["a red circle"]) - result).max() > 1e-3


def test_a_negative_prompt_and_how_a_clip_comes_about():
    """Without any weight on the prompt, only what guidance leads away from is left."""
    run, clip = random_run(), {"seed": 1, "frames": 3, "size": (8, 8)}
    videos, denoising = watch_denoising(
        run, ["a red circle"], guidance_weight=0.0, negative_prompt="a blue star", **clip
    )
    expected = sample_videos(run, ["a blue star"], guidance_weight=1.0, **clip)
    np.testing.assert_allclose(videos, expected, atol=2e-4)
    assert np.abs(videos - sample_videos(run, ["a red circle"], guidance_weight=1.0, **clip)).max() > 1e-2
    assert denoising.shape == (1, 2, 8, 8, 3)
    np.testing.assert_allclose(denoising[:, -1], videos[:, 1], atol=1e-6)
    assert np.abs(denoising[:, 0] - denoising[:, 1]).max() > 1e-2
    with pytest.raises(ValueError, match="negative_prompt='a blue star' does nothing without guidance"):
        sample_videos(run, ["a red circle"], guidance_weight=1.0, negative_prompt="a blue star", **clip)


def test_approximations_change_clips():
    """And super-resolution, which has none, says so."""
    run, clip = random_run(), {"seed": 1, "frames": 4, "size": (8, 8), "steps": 4}
    exact = sample_videos(run, ["a red circle"], **clip)
    for approximations in (Approximations(2), Approximations(half_rate_from=0.5)):
        videos = sample_videos(run, ["a red circle"], approximations=approximations, **clip)
        assert np.isfinite(videos).all()
        assert 1e-4 < np.abs(videos - exact).mean() < np.abs(exact - exact.mean()).mean()
    with pytest.raises(ValueError, match="only text-to-video is approximated, not super-resolution"):
        sampling_settings(stage_2_config(), approximations=Approximations(2))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"frames": 3, "window": (4, 1)}, "window=4 is longer than the clip, which has 3 frames"),
        ({"frames": 0}, "frames=0 and size=.* must be positive"),
        ({"guidance_weight": 1.0, "negative_prompt": "a blue star"}, "negative_prompt='a blue star' does nothing"),
        ({"approximations": Approximations(half_rate_from=0.5), "frames": 3}, "give an even number, not 3"),
        ({"approximations": Approximations(2, 3)}, "shallow_layers=3: this network has 2"),
        ({"steps": 0}, "steps=0: sampling takes at least one step"),
    ],
)
def test_batches_that_cannot_be_sampled(choices, message):
    """They raise when they are asked for, not when the first clip is."""
    with pytest.raises(ValueError, match=message):
        sample_in_batches(random_run(), ["a red circle"], seed=0, **choices)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("unet.out_channels", 3, "sampling.variance='learned_range' needs a network with 6 .* this one has 3"),
        ("sampling.noise_level", 0.0, r"sampling.noise_level=0.0: level i .* give a time from 0.001 to 1"),
        ("sampling.noise_level", 250.0, "sampling.noise_level=250.0"),
        ("diffusion.schedule", "cosine", "this one is continuous"),
    ],
)
def test_configs_that_cannot_be_sampled(field, value, message):
    config = stage_2_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        sampling_settings(config)


def test_sampling_of_configs_with_and_without_the_newer_fields():
    """Runs from before these fields are sampled as they were."""
    for module, maximum in ((text_to_image, 1.5), (ssr, 1.0)):
        config = module.get_config("demo")
        image = config.get("image_model", config)
        settings = sampling_settings(image)
        assert (settings.threshold_maximum, settings.threshold_percentile) == (maximum, 0.95)
        assert (settings.variance, settings.spacing, settings.learns_variance) == ("posterior", "uniform", False)
        for field in ("threshold_maximum", "threshold_percentile", "variance", "spacing"):
            del image.sampling[field]
        assert sampling_settings(image) == settings


def test_a_caller_may_choose_another_sampler():
    config = stage_2_config()
    assert sampling_settings(config).learns_variance
    assert not sampling_settings(config, sampler="ddim").learns_variance
