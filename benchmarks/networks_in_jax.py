"""Our networks, as `peer_networks` measures them; imported only in the process that runs them."""

import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from benchmarks.peer_networks import Competitor, Program, Task
from lumiere_jax.abstract_program import predict
from lumiere_jax.checkpoints.imported_unet import load_imported_unet, open_imported_unet
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import partitioning, platform
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.import_weights import import_deepfloyd_if
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.rematerialization import Rematerialization, rematerialize
from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.train_setup import jit_update, step_settings
from lumiere_jax.train_step import Batch, create_state


def start(_task: Task) -> None:
    """XLA's flags as all entry points set them, and the device.

    Raises:
      RuntimeError: JAX finds no such device.
    """
    platform.configure()
    jax.devices()


def build(task: Task, _competitor: Competitor) -> Program:
    """The U-Net with the weights of `task.weights`, for videos inflated with new temporal layers."""
    config = task.get_config()
    unet = _image_unet(task, config)
    arrays = jax.tree.map(jnp.asarray, task.inputs())
    if task.network == "image":
        return _image_program(task, unet, arrays)
    inflate(unet, TemporalConfig(**config.temporal), rngs=nnx.Rngs(1))
    rematerialize(unet, Rematerialization(**config.remat))
    model = TextToVideo(None, unet, dtype=jnp.dtype(task.dtype))
    return _forward(task, model, arrays) if task.program == "forward" else _training_step(config, model, arrays)


def _image_unet(task: Task, config: ml_collections.ConfigDict) -> UNet2D:
    if not task.weights:
        return UNet2D(UNet2DConfig(**config.image_model.unet), rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as temporary:
        imported = pathlib.Path(temporary, "imported")
        import_deepfloyd_if(task.weights, imported)
        return load_imported_unet(open_imported_unet(imported))


def _image_program(task: Task, unet: UNet2D, arrays: dict[str, jax.Array]) -> Program:
    graphdef, state = nnx.split(unet)
    dtype = jnp.dtype(task.dtype)
    parameters, masters = _cast(nnx.to_pure_dict(state), dtype), nnx.to_pure_dict(state)
    given = (arrays["video"].astype(dtype), arrays["time"], arrays["text"].astype(dtype))

    def forward(parameters: dict, video: jax.Array, time: jax.Array, text: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, parameters)(video, time, text).astype(jnp.float32)

    def loss(parameters: dict, target: jax.Array, *given: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = forward(parameters, *given)
        return jnp.mean(jnp.square(out - target)), out

    sizes = (
        parameter_partition.count(parameters),
        _trained(task, parameters),
        count_flops(forward, parameters, *given),
    )
    if task.program == "forward":
        run = functools.partial(jax.jit(forward), parameters, *given)
        return _program(run, lambda out: {"output": out}, sizes)
    run = functools.partial(jax.jit(jax.value_and_grad(loss, has_aux=True)), masters, arrays["target"], *given)
    return _program(run, _gradient_results, sizes)


def _trained(task: Task, parameters: dict) -> int:
    return 0 if task.program == "forward" else parameter_partition.count(parameters)


def _gradient_results(computed: tuple[tuple[jax.Array, jax.Array], dict]) -> dict[str, jax.Array]:
    (loss, out), gradient = computed
    return {"output": out, "loss": loss, "gradient norm": optax.tree.norm(gradient)}


def _forward(task: Task, model: TextToVideo, arrays: dict[str, jax.Array]) -> Program:
    graphdef, trained, frozen = parameter_partition.split(model)
    trained, frozen = _cast(trained, model.dtype), _cast(frozen, model.dtype)
    given = (trained, frozen, arrays["video"], arrays["time"], arrays["text"])
    evaluate = functools.partial(predict, graphdef)
    sizes = (parameter_partition.count(trained) + parameter_partition.count(frozen), 0, count_flops(evaluate, *given))
    return _program(functools.partial(jax.jit(evaluate), *given), lambda out: {"output": out}, sizes)


def _training_step(config: ml_collections.ConfigDict, model: TextToVideo, arrays: dict[str, jax.Array]) -> Program:
    """`train_step` as `train` runs it."""
    mesh = meshes.make_mesh(**config.mesh)
    graphdef, trained, frozen = parameter_partition.split(model)
    frozen = partitioning.place(mesh, _cast(frozen, model.dtype))
    forward_flops = count_flops(
        functools.partial(predict, graphdef), trained, frozen, arrays["video"], arrays["time"], arrays["text"]
    )
    settings = step_settings(config)
    state = partitioning.place(mesh, create_state(trained, settings["optimizer"], len(settings["ema_decays"])))
    update = jit_update(graphdef, settings, state)
    batch = partitioning.shard_batch(mesh, Batch(np.asarray(arrays["video"]), np.asarray(arrays["text"])))

    def run() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = update(state, frozen, batch, config.seed)
        jax.block_until_ready(state)
        return metrics

    count = parameter_partition.count
    return _program(
        run, lambda metrics: {"loss": metrics["loss"]}, (count(trained) + count(frozen), count(trained), forward_flops)
    )


def _cast(parameters: dict, dtype: jnp.dtype) -> dict:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)


def _program(run: Callable[[], Any], named: Callable[[Any], dict], sizes: tuple[int, int, float]) -> Program:
    def results() -> dict[str, np.ndarray]:
        return {name: np.asarray(array) for name, array in named(run()).items()}

    device = jax.devices()[0]
    peak = None if device.platform == "cpu" else lambda: device.memory_stats()["peak_bytes_in_use"]
    return Program(lambda: jax.block_until_ready(run()), results, *sizes, device_peak=peak)
