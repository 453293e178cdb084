"""Normalise, activate, convolve in one kernel, which is interpreted here, beside the same in plain steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from random_unets import randomised

from lumiere_jax.distributed.mesh import AXES
from lumiere_jax.models import normalized_conv, temporal
from lumiere_jax.models.layers import Affine, Moments
from lumiere_jax.models.normalized_conv import add_normalized_product, pixels_of_a_block
from lumiere_jax.models.rematerialization import Rematerialization, checkpointed
from lumiere_jax.models.spatial_layers import SpatialLayer, TextContext
from lumiere_jax.models.temporal import ConvInflationBlock, TemporalConfig
from lumiere_jax.models.unet2d_config import UNet2DConfig

CLIPS, FRAMES, HEIGHT, WIDTH, INPUTS, OUTPUTS = 2, 8, 4, 6, 5, 7
ACTIVATIONS = {"silu": jax.nn.silu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(taps, frames=FRAMES):
    norm = Affine(*(normal(CLIPS, frames, INPUTS, seed=seed) for seed in (1, 2)))
    x = normal(CLIPS, frames, HEIGHT, WIDTH, INPUTS)
    return x, norm, normal(taps, INPUTS, OUTPUTS, seed=3), normal(OUTPUTS, seed=4)


def plainly(act, x, norm, kernel, bias):
    """Frame by frame and tap by tap."""
    scale, shift = (each[:, :, None, None] for each in norm)
    h = ACTIVATIONS[act](x * scale + shift)
    frames, taps = x.shape[1], len(kernel)

    def frame(t):
        seen = [(tap, t + tap - taps // 2) for tap in range(taps)]
        return bias + sum(h[:, other] @ kernel[tap] for tap, other in seen if 0 <= other < frames)

    y = jnp.stack([frame(t) for t in range(frames)], axis=1)
    return y, Moments(y.mean((2, 3)), jnp.square(y).mean((2, 3)))


def with_gradients(function, *arguments):
    out, pull_back = jax.vjp(function, *arguments)
    return out, pull_back(jax.tree.map(jnp.cos, out))


def assert_close(actual, expected):
    """Every array to 2e-5 of its largest value."""
    expected, tree = jax.tree.flatten_with_path(jax.device_get(expected))
    for (path, one), other in zip(expected, tree.flatten_up_to(jax.device_get(actual)), strict=True):
        np.testing.assert_allclose(
            other, one, rtol=0, atol=2e-5 * np.abs(one).max(), err_msg=jax.tree_util.keystr(path)
        )


@pytest.fixture
def small_blocks(monkeypatch):
    """Four pixels at a time, of twelve of each part: several blocks to add up."""
    monkeypatch.setattr(normalized_conv, "_ROWS", 4 * FRAMES)
    assert pixels_of_a_block(HEIGHT * WIDTH, FRAMES) == 4


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("interpret", [True, False])  # the kernel; XLA in its place
@pytest.mark.usefixtures("small_blocks")
def test_in_plain_steps(act, taps, interpret):
    actual = with_gradients(
        functools.partial(normalized_conv.normalized_conv, act=act, interpret=interpret), *inputs(taps)
    )
    assert_close(actual, with_gradients(functools.partial(plainly, act), *inputs(taps)))


@pytest.mark.parametrize("rows", [FRAMES, 4 * FRAMES, 6 * FRAMES])  # an odd number of pixels; two steps; three
def test_in_bfloat16(monkeypatch, rows):
    """Two pixels of eight frames are a tile. As close to float32 as what is rounded to bfloat16 allows."""
    monkeypatch.setattr(normalized_conv, "_ROWS", rows)
    monkeypatch.setattr(normalized_conv, "_WITHOUT_ERF", jax.devices()[0].device_kind)
    x, norm, kernel, bias = inputs(3)
    rounded = x.astype(jnp.bfloat16), norm, kernel.astype(jnp.bfloat16), bias.astype(jnp.bfloat16)
    plain, wide = functools.partial(plainly, "gelu"), jax.tree.map(lambda each: each.astype(jnp.float32), rounded)
    conv = functools.partial(normalized_conv.normalized_conv, act="gelu", interpret=True)
    (actual, pull_back), (expected, pull_plainly_back) = jax.vjp(conv, *rounded), jax.vjp(plain, *wide)
    toward = jax.tree.map(lambda each: jnp.cos(each).astype(each.dtype), actual)
    gradients = pull_plainly_back(jax.tree.map(lambda each: each.astype(jnp.float32), toward))
    for one, other in zip(
        jax.tree.leaves((actual, pull_back(toward))), jax.tree.leaves((expected, gradients)), strict=True
    ):
        assert jnp.linalg.norm((one - other).ravel()) < 0.004 * jnp.linalg.norm(other.ravel())


@pytest.mark.parametrize(
    ("act", "error", "of_slope"), [("gelu", 4e-6, 4e-6), ("silu", 4e-6, 4e-6), ("gelu by tanh", 3e-5, 2e-4)]
)
def test_activations_of_kernels(act, error, of_slope, float64):
    x = jnp.linspace(-30.0, 30.0, 600_001)
    exact, slope = jax.jvp(ACTIVATIONS[act.partition(" ")[0]], (x,), (jnp.ones_like(x),))
    actual = normalized_conv._activated(act, x.astype(jnp.float32))
    assert jnp.abs(actual[0] - exact).max() < error
    assert jnp.abs(actual[1] - slope).max() < of_slope


@pytest.mark.parametrize(("kind", "expected"), [("TPU v5 lite", True), ("TPU v5p", True), ("TPU v6 lite", False)])
def test_where_gelu_is_made_of_a_tanh(kind, expected):
    device = AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1), AXES, axis_types=(AxisType.Auto, AxisType.Auto), abstract_device=device)
    x, norm, kernel, bias = inputs(3)
    conv = functools.partial(normalized_conv.normalized_conv, act="gelu", interpret=True)
    with jax.sharding.use_abstract_mesh(mesh):
        for dtype, by_tanh in ((jnp.bfloat16, expected), (jnp.float32, False)):
            jaxpr = str(jax.make_jaxpr(conv)(x.astype(dtype), norm, kernel, bias))
            assert (" tanh " in jaxpr, " erf " in jaxpr) == (by_tanh, not by_tanh)


@pytest.mark.parametrize("interpret", [True, False])
@pytest.mark.usefixtures("small_blocks")
def test_a_product_that_is_added(interpret):
    x, norm, kernel, bias = inputs(1)
    residual = normal(*x.shape[:-1], OUTPUTS, seed=5)

    def plain_sum(residual, x, norm, kernel, bias):
        return residual + plainly("gelu", x, norm, kernel[None], bias)[0]

    arguments = residual, x, norm, kernel[0], bias
    actual = with_gradients(functools.partial(add_normalized_product, act="gelu", interpret=interpret), *arguments)
    assert_close(actual, with_gradients(plain_sum, *arguments))


def kernels(function, *arguments):
    """How many are in a function."""
    return str(jax.make_jaxpr(function)(*arguments)).count("pallas_call[")


def test_what_a_kernel_cannot_do_is_left_to_xla(monkeypatch):
    conv = functools.partial(normalized_conv.normalized_conv, act="silu", interpret=True)
    assert kernels(conv, *inputs(3)) == 1
    assert kernels(conv, *inputs(3, frames=7)) == 0  # not whole tiles
    assert_close(
        with_gradients(conv, *inputs(3, frames=7)), with_gradients(functools.partial(plainly, "silu"), *inputs(3, 7))
    )
    device = AbstractDevice(device_kind="TPU v4", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1), AXES, axis_types=(AxisType.Auto, AxisType.Auto), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels(conv, *inputs(3)) == 0  # has too little fast memory
    monkeypatch.setattr(normalized_conv, "_FAST_MEMORY_OF_WEIGHTS", 5 * 128 * 128 * (4 + 2 * 4) - 1)
    assert kernels(conv, *inputs(5)) == 0


def inflation_block(inflation):
    config = UNet2DConfig(act_fn="gelu", norm_num_groups=2, attention_head_dim=4, time_embedding_dim=6)
    spatial = SpatialLayer(4, 8, config, has_attention=False, rngs=nnx.Rngs(0))
    block = randomised(ConvInflationBlock(spatial, TemporalConfig(norm_groups=2), rngs=nnx.Rngs(1)))
    block.remat = Rematerialization(inflation=inflation)
    return nnx.split(block)


def loss_of_block(graphdef, parameters, x):
    context = TextContext(normal(2, 3, 64), None)
    run = lambda block, x: block(x, normal(2, 6), context)  # noqa: E731
    return jnp.sin(checkpointed("products", run, nnx.merge(graphdef, parameters), x)).sum()


@pytest.mark.parametrize("interpret", [True, False])
def test_an_inflation_block_computes_the_same(monkeypatch, interpret):
    for name in ("normalized_conv", "add_normalized_product"):
        monkeypatch.setattr(temporal, name, functools.partial(getattr(temporal, name), interpret=interpret))
    x, results, counts = normal(2, 8, 4, 4, 4), [], []
    for inflation in ("layers", "kernel"):
        graphdef, parameters = inflation_block(inflation)
        program = functools.partial(jax.value_and_grad(loss_of_block, (1, 2)), graphdef)
        results.append(jax.jit(program)(parameters, x))
        counts.append(kernels(program, parameters, x))
    assert_close(*reversed(results))
    # Two forward, the first of them again in the backward pass, and one for the gradient of each. (Where nothing is
    # interpreted, they are in the part that is for TPUs.)
    assert counts == [0, 5]


def test_unknown_inflation():
    with pytest.raises(ValueError, match=r"remat.inflation='fused': use one of layers, kernel"):
        Rematerialization(inflation="fused")
