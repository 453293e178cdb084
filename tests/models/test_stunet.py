"""Inflation: a new STUNet is the image model on still clips, at any length; each temporal layer against float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumiere_jax.models import parameter_partition, temporal
from lumiere_jax.models.layers import TemporalConv
from lumiere_jax.models.stunet import deflate, inflate
from lumiere_jax.models.temporal import TemporalConfig, TemporalParam
from lumiere_jax.models.unet2d import UNet2D, UNet2DConfig

# Four levels as the paper's backbone, so that the third resize keeps the frames.
IMAGE = UNet2DConfig(
    block_out_channels=(4, 4, 8, 8),
    layers_per_block=(1, 1, 1, 1),
    cross_attention=(False, False, True, True),
    attention_head_dim=4,
    norm_num_groups=2,
    text_dim=8,
    cross_attention_dim=32,
    text_pooling_heads=2,
)
TEMPORAL = TemporalConfig(strides=(2, 2, 1), norm_groups=2, attention_head_dim=4)
TEXT = jax.random.normal(jax.random.key(5), (2, 3, 8))
TIME = jnp.array([10.0, 600.0])


def randomised(module, seed=0):
    """Every parameter random, so that no layer hides behind a zero initialisation."""
    graphdef, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, noisy))


@functools.cache
def image_model():
    return randomised(UNet2D(IMAGE, rngs=nnx.Rngs(0)))


def inflated(config=TEMPORAL):
    return inflate(nnx.merge(*nnx.split(image_model())), config, rngs=nnx.Rngs(1))


@jax.jit
def apply(graphdef, state, video):
    return nnx.merge(graphdef, state)(video, TIME, TEXT)


def run(unet, video):
    return np.asarray(apply(*nnx.split(unet), video))


def still_clip(frames, height=8, width=16):
    image = jax.random.normal(jax.random.key(7), (2, 1, height, width, 3))
    return jnp.broadcast_to(image, (2, frames, height, width, 3)), image


@pytest.mark.parametrize("frames", [8, 5])
def test_new_stunet_is_the_image_model_on_still_clips(frames):
    video, image = still_clip(frames)
    expected = np.broadcast_to(run(image_model(), image), (2, frames, 8, 16, 3))
    np.testing.assert_allclose(run(inflated(), video), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("init", ["tent", "he"])
def test_other_initialisations_break_the_identity(init):
    video, image = still_clip(8)
    expected = np.broadcast_to(run(image_model(), image), video.shape)
    other = dataclasses.replace(TEMPORAL, resampler_init=init)
    assert np.abs(run(inflated(other), video) - expected).max() > 0.1


def test_down_sampling_strides_rather_than_averages():
    # In a new STUNet the coarsest level sees frames 0 and 4 of 8 alone, so frames 1, 2, 3 change nobody but themselves.
    video = jax.random.normal(jax.random.key(3), (2, 8, 8, 16, 3))
    stunet = inflated()
    change = np.abs(run(stunet, video.at[:, 1:4].add(1.0)) - run(stunet, video)).max(axis=(0, 2, 3, 4))
    assert (change[[0, 4, 5, 6, 7]] < 1e-5).all()
    assert (change[1:4] > 1e-3).all()


def test_deflate_returns_the_image_model_frame_by_frame():
    stunet = randomised(inflated(), seed=2)
    image = deflate(stunet)
    assert stunet.is_inflated
    assert not image.is_inflated
    video = jax.random.normal(jax.random.key(4), (2, 3, 8, 16, 3))
    together = run(image, video)
    for frame in range(3):
        np.testing.assert_allclose(together[:, frame : frame + 1], run(image, video[:, frame : frame + 1]), atol=2e-5)


def test_frames_influence_each_other_once_temporal_layers_are_trained():
    stunet = randomised(inflated(), seed=3)
    video = jax.random.normal(jax.random.key(4), (2, 8, 8, 16, 3))
    change = np.abs(run(stunet, video.at[:, 7].add(1.0)) - run(stunet, video)).max(axis=(0, 2, 3, 4))
    assert (change > 1e-4).all()


def test_only_the_added_parameters_are_trained():
    _, trained, frozen = parameter_partition.split(inflated())
    image = nnx.to_pure_dict(nnx.state(image_model()))
    assert parameter_partition.count(frozen) == parameter_partition.count(image)
    assert parameter_partition.count(trained) > 0
    assert parameter_partition.trained(image_model()) is nnx.Param
    assert parameter_partition.count(parameter_partition.split(parameter_partition.freeze(image_model_copy()))[1]) == 0


def image_model_copy():
    return nnx.merge(*nnx.split(image_model()))


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 0)])
def test_wrong_strides_are_refused(strides):
    with pytest.raises(ValueError, match="strides"):
        inflated(TemporalConfig(strides=strides))


# ------------------------------------------------------------------------------------ against float64 NumPy


def convolve_time(x, kernel, bias):
    """Zero-padded convolution over axis 1, straight from the definition."""
    taps = len(kernel)
    padded = np.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0), (0, 0), (0, 0)))
    return sum(padded[:, k : k + x.shape[1]] @ kernel[k] for k in range(taps)) + bias


def parameters(module):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(module)))


def test_temporal_convolution_equals_its_definition():
    with jax.enable_x64(True):
        conv = randomised(TemporalConv(4, 6, param=TemporalParam, rngs=nnx.Rngs(0)))
        x = np.random.default_rng(0).normal(size=(2, 5, 3, 2, 4))
        p = parameters(conv)
        conv = nnx.merge(nnx.graphdef(conv), jax.tree.map(jnp.asarray, p))
        np.testing.assert_allclose(conv(jnp.asarray(x)), convolve_time(x, p["kernel"], p["bias"]), atol=1e-12)


def test_temporal_attention_equals_its_definition():
    with jax.enable_x64(True):
        layer = randomised(temporal.TemporalAttention(8, 4, rngs=nnx.Rngs(0)))
        p = parameters(layer)
        layer = nnx.merge(nnx.graphdef(layer), jax.tree.map(jnp.asarray, p))
        x = np.random.default_rng(1).normal(size=(1, 5, 1, 2, 8))
        out = np.asarray(layer(jnp.asarray(x)))
    for pixel in range(2):
        frames = x[0, :, 0, pixel]
        normal = (frames - frames.mean(-1, keepdims=True)) / np.sqrt(frames.var(-1, keepdims=True) + 1e-5)
        qkv = (normal * p["norm"]["scale"] + p["norm"]["bias"]) @ p["to_qkv"]["kernel"] + p["to_qkv"]["bias"]
        q, k, v = qkv.reshape(5, 3, 2, 4).transpose(1, 2, 0, 3)
        result = np.concatenate([one_head(q[h], k[h], v[h]) for h in range(2)], axis=-1)
        expected = frames + result @ p["to_out"]["kernel"] + p["to_out"]["bias"]
        np.testing.assert_allclose(out[0, :, 0, pixel], expected, atol=1e-6)


def one_head(q, k, v):
    """Attention over frames with pairs of channels turned by frame index times frequency, as complex numbers."""
    turn = np.exp(1j * np.outer(np.arange(len(q)), [1.0, 0.01]))

    def turned(x):
        return (x[:, 0::2] + 1j * x[:, 1::2]) * turn

    logits = (turned(q) @ turned(k).conj().T).real / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v
