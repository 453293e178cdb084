"""Rematerialisation changes what is kept and what is computed again, and nothing else: for both U-Nets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_unets import randomised, smallest_stunet

from benchmarks.model_sizes import residual_bytes
from configs import stunet
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models import parameter_partition, rematerialization
from lumiere_jax.models.rematerialization import CHOICES, Rematerializable, Rematerialization, rematerialize
from lumiere_jax.models.spatial_layers import ResnetBlock, SpatialAttention
from lumiere_jax.models.stunet import deflate
from lumiere_jax.models.temporal import ConvInflationBlock, TemporalAttention
from lumiere_jax.models.unet2d_config import UNet2DConfig

UNETS = {"inflated": smallest_stunet, "image": lambda: deflate(smallest_stunet())}
POLICIES = [
    Rematerialization(**fields) for fields in (*CHOICES[:2], {"block": "products", "full_blocks": 2}, *CHOICES[2:])
]
NOTHING, *OTHERS = POLICIES


def inputs(dtype=jnp.float32):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in ((2, 4, 8, 8, 3), (2,), (2, 3, 8)))


def parts_of(unet):
    """The prediction as a function of (trained, frozen, *inputs), and the first two of these."""
    graphdef, trained, frozen = parameter_partition.split(unet)
    return lambda *given: nnx.merge(graphdef, *given[:2])(*given[2:]), trained, frozen


@functools.cache
def training(kind, policies):
    """Loss and gradient of every trained parameter, and the operations of the compiled program; float64."""
    predict, trained, frozen = parts_of(rematerialize(randomised(UNETS[kind]()), policies))
    given = (frozen, *inputs(jnp.float64))
    compiled = (
        jax.jit(jax.value_and_grad(lambda trained, *given: jnp.square(predict(trained, *given)).mean()))
        .lower(trained, *given)
        .compile()
    )
    work = compiled.cost_analysis()["flops"], compiled.as_text().count(" convolution(")
    return *compiled(trained, *given), work


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("kind", "policies"), [*(("inflated", other) for other in OTHERS), ("image", OTHERS[0]), ("image", OTHERS[-1])]
)
def test_loss_and_gradients_stay(kind, policies):
    expected_loss, expected, _ = training(kind, NOTHING)
    loss, gradient, _ = training(kind, policies)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    # A few have no gradient but for rounding: all keys of a softmax may be shifted.
    rounding = 1e-15 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(expected)]
    for name, leaf, wanted in zip(names, jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=1e-11 * np.abs(wanted).max() + rounding, err_msg=name)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", UNETS)
def test_the_compiled_program_computes_again(kind):
    """XLA would be free to find that the second computation is the first one."""
    work = [training(kind, policies)[2] for policies in (NOTHING, OTHERS[0], OTHERS[-1])]
    (nothing, products, full), convolutions = zip(*work, strict=True)
    assert nothing < products < full
    assert convolutions[0] == convolutions[1]  # kept
    assert convolutions[2] > convolutions[0]
    assert full > 1.05 * nothing


@pytest.mark.parametrize("kind", UNETS)
def test_forward_pass_is_bitwise_the_same(kind):
    unet, results = randomised(UNETS[kind]()), []
    for policies in (NOTHING, OTHERS[1], OTHERS[-1]):
        predict, trained, frozen = parts_of(rematerialize(unet, policies))
        results.append(jax.jit(predict)(trained, frozen, *inputs()))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@functools.cache
def kept(kind, **fields):
    """Bytes that the forward pass leaves for the backward pass."""
    return residual_bytes(*parts_of(rematerialize(UNETS[kind](), Rematerialization(**fields))), *inputs())


@pytest.mark.parametrize("kind", UNETS)
def test_every_policy_keeps_less_than_the_one_before(kind):
    nothing = kept(kind)
    for module in ("block", "spatial", "temporal"):
        products, full = kept(kind, **{module: "products"}), kept(kind, **{module: "full"})
        if (kind, module) == ("image", "temporal"):  # has none
            assert nothing == products == full
        else:
            assert nothing > products > full, module
    # By hand: each block's input. A block within which each module keeps its own has more.
    assert kept(kind, block="full") < kept(kind, spatial="full", temporal="full") < nothing


@pytest.mark.parametrize("module", [ResnetBlock, SpatialAttention, ConvInflationBlock, TemporalAttention])
def test_each_module_follows_its_policy(module):
    unet = smallest_stunet()
    for _, child in nnx.iter_modules(unet):
        if isinstance(child, module):
            child.remat = Rematerialization(spatial="full", temporal="full")
    assert residual_bytes(*parts_of(unet), *inputs()) < kept("inflated")


def test_the_table_goes_from_the_most_memory_to_the_least():
    sizes = [kept("inflated", **fields) for fields in CHOICES]
    assert sizes == sorted(set(sizes), reverse=True)


def test_the_first_blocks_may_keep_less_than_the_others():
    sizes = [kept("inflated", block="products", full_blocks=number) for number in range(4)]
    assert sizes == sorted(set(sizes), reverse=True)
    # A number beyond all blocks is another way to say "full".
    assert kept("inflated", block="products", full_blocks=99) == kept("inflated", block="full")


def test_attention_weights_are_computed_again():
    """They are the one value that grows with the square of the tokens, and `products` is not to keep them."""

    def growth(**fields):
        """Of what is kept, from 8x8 to 32x32 pixels, by pixel."""
        predict, trained, frozen = parts_of(rematerialize(smallest_stunet(), Rematerialization(**fields)))
        video, time, text = inputs()
        large = video.repeat(4, axis=2).repeat(4, axis=3)
        before, after = (residual_bytes(predict, trained, frozen, x, time, text) for x in (video, large))
        return after / before / 16

    assert growth() > 1.3
    assert growth(block="products") < 1.05
    assert growth(spatial="products", temporal="products") < 1.05


@pytest.fixture
def another_policy(monkeypatch):
    """Changes `products`; JAX remembers what it traced under the one before."""

    def change(policy):
        monkeypatch.setitem(rematerialization._KEPT, "products", policy)
        jax.clear_caches()

    yield change
    jax.clear_caches()


def test_a_sum_is_kept_in_place_of_its_parts():
    """Of a residual block with a shortcut: one video less."""
    config = UNet2DConfig(norm_num_groups=2, time_embedding_dim=4)
    graphdef, parameters = nnx.split(ResnetBlock(4, 8, config, rngs=nnx.Rngs(0)))
    x, embedding = jnp.ones((1, 2, 8, 8, 4)), jnp.ones((1, 4))

    def kept_with(policy):
        def squared(parameters, x):  # which reads the block's output again
            return jnp.square(nnx.merge(graphdef, parameters)(x, embedding)).sum()

        return residual_bytes(jax.checkpoint(squared, policy=policy), parameters, x)

    parts = kept_with(rematerialization._is_product_or_statistic)
    assert kept_with(rematerialization._KEPT["products"]) == parts - 2 * 8 * 8 * 8 * 4


def test_statistics_are_kept(another_policy):
    """They are small, and without them the backward pass would sum over all pixels again."""

    def work():
        predict, trained, frozen = parts_of(rematerialize(smallest_stunet(), Rematerialization(block="products")))
        gradient = jax.grad(lambda *arguments: predict(*arguments).sum())
        return count_flops(gradient, trained, frozen, *inputs())

    def is_product(primitive, *values, **parameters):
        is_sum = primitive is jax.lax.reduce_sum_p
        return not is_sum and rematerialization._is_product_or_statistic(primitive, *values, **parameters)

    with_statistics = work()
    another_policy(is_product)
    assert with_statistics < 0.999 * work()


def test_parameters_and_image_model_keep_their_names():
    plain, changed = smallest_stunet(), rematerialize(smallest_stunet(), Rematerialization(block="full"))
    assert [path for path, _ in nnx.to_flat_state(nnx.state(changed))] == [
        path for path, _ in nnx.to_flat_state(nnx.state(plain))
    ]
    policies = {
        module.remat for _, module in nnx.iter_modules(deflate(changed)) if isinstance(module, Rematerializable)
    }
    assert policies == {Rematerialization(block="full")}


def test_policies_of_a_config_reach_the_model():
    config = stunet.get_config("test")
    config.remat.block = "full"
    assert abstract_model(config).unet.remat == Rematerialization(block="full")


@pytest.mark.parametrize("field", ["block", "spatial", "temporal"])
def test_unknown_policy(field):
    with pytest.raises(ValueError, match=f"remat.{field}='ful': use one of none, products, full"):
        Rematerialization(**{field: "ful"})


def test_policies_inside_of_a_block_that_has_one():
    with pytest.raises(ValueError, match=r"remat.full_blocks=-1: give a number of blocks"):
        Rematerialization(full_blocks=-1)
    with pytest.raises(ValueError, match=r"remat.full_blocks=1 covers .* set these to 'none', or"):
        Rematerialization(full_blocks=1, spatial="full")
    with pytest.raises(
        ValueError, match=r"remat.block='full' .*covers .* \{'spatial': 'none', 'temporal': 'products'\}"
    ):
        Rematerialization(block="full", temporal="products")
