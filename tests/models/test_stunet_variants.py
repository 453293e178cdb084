"""The Space-Time U-Nets of configs/: their topology at tiny widths, and their shapes at full size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_unets import randomised

from configs import ssr, stunet
from lumiere_jax.abstract_model import OneKey, abstract_unet
from lumiere_jax.models import attention, layers, spatial_layers, temporal
from lumiere_jax.models.stunet import deflate, inflate
from lumiere_jax.models.temporal import ConvInflationBlock, TemporalConfig, TemporalParam
from lumiere_jax.models.unet2d_config import UNet2DConfig

# One variant of each topology, and those that have the same.
SAME_TOPOLOGY = {
    "demo": (),
    "small": (),
    "if_m": ("if_l", "if_xl"),
    "ssr demo": (),
    "ssr demo_4x": (),
    "if_ii_m": ("if_ii_l",),
}


def full_size(variant):
    """The image model's and the temporal layers' config."""
    module = ssr if variant.startswith(("ssr", "if_ii")) else stunet
    config = module.get_config(variant.removeprefix("ssr "))
    return UNet2DConfig(**config.image_model.unet), TemporalConfig(**config.temporal)


def tiny(variant):
    """A variant's configs with the widths alone replaced: in the same proportions, 4 channels at the finest level."""
    image, temporal_config = full_size(variant)
    finest = image.block_out_channels[0]
    widths = tuple(4 * width // finest for width in image.block_out_channels)
    small = {"attention_head_dim": 4, "norm_num_groups": 2, "text_dim": 8, "cross_attention_dim": 32}
    small |= {"block_out_channels": widths, "text_pooling_heads": 2, "time_embedding_dim": 8}
    temporal_config = dataclasses.replace(temporal_config, norm_groups=2, attention_head_dim=4)
    return dataclasses.replace(image, **small), temporal_config


@pytest.mark.parametrize("variant", SAME_TOPOLOGY)
def test_topologies_that_coincide(variant):
    for other in SAME_TOPOLOGY[variant]:
        assert tiny(other) == tiny(variant)


COMPILED = [
    *(
        (kind, "__call__", jax.jit(kind.__call__))
        for kind in (layers.GroupNorm, layers.Linear, spatial_layers.TextPooling)
    ),
    *((kind, "__call__", jax.jit(kind.__call__)) for kind in (layers.SpatialConv, layers.TemporalConv)),
    (temporal.TemporalAttention, "__call__", jax.jit(temporal.TemporalAttention.__call__)),
    (spatial_layers, "attention", jax.jit(attention.attention)),
    (spatial_layers, "activation", jax.jit(spatial_layers.activation, static_argnums=0)),
    (spatial_layers, "resize_frames", jax.jit(spatial_layers.resize_frames, static_argnums=1)),
]


@pytest.fixture
def _compiled_layer_by_layer(monkeypatch):
    """Every layer is compiled by itself, once for all variants and levels where it has the same shapes."""
    for owner, name, compiled in COMPILED:
        monkeypatch.setattr(owner, name, compiled)


@pytest.mark.usefixtures("_compiled_layer_by_layer", "float64")
@pytest.mark.parametrize("variant", SAME_TOPOLOGY)
def test_a_new_stunet_is_the_image_model_on_still_clips(variant):
    """Of 3 frames, which neither stride 2 nor 4 divides."""
    image_config, temporal_config = tiny(variant)
    unet = randomised(abstract_unet(image_config))
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.normal(size=(1, 1, 16, 16, image_config.in_channels)))
    condition = (jnp.array([300.0]), jnp.asarray(rng.normal(size=(1, 3, 8))))
    noise_level = jnp.array([100.0]) if image_config.noise_level_embedding else None
    expected = np.asarray(unet(image, *condition, noise_level=noise_level))
    assert expected.std() > 0.1
    new = inflate(unet, temporal_config, rngs=OneKey(0))
    out = np.asarray(new(image.repeat(3, axis=1), *condition, noise_level=noise_level))
    np.testing.assert_allclose(out, expected.repeat(3, axis=1), atol=1e-9, rtol=0)


# ------------------------------------------------------------------------------------ shapes at full size


@dataclasses.dataclass
class Calls:
    """The shapes of what every layer of some kinds was called with."""

    shapes: list

    def record(self, patch, kind):
        call = kind.__call__

        def recorded(layer, x, *arguments):
            self.shapes.append((layer, x.shape))
            return call(layer, x, *arguments)

        patch.setattr(kind, "__call__", recorded)

    def of(self, layers_):
        chosen = {id(layer) for layer in layers_}
        return [shape for layer, shape in self.shapes if id(layer) in chosen]


def traced(unet, frames, height, width):
    """The shape of the prediction for two clips with 77 tokens, and the module whose layers were called for it."""
    config = unet.config
    graphdef, state = nnx.split(unet)
    called = []

    def call(state, video, time, text):
        called.append(nnx.merge(graphdef, state))
        return called[0](video, time, text, noise_level=time if config.noise_level_embedding else None)

    arguments = ((2, frames, height, width, config.in_channels), (2,), (2, 77, config.text_dim))
    arguments = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in arguments)
    return jax.eval_shape(call, state, *arguments).shape, called[0]


@pytest.mark.parametrize(
    ("variant", "frames", "height", "width"),
    [
        *(("if_m", 80, 128, 224), ("if_m", 77, 128, 128), ("small", 80, 128, 128)),
        *(("if_ii_m", 8, 256, 256), ("ssr efficient", 8, 1024, 1024)),
    ],
)
def test_text_is_worked_on_once_per_clip_and_frames_follow_the_strides(variant, frames, height, width, monkeypatch):
    calls = Calls([])
    for kind in (layers.Linear, layers.GroupNorm, layers.LayerNorm, temporal.TemporalAttention, layers.TemporalConv):
        calls.record(monkeypatch, kind)
    image, temporal_config = full_size(variant)
    shape, unet = traced(abstract_unet(image, temporal_config), frames, height, width)
    assert shape == (2, frames, height, width, image.out_channels)
    check_text(unet, calls)
    check_frames(unet, calls, frames, temporal_config.strides)


def check_text(unet, calls):
    """Layers that see the text alone are called once, with two clips and no frames."""
    width, projected = (2, 77, unet.config.text_dim), (2, 77, unet.config.cross_attention_dim)
    pooling, with_mean = unet.text_pooling, (2, 78, unet.config.text_dim)
    expected = [(unet.encoder_hid_proj, width), (pooling.norm1, width)]
    expected += [
        (pooling.q_proj, (2, 1, unet.config.text_dim)),
        (pooling.k_proj, with_mean),
        (pooling.v_proj, with_mean),
    ]
    expected += [(pooling.proj, (2, unet.config.text_dim)), (pooling.norm2, (2, unet.config.embedding_dim))]
    for _, module in nnx.iter_modules(unet):
        if isinstance(module, spatial_layers.SpatialAttention):
            expected += [(layer, projected) for layer in (module.norm_cross, module.add_k_proj, module.add_v_proj)]
    assert len(expected) > 10
    for layer, shape in expected:
        assert calls.of([layer]) == [shape]


def check_frames(unet, calls, frames, strides):
    """Fig. 4a: fewer frames with every level, and attention over them at the coarsest alone."""
    expected = [frames]
    for stride in strides:
        expected.append(-(-expected[-1] // stride))
    for path in (unet.down, reversed(unet.up)):
        for number, (level, count) in enumerate(zip(path, expected, strict=True)):
            for block in level.layers:
                is_convolution = isinstance(block, ConvInflationBlock)
                assert is_convolution == (number < len(strides))
                seen = calls.of([block.temporal_conv] if is_convolution else block.attentions)
                assert {shape[1] for shape in seen} == {count}


def test_deflate_leaves_no_temporal_parameter():
    image, temporal_config = tiny("demo")
    deflated = deflate(abstract_unet(image, temporal_config))
    assert not jax.tree.leaves(nnx.split(deflated, TemporalParam, ...)[1])
    assert nnx.graphdef(deflated) == nnx.graphdef(abstract_unet(image))
