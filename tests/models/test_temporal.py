"""Each temporal layer against its definition in float64 NumPy, to 1e-10."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import temporal_definitions as definitions
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from random_unets import randomised, smallest_stunet

from lumiere_jax.abstract_model import OneKey
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.mesh import AXES
from lumiere_jax.models import parameter_partition, temporal
from lumiere_jax.models.layers import TemporalConv
from lumiere_jax.models.spatial_layers import SpatialLayer, SpatialResize, TextContext
from lumiere_jax.models.temporal import TemporalConfig, TemporalParam, rotate_by_time
from lumiere_jax.models.unet2d_config import UNet2DConfig

pytestmark = pytest.mark.usefixtures("float64")
FEATURES, HEAD_DIM, GROUPS = 8, 4, 2
TEMPORAL = TemporalConfig(norm_groups=GROUPS, attention_head_dim=HEAD_DIM)


def spatial_config(act="gelu"):
    return UNet2DConfig(act_fn=act, norm_num_groups=2, attention_head_dim=4, time_embedding_dim=6)


def block(kind, spatial, *arguments, config=TEMPORAL):
    """A temporal layer over a frozen one, both with random parameters, as a compiled function of the video."""
    module = randomised(nnx.eval_shape(lambda: kind(spatial(), *arguments, config, rngs=OneKey(0))))
    embedding, context = normal(2, 6), TextContext(normal(2, 3, 64), None)

    def call(layer, video):
        return np.asarray(jax.jit(lambda layer, video: layer(video, embedding, context))(layer, video))

    return module, call


def layer(act="gelu"):
    config = spatial_config(act)
    return lambda: SpatialLayer(4, FEATURES, config, has_attention=False, rngs=OneKey(0))


def resize(direction):
    return lambda: SpatialResize(FEATURES, spatial_config(), direction, rngs=OneKey(0))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def check(actual, expected):
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # each has its own axis as the convolution's batch
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_temporal_convolution(taps, platform, monkeypatch):
    monkeypatch.setattr(partitioning, "platform", lambda: platform)
    conv = randomised(nnx.eval_shape(lambda: TemporalConv(4, 6, kernel_size=taps, param=TemporalParam, rngs=OneKey(0))))
    x = normal(2, 4, 3, 2, 4)
    check(np.asarray(conv(x)), definitions.time_convolution(definitions.parameters(conv), x))


def test_a_tpus_temporal_convolution_has_the_pixels_of_a_line_as_its_batch():
    """In a program that is compiled for a TPU elsewhere, too; on a CPU the clips are the batch."""
    conv = TemporalConv(4, 6, param=TemporalParam, rngs=nnx.Rngs(0))

    def batch_axis_and_rank(platform):
        device = AbstractDevice(device_kind="", num_cores=1, platform=platform)
        mesh = AbstractMesh((1, 1), AXES, axis_types=(AxisType.Auto, AxisType.Auto), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            equations = jax.make_jaxpr(conv)(normal(2, 4, 3, 2, 4)).eqns
        (found,) = [each for each in equations if each.primitive is jax.lax.conv_general_dilated_p]
        return found.params["dimension_numbers"].lhs_spec[0], found.invars[0].aval.ndim

    assert batch_axis_and_rank("tpu") == (3, 5)
    assert batch_axis_and_rank("cpu") == (0, 4)


@pytest.mark.parametrize(("act", "frames"), [("gelu", 5), ("silu", 4), ("gelu", 1)])
def test_convolution_based_inflation_block(act, frames):
    module, call = block(temporal.ConvInflationBlock, layer(act))
    x = normal(2, frames, 3, 4, 4)
    p = definitions.parameters(module)
    check(call(module, x), definitions.convolution_block(p, call(module.spatial, x), act, GROUPS))


def test_kernel_sizes_are_the_configs():
    config = dataclasses.replace(TEMPORAL, conv_kernel=5, spatial_kernel=1)
    module, call = block(temporal.ConvInflationBlock, layer(), config=config)
    x, p = normal(2, 4, 3, 2, 4), definitions.parameters(module)
    assert p["temporal_conv"]["kernel"].shape[0] == 5
    assert p["spatial_conv"]["kernel"].shape[:2] == (1, 1)
    check(call(module, x), definitions.convolution_block(p, call(module.spatial, x), "gelu", GROUPS))


@pytest.mark.parametrize(("layers", "frames"), [(2, 5), (3, 2), (2, 1)])
def test_attention_based_inflation_block(layers, frames):
    module, call = block(
        temporal.AttentionInflationBlock, layer(), config=dataclasses.replace(TEMPORAL, attention_layers=layers)
    )
    x, p = normal(2, frames, 2, 3, 4), definitions.parameters(module)
    assert len(p["attentions"]) == layers
    check(call(module, x), definitions.attention_block(p, call(module.spatial, x), HEAD_DIM))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_temporal_down_sampling(stride, frames):
    module, call = block(temporal.TemporalDownsample, resize("down"), stride)
    x = normal(2, frames, 4, 2, FEATURES)
    expected = definitions.down_sampling(definitions.parameters(module), call(module.spatial, x), stride)
    assert expected.shape == (2, -(-frames // stride), 2, 1, FEATURES)
    check(call(module, x), expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 3])
def test_temporal_up_sampling(stride, frames):
    module, call = block(temporal.TemporalUpsample, resize("up"), stride)
    x = normal(2, frames, 2, 1, FEATURES)
    expected = definitions.up_sampling(definitions.parameters(module), call(module.spatial, x), stride)
    assert expected.shape == (2, stride * frames, 4, 2, FEATURES)
    check(call(module, x), expected)


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_initialisations_of_the_resamplers(taps):
    x = normal(1, 4, 1, 2, FEATURES)
    shape = (taps, FEATURES, FEATURES)
    none = np.zeros(FEATURES)
    identity = {"kernel": np.asarray(temporal.identity_kernel(jax.random.key(0), shape)), "bias": none}
    np.testing.assert_array_equal(definitions.time_convolution(identity, x), x)
    tent = np.asarray(temporal.tent_kernel(jax.random.key(0), shape))
    expected = {1: [1], 3: [0.5, 1, 0.5], 5: [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]}[taps]
    np.testing.assert_allclose(tent, np.einsum("t,io->tio", expected, np.eye(FEATURES)), atol=1e-15)


def test_time_enters_by_differences_of_frames_alone():
    """So the encoding of a long clip is the one that a shorter clip was trained with, further on."""
    query, key = normal(2, 9, 3, HEAD_DIM), normal(2, 9, 3, HEAD_DIM, seed=1)
    # The same query (or key) at every frame: what is left in the products is the encoding.
    query, key = jnp.broadcast_to(query[:, :1], query.shape), jnp.broadcast_to(key[:, :1], key.shape)
    products = np.einsum("bqhd,bkhd->bhqk", rotate_by_time(query), rotate_by_time(key))
    np.testing.assert_allclose(products[..., 1:, 1:], products[..., :-1, :-1], atol=1e-12)
    assert np.abs(products[..., 0, 1:] - products[..., 0, :-1]).min() > 1e-6
    np.testing.assert_array_equal(rotate_by_time(query[:, :4]), rotate_by_time(query)[:, :4])


def test_attention_sees_the_order_of_frames():
    module, call = block(temporal.AttentionInflationBlock, layer())
    x = normal(2, 4, 2, 2, 4)
    order = np.array([2, 0, 3, 1])
    assert np.abs(call(module, x[:, order]) - call(module, x)[:, order]).max() > 1e-3


def test_gate_norms_are_those_of_every_blocks_projection():
    """Found by name in the parameters, here by type in the model."""
    unet, expected = randomised(smallest_stunet()), {}
    for path, module in nnx.iter_modules(unet):
        if isinstance(module, (temporal.ConvInflationBlock, temporal.AttentionInflationBlock)):
            kernel, bias = module.projection.kernel[...], module.projection.bias[...]
            expected["/".join(map(str, path))] = np.sqrt(np.sum(np.square(kernel)) + np.sum(np.square(bias)))
    _, trained, _ = parameter_partition.split(unet)
    assert len(expected) > 3
    assert jax.tree.map(float, temporal.gate_norms(trained)) == pytest.approx(expected, rel=1e-6)
