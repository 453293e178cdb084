"""The mesh, a STUNet and sampling on it, on eight virtual CPU devices; `test_partitioning.py` runs it by itself."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec
from random_runs import random_run
from random_unets import randomised, smallest_stunet

from lumiere_jax.checkpoints.checkpointing import load_tree, save_tree
from lumiere_jax.diffusion.multidiffusion import Windows, multidiffusion
from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.mesh import AXES, make_mesh
from lumiere_jax.distributed.partitioning import (
    batch_sharding,
    divide_batch,
    parameter_shardings,
    place,
    replicated,
    shard_batch,
)
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.attention import Attended, splash
from lumiere_jax.models.layers import Affine, TemporalConv
from lumiere_jax.models.normalized_conv import normalized_conv
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.generation import Settings, generate
from lumiere_jax.pipelines.super_resolution import super_resolve
from lumiere_jax.pipelines.text_to_video import sample_in_batches, sample_videos
from lumiere_jax.train_setup import jit_update
from lumiere_jax.train_step import Batch, Objective, create_state, train_step

VIDEO = np.arange(8 * 2 * 6 * 4 * 3, dtype=np.float32).reshape(8, 2, 6, 4, 3)


def blocks(array):
    """What each device holds, by the device's id."""
    return {shard.device.id: np.asarray(shard.data) for shard in array.addressable_shards}


def test_mesh_uses_every_device_once():
    assert jax.device_count() == 8
    mesh = make_mesh()
    assert mesh.shape == {"data": 8, "rows": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    mesh = make_mesh(rows=2)
    assert mesh.shape == {"data": 4, "rows": 2}
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    assert make_mesh(2, 4).shape == {"data": 2, "rows": 4}


@pytest.mark.parametrize(
    ("data", "rows", "message"),
    [
        (-1, 3, "rows=3 does not divide the 8 devices"),
        (-1, 0, "rows=0 does not divide"),
        (3, 2, r"data=3 times rows=2 is 6, but there are 8 devices: set data=-1 \(here 4\)"),
        (0, 1, "data=0 times rows=1 is 0"),
    ],
)
def test_mesh_that_does_not_fit(data, rows, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(data, rows)


def test_videos_are_cut_by_clip_and_height_and_text_by_clip():
    mesh = make_mesh(data=4, rows=2)
    text = np.arange(8 * 5 * 2, dtype=np.float32).reshape(8, 5, 2)
    batch = shard_batch(mesh, {"video": VIDEO, "text": text, "seed": np.arange(8, dtype=np.int32)})
    for (data, row), device in np.ndenumerate(mesh.devices):
        clips = slice(2 * data, 2 * data + 2)
        np.testing.assert_array_equal(blocks(batch["video"])[device.id], VIDEO[clips, :, 3 * row : 3 * row + 3])
        np.testing.assert_array_equal(blocks(batch["text"])[device.id], text[clips])
        np.testing.assert_array_equal(blocks(batch["seed"])[device.id], np.arange(8)[clips])
    assert batch["video"].sharding == batch_sharding(mesh)
    assert batch["video"].shape == VIDEO.shape


def test_batches_that_do_not_divide():
    mesh = make_mesh(data=4, rows=2)
    with pytest.raises(ValueError, match=r"batch\['video'\]: 6 clips cannot be divided over data=4 devices"):
        shard_batch(mesh, {"video": VIDEO[:6]})
    with pytest.raises(ValueError, match=r"batch\['video'\]: height 5 cannot be divided over rows=2"):
        shard_batch(mesh, {"video": VIDEO[:, :, :5]})
    with pytest.raises(ValueError, match="a scalar has no batch axis"):
        shard_batch(mesh, {"step": np.float32(1)})


def test_parameters_are_everywhere():
    mesh = make_mesh(data=4, rows=2)
    params = {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jax.ShapeDtypeStruct((4,), jnp.float32)}
    shardings = parameter_shardings(mesh, params)
    assert shardings == {"kernel": replicated(mesh), "bias": replicated(mesh)}
    assert replicated(mesh).spec == PartitionSpec()
    held = blocks(jax.device_put(params["kernel"], shardings["kernel"]))
    assert len(held) == 8
    for copy in held.values():
        np.testing.assert_array_equal(copy, params["kernel"])


@pytest.mark.parametrize(
    ("data", "rows", "shape", "spec"),
    [
        (4, 2, (3, 3, 128, 64), PartitionSpec(None, None, ("data", "rows"), None)),
        (4, 2, (3, 3, 32, 96), PartitionSpec(None, None, "data", None)),  # 32 / 8 are no 8 rows, 32 / 4 are
        (4, 2, (16, 96), PartitionSpec("rows", None)),
        (4, 2, (24, 512), PartitionSpec(None, "data")),  # 24 rows cannot be, 512 columns can
        (8, 1, (96, 24), PartitionSpec()),
        (8, 1, (4096,), PartitionSpec()),  # a bias is too small to be worth it
        (8, 1, (), PartitionSpec()),
    ],
)
def test_fully_sharded_parameters_keep_whole_tiles(data, rows, shape, spec):
    mesh = make_mesh(data, rows)
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert parameter_shardings(mesh, [leaf], fsdp=True)[0].spec == spec
    assert parameter_shardings(mesh, [leaf])[0].spec == PartitionSpec()


def test_restoring_onto_a_mesh_that_does_not_divide_a_leaf(tmp_path):
    save_tree(tmp_path / "tree", {"bias": jnp.ones(6)})
    with pytest.raises(ValueError, match=r"leaf bias of shape \(6,\) does not divide"):
        load_tree(tmp_path / "tree", sharding=batch_sharding(make_mesh(data=4, rows=2), 1))


def test_a_gradient_does_not_depend_on_the_mesh():
    """Rows need their neighbours' edges (the halo of a 3x3 convolution), gradients the sum over all devices."""

    def loss(kernel, video):
        frames = video.reshape(-1, *video.shape[2:])
        out = jax.lax.conv_general_dilated(frames, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.mean(jnp.square(out))

    video = np.sin(VIDEO)
    kernel = np.cos(np.arange(3 * 3 * 3 * 2, dtype=np.float32)).reshape(3, 3, 3, 2)
    expected = jax.jit(jax.grad(loss))(kernel, video)
    mesh = make_mesh(data=4, rows=2)
    gradient = jax.jit(jax.grad(loss), out_shardings=replicated(mesh))(
        jax.device_put(kernel, replicated(mesh)), shard_batch(mesh, video)
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------ a STUNet

SCHEDULE = CosineSchedule()


@functools.cache
def stunet():
    """Graph definition, trained and frozen parameters."""
    return parameter_partition.split(TextToVideo(None, randomised(smallest_stunet())))


def clips():
    """Eight of three frames, which the stride does not divide; 8 rows, of which 4 devices hold two each."""
    rng = np.random.default_rng(0)
    video = np.tanh(rng.normal(size=(8, 3, 8, 8, 3))).astype(np.float32)
    return Batch(video, rng.normal(size=(8, 3, 8)).astype(np.float32))


OPTIMIZER = optax.sgd(1.0, momentum=0.9)  # its state after one step is the gradient


SETTINGS = {"optimizer": OPTIMIZER, "objective": Objective(SCHEDULE), "ema_decays": (0.9,)}


@functools.cache
def on_one_device():
    graphdef, trained, frozen = stunet()
    batch = clips()
    step = jax.jit(functools.partial(train_step, graphdef=graphdef, **SETTINGS))
    return step(create_state(trained, OPTIMIZER), frozen, batch, 0)


def assert_same(actual, expected):
    """Every array to 1e-5 of its largest value."""
    expected, tree = jax.tree.flatten_with_path(jax.device_get(expected))
    for (path, one), many in zip(expected, tree.flatten_up_to(jax.device_get(actual)), strict=True):
        largest = np.abs(one).max()
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


def test_the_attention_kernel_does_not_depend_on_the_mesh():
    """Each device takes its share of six heads of frames, the last none; nor do 77 tokens of text divide by four."""
    mesh = make_mesh(rows=4)
    pixels, text = (
        jax.random.normal(jax.random.key(tokens), (3, 2, 2, tokens, 3, 8), jnp.float32) for tokens in (512, 77)
    )

    def with_gradients(query, *pairs):
        attend = functools.partial(splash, interpret=True)
        out, pull_back = jax.vjp(
            lambda query, *pairs: attend(query, *(Attended(*pair) for pair in pairs)), query, *pairs
        )
        return out, pull_back(jnp.cos(out))

    arguments = (pixels[0], tuple(text[:2]), tuple(pixels[1:]))
    expected = jax.jit(with_gradients)(*arguments)
    divided, whole = jax.sharding.NamedSharding(mesh, PartitionSpec("data", None, "rows")), batch_sharding(mesh, 1)
    placed = jax.device_put(arguments, (divided, whole, divided))
    actual = jax.jit(partitioning.on_mesh(mesh, with_gradients))(*placed)
    assert actual[0].sharding.spec[2] == "rows"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


def test_the_kernel_of_a_normalised_convolution_does_not_depend_on_the_mesh():
    """Each device has its pixels; sums over pixels, and gradients of weights, are added up."""
    mesh = make_mesh(data=4, rows=2)
    shapes = (4, 8, 4, 6, 5), (4, 8, 5), (4, 8, 5), (3, 5, 7), (7,)
    x, scale, shift, *weights = (jax.random.normal(jax.random.key(len(shape)), shape) for shape in shapes)

    def with_gradients(x, norm, *weights):
        out, pull_back = jax.vjp(functools.partial(normalized_conv, act="gelu", interpret=True), x, norm, *weights)
        return out, pull_back(jax.tree.map(jnp.cos, out))

    arguments = x, Affine(scale, shift), *weights
    expected = jax.jit(with_gradients)(*arguments)
    places = batch_sharding(mesh), batch_sharding(mesh, 3), *[replicated(mesh)] * 2
    placed = jax.device_put(arguments, places)
    compiled = jax.jit(partitioning.on_mesh(mesh, with_gradients)).lower(*placed).compile()
    assert "all-gather" not in compiled.as_text()  # nothing but sums is sent
    actual = compiled(*placed)
    assert actual[0][0].sharding.spec == PartitionSpec("data", None, "rows")
    assert_same(actual, expected)


def test_a_tpus_temporal_convolution_does_not_depend_on_the_mesh(monkeypatch):
    """Its batch are the pixels of a line: clips and rows, which are divided, are axes that it does not go over."""
    graphdef, state = nnx.split(TemporalConv(3, 5, rngs=nnx.Rngs(0), param=nnx.Param))

    def gradients(state, video):
        return jax.value_and_grad(lambda *inputs: jnp.mean(jnp.sin(nnx.merge(graphdef, inputs[0])(inputs[1]))), (0, 1))(
            state, video
        )

    video = np.sin(VIDEO)
    expected = jax.jit(gradients)(state, video)
    mesh = make_mesh(data=4, rows=2)
    monkeypatch.setattr(partitioning, "platform", lambda: "tpu")
    compiled = (
        jax.jit(partitioning.on_mesh(mesh, gradients)).lower(place(mesh, state), shard_batch(mesh, video)).compile()
    )
    assert "all-gather" not in compiled.as_text()  # nor do the clips move
    assert_same(compiled(place(mesh, state), shard_batch(mesh, video)), expected)


@pytest.fixture
def any_part(monkeypatch):
    """The smallest STUNet's few channels may be divided: nothing here runs on a TPU."""
    monkeypatch.setattr(partitioning, "_ALIGNMENT", {-1: 1, -2: 1})


def divided(tree):
    """How many leaves do not lie whole on every device."""
    return sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("data", "rows", "fsdp"), [(8, 1, False), (1, 8, False), (4, 2, False), (8, 1, True), (2, 4, True)]
)
@pytest.mark.usefixtures("any_part")
def test_a_training_step_does_not_depend_on_the_mesh(data, rows, fsdp):
    mesh = make_mesh(data, rows)
    graphdef, trained, frozen = stunet()
    expected, expected_metrics = on_one_device()
    # Copies: what is placed may share memory, and the step uses it up.
    state = place(mesh, jax.device_get(create_state(trained, OPTIMIZER)), fsdp=fsdp)
    assert (divided(state) > 50) == (divided(state) > 0) == fsdp
    update = jit_update(graphdef, SETTINGS, state)
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    state, metrics = update(state, place(mesh, frozen, fsdp=fsdp), shard_batch(mesh, clips()), 0)
    assert [leaf.sharding for leaf in jax.tree.leaves(state)] == before
    assert_same(metrics, expected_metrics)
    assert_same(state, expected)


# ------------------------------------------------------------------------------------ sampling

# Six, which neither eight nor four devices along data divide.
PROMPTS = ["a red circle", "a blue star", "", "a star", "a green square moving left", "a circle"]
SAMPLE = {"seed": 3, "first_number": 2}


@functools.cache
def run_on(super_resolution, data, rows):
    devices = np.array(jax.devices()[: data * rows]).reshape(data, rows)
    return random_run(super_resolution, Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2))


@functools.cache
def sampled(super_resolution, data, rows):
    run = run_on(super_resolution, data, rows)
    if not super_resolution:
        return sample_videos(run, PROMPTS, frames=3, size=(8, 8), **SAMPLE)
    videos = np.random.default_rng(0).uniform(-1, 1, (6, 5, 4, 4, 3)).astype(np.float32)
    return super_resolve(run, videos, PROMPTS, **SAMPLE)


@pytest.mark.parametrize(("data", "rows"), [(8, 1), (4, 2), (2, 4)])
@pytest.mark.parametrize("super_resolution", [False, True])
def test_a_clip_does_not_depend_on_the_mesh(super_resolution, data, rows):
    """Text, noises of start and steps, guidance and windows: each clip gets its own."""
    expected = sampled(super_resolution, 1, 1)
    assert expected.shape == ((6, 5, 8, 8, 3) if super_resolution else (6, 3, 8, 8, 3))
    assert all(np.abs(one - other).max() > 0.1 for one, other in itertools.combinations(expected, 2))
    np.testing.assert_allclose(sampled(super_resolution, data, rows), expected, atol=1e-3)


@pytest.mark.usefixtures("any_part")
def test_a_clip_does_not_depend_on_where_parameters_lie():
    run = run_on(super_resolution=False, data=2, rows=4)
    graphdef, parameters = nnx.split(run.model)
    parameters = place(run.mesh, nnx.to_pure_dict(parameters), fsdp=True)
    assert divided(parameters) > 50
    run = dataclasses.replace(run, model=nnx.merge(graphdef, parameters))
    clips = sample_videos(run, PROMPTS, frames=3, size=(8, 8), **SAMPLE)
    np.testing.assert_allclose(clips, sampled(False, 1, 1), atol=1e-3)


def test_a_clip_does_not_depend_on_the_others():
    """Not in what a stochastic sampler adds, either."""
    run = run_on(super_resolution=False, data=8, rows=1)
    alone = sample_videos(run, PROMPTS[4:], seed=3, first_number=6, frames=3, size=(8, 8))
    np.testing.assert_allclose(alone, sampled(False, 8, 1)[4:], atol=1e-4)


def test_sampling_that_does_not_divide():
    run = run_on(super_resolution=False, data=2, rows=4)
    with pytest.raises(ValueError, match="clips of height 6 cannot be divided over rows=4"):
        sample_videos(run, PROMPTS, size=(6, 8))
    with pytest.raises(ValueError, match=r"batch_size=3 cannot be divided over 2 devices .* multiple of 2"):
        sample_in_batches(run, PROMPTS, seed=0, batch_size=3)


def test_a_whole_batch_is_cut_by_clip():
    mesh = make_mesh(data=4, rows=2)
    placed = divide_batch(mesh, {"video": VIDEO, "number": np.arange(8)})
    for (data, _), device in np.ndenumerate(mesh.devices):
        clips = slice(2 * data, 2 * data + 2)
        np.testing.assert_array_equal(blocks(placed["video"])[device.id], VIDEO[clips])
        np.testing.assert_array_equal(blocks(placed["number"])[device.id], np.arange(8)[clips])


def test_windows_of_one_clip_on_eight_devices_are_averaged_by_one_collective():
    """Each device denoises one of eight windows; what it found of the clip is added up."""

    def denoiser(x, t, mask):
        position = jnp.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, 1, 1, 1)
        return (x.mean(1, keepdims=True) * (1 + position) + t * x) * mask

    def run(x, mask, sharding):
        denoise = multidiffusion(denoiser, Windows((8, 2), weights="feathered"), sharding=sharding)
        return denoise(x, jnp.float32(0.3), mask)

    x, mask = np.random.default_rng(0).normal(size=(2, 1, 50, 4, 4, 3)).astype(np.float32)
    mesh = make_mesh()
    divided = jax.jit(functools.partial(run, sharding=batch_sharding(mesh)), out_shardings=replicated(mesh))
    compiled = divided.lower(*place(mesh, (x, mask))).compile()
    program = compiled.as_text()
    assert re.search(r"f32\[(1,)?8,4,4,3\]", program)
    assert len(re.findall(r"\ball-reduce(?:-start)?\(", program)) == 1
    assert not re.findall(r"\b(?:all-gather|all-to-all|collective-permute|reduce-scatter)[\w-]*\(", program)
    expected = jax.jit(functools.partial(run, sharding=None))(x, mask)
    np.testing.assert_allclose(compiled(*place(mesh, (x, mask))), expected, atol=1e-5)


def test_guidance_windows_and_noise_stay_on_their_clips_device():
    def predict(x_t, t, text, low_res, noise_level):
        return x_t * t[:, None, None, None, None] + low_res * text.mean((1, 2))[:, None, None, None, None]

    def run(numbers, noise, text):
        keys = jax.vmap(jax.random.key)(numbers)
        return generate(predict, noise, (text, -text), noise, noise[:, 0, 0, 0, 0], keys, settings)[0]

    settings = Settings(SCHEDULE, "v", "ddpm", 2, 3.0, "static", windows=Windows((3, 1)), window_batch=2)
    shapes = (np.arange(8, dtype=np.int32), np.zeros((8, 6, 4, 4, 3), np.float32), np.zeros((8, 2, 3), np.float32))
    program = jax.jit(run).lower(*divide_batch(make_mesh(), shapes)).compile().as_text()
    assert "f32[1,6,4,4,3]" in program  # one clip for each
    assert not re.findall(r"\b(?:all|collective|reduce-scatter)[\w-]*\(", program)
