"""The Space-Time U-Net: at any number of frames the flow of paper Fig. 4a, and before training the image model.

Every clip here has an odd aspect ratio (28x16 pixels: 224x128 in proportion) that the four levels have to pad.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import temporal_definitions as definitions
from flax import nnx
from random_unets import randomised

from lumiere_jax.abstract_model import OneKey, abstract_unet
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import deflate, inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.unet2d_config import UNet2DConfig

pytestmark = pytest.mark.usefixtures("float64")

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
HEIGHT, WIDTH = 16, 28
LENGTHS = (1, 2, 3, 5, 7)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


TEXT, TIME = normal(2, 3, 8), np.array([10.0, 600.0])


@functools.cache
def image_model():
    return randomised(abstract_unet(IMAGE))


def inflated(config=TEMPORAL):
    """A new STUNet over the image model: nothing in it is trained."""
    return inflate(nnx.merge(*nnx.split(image_model())), config, rngs=OneKey(0))


@functools.cache
def trained():
    """A STUNet with random temporal layers over the image model, and the image model as it went in."""
    stunet = randomised(inflated(), seed=1)
    graphdef, temporal, _ = parameter_partition.split(stunet)
    return nnx.merge(graphdef, temporal, parameter_partition.split(inflated())[2])


@jax.jit
def apply(graphdef, state, video):
    return nnx.merge(graphdef, state)(video, jnp.asarray(TIME), jnp.asarray(TEXT))


def run(unet, video):
    out = np.asarray(apply(*nnx.split(unet), jnp.asarray(video)))
    assert out.dtype == np.float64
    return out


def still_clip(frames):
    image = normal(2, 1, HEIGHT, WIDTH, 3, seed=7)
    return np.repeat(image, frames, axis=1), image


def moving_clip(frames):
    return normal(2, frames, HEIGHT, WIDTH, 3, seed=4)


# ------------------------------------------------------------------------------------ the flow of Fig. 4a


@jax.jit
def apply_layer(layer, frame, embedding, context):
    return layer(frame, embedding, context)


def hand_written(stunet, video):
    """Fig. 4a over the module tree: the frozen layers see one frame at a time, the temporal ones are NumPy."""
    embedding, context = stunet.condition(jnp.asarray(TIME), jnp.asarray(TEXT), None, None)

    def spatial(layer, x):
        frames = [apply_layer(layer, jnp.asarray(x[:, [t]]), embedding, context) for t in range(x.shape[1])]
        return np.concatenate(frames, axis=1)

    def convolution_block(block, x):
        p = definitions.parameters(block)
        return definitions.convolution_block(p, spatial(block.spatial, x), IMAGE.act_fn, TEMPORAL.norm_groups)

    def attention_block(block, x):
        return definitions.attention_block(definitions.parameters(block), spatial(block.spatial, x), head_dim=4)

    def shorter(resize, x, stride):
        return definitions.down_sampling(definitions.parameters(resize), spatial(resize.spatial, x), stride)

    def longer(resize, x, stride, frames):
        h = definitions.up_sampling(definitions.parameters(resize), spatial(resize.spatial, x), stride)
        return h[:, np.arange(frames)]

    fine, middle, coarse, coarsest = stunet.down
    below = -video.shape[2] % 8, -video.shape[3] % 8
    h = np.pad(video, ((0, 0), (0, 0), (0, below[0]), (0, below[1]), (0, 0)), mode="edge")
    frames = video.shape[1]
    half = (frames + 1) // 2
    conv_in = definitions.space_convolution(definitions.parameters(stunet.conv_in), h)
    a = convolution_block(fine.layers[0], conv_in)
    a_down = shorter(fine.resize, a, 2)
    b = convolution_block(middle.layers[0], a_down)
    b_down = shorter(middle.resize, b, 2)
    c = convolution_block(coarse.layers[0], b_down)
    c_down = shorter(coarse.resize, c, 1)
    d = attention_block(coarsest.layers[0], c_down)
    h = attention_block(stunet.middle, d)

    def up(level, block, h, *skips):
        for layer, skip in zip(level.layers, skips, strict=True):
            h = block(layer, np.concatenate([h, skip], axis=-1))
        return h

    coarsest, coarse, middle, fine = stunet.up
    h = longer(coarsest.resize, up(coarsest, attention_block, h, d, c_down), 1, (half + 1) // 2)
    h = longer(coarse.resize, up(coarse, convolution_block, h, c, b_down), 2, half)
    h = longer(middle.resize, up(middle, convolution_block, h, b, a_down), 2, frames)
    h = up(fine, convolution_block, h, a, conv_in)
    h = definitions.group_normalisation(definitions.parameters(stunet.conv_norm_out), h, IMAGE.norm_num_groups)
    h = definitions.activation(IMAGE.act_fn, h)
    h = definitions.space_convolution(definitions.parameters(stunet.conv_out), h)
    return h[:, :, : video.shape[2], : video.shape[3]]


@pytest.mark.parametrize("frames", LENGTHS)
def test_flow(frames):
    """One frame too: the image model plus its temporal layers on one frame."""
    video = moving_clip(frames)
    out = run(trained(), video)
    assert out.shape == video.shape
    np.testing.assert_allclose(out, hand_written(trained(), video), atol=1e-9, rtol=0)


@functools.partial(jax.jit, static_argnames=("graphdef", "shallow"))
def apply_with_deep_features(graphdef, state, video, shallow, deep=None):
    unet = nnx.merge(graphdef, state)
    return unet.predict_with_deep_features(video, jnp.asarray(TIME), jnp.asarray(TEXT), shallow=shallow, deep=deep)


@pytest.mark.parametrize("shallow", [1, 2])
def test_deep_features(shallow):
    """Handed back at once they change nothing; and whatever made them, nothing of it is run a second time."""
    stunet, first = trained(), jnp.asarray(moving_clip(3))
    second = first[:, ::-1]
    call = functools.partial(apply_with_deep_features, shallow=shallow)
    prediction, deep = call(*nnx.split(stunet), first)
    np.testing.assert_allclose(prediction, run(stunet, first), atol=1e-12)
    np.testing.assert_allclose(call(*nnx.split(stunet), first, deep=deep)[0], prediction, atol=1e-12)

    expected, handed_on = call(*nnx.split(stunet), second, deep=deep)
    np.testing.assert_array_equal(handed_on, deep)
    assert np.abs(expected - prediction).max() > 1e-3
    assert np.abs(expected - run(stunet, second)).max() > 1e-3
    graphdef, state = nnx.split(stunet)
    broken = nnx.merge(graphdef, nnx.to_pure_dict(state))
    fine = broken.up[-1].layers
    unused = [*broken.down[0].layers[shallow - 1 :], *broken.down[1:], broken.middle, *broken.up[:-1], *fine[:-shallow]]
    for module in unused:
        nnx.update(module, jax.tree.map(lambda leaf: leaf * jnp.nan, nnx.state(module)))
    assert np.isnan(run(broken, second)).all()
    np.testing.assert_array_equal(call(*nnx.split(broken), second, deep=deep)[0], expected)
    with pytest.raises(ValueError, match="shallow=3: give 1 to 2 layers"):
        stunet.predict_with_deep_features(first, jnp.asarray(TIME), jnp.asarray(TEXT), shallow=3)


@pytest.mark.parametrize("frames", LENGTHS)
def test_new_stunet_is_the_image_model_on_still_clips(frames):
    video, image = still_clip(frames)
    np.testing.assert_allclose(run(inflated(), video), np.repeat(run(image_model(), image), frames, 1), atol=1e-9)


@pytest.mark.parametrize("init", ["tent", "he"])
def test_other_initialisations_break_the_identity(init):
    video, image = still_clip(5)
    other = dataclasses.replace(TEMPORAL, resampler_init=init)
    assert np.abs(run(inflated(other), video) - run(image_model(), image)).max() > 0.05


def test_down_sampling_strides_rather_than_averages():
    # In a new STUNet the coarsest level sees frames 0 and 4 of 5 alone, so frames 1, 2, 3 change nobody but themselves.
    video, changed = moving_clip(5), moving_clip(5)
    changed[:, 1:4] += 1.0
    change = np.abs(run(inflated(), changed) - run(inflated(), video)).max(axis=(0, 2, 3, 4))
    assert (change[[0, 4]] < 1e-9).all()
    assert (change[1:4] > 1e-3).all()


def test_frames_influence_each_other_once_temporal_layers_are_trained():
    video, changed = moving_clip(7), moving_clip(7)
    changed[:, 6] += 1.0
    change = np.abs(run(trained(), changed) - run(trained(), video)).max(axis=(0, 2, 3, 4))
    assert (change > 1e-6).all()


# ------------------------------------------------------------------------------------ the image model inside it


def test_deflated_is_bitwise_the_image_model_on_clips():
    video = moving_clip(3)
    stunet = trained()
    image = deflate(stunet)
    assert (stunet.is_inflated, image.is_inflated) == (True, False)
    expected = run(image_model(), video)
    np.testing.assert_array_equal(run(image, video), expected)
    assert np.abs(run(stunet, video) - expected).max() > 0.1
    for frame in range(3):
        np.testing.assert_allclose(run(image, video[:, frame : frame + 1])[:, 0], expected[:, frame], atol=1e-12)


def test_only_the_added_parameters_are_trained():
    _, temporal, frozen = parameter_partition.split(trained())
    image = nnx.to_pure_dict(nnx.state(image_model()))
    assert parameter_partition.count(frozen) == parameter_partition.count(image)
    assert parameter_partition.count(temporal) > 0
    assert parameter_partition.trained(image_model()) is nnx.Param
    copy = nnx.merge(*nnx.split(image_model()))
    assert parameter_partition.count(parameter_partition.split(parameter_partition.freeze(copy))[1]) == 0


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 0)])
def test_wrong_strides_are_refused(strides):
    with pytest.raises(ValueError, match=r"strides \(2, 2.*give one positive number for each of the 3 spatial"):
        inflated(TemporalConfig(strides=strides))


@pytest.mark.parametrize("field", ["conv_kernel", "spatial_kernel", "resampler_kernel"])
def test_kernels_without_a_middle_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=2 must be odd"):
        TemporalConfig(**{field: 2})
