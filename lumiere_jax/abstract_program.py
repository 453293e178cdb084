"""The programs that train and sample, for shapes alone: what they need is counted, and they are compiled for slices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from lumiere_jax.abstract_model import abstract_batch, abstract_model
from lumiere_jax.diffusion.condition import CHANNELS, Condition
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.rematerialization import Rematerialization
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.text_to_video import sample_program
from lumiere_jax.pipelines.window_programs import abstract_windows, denoise_windows
from lumiere_jax.train_setup import jit_update, step_settings
from lumiere_jax.train_step import TrainState, create_state, train_step


def lower_training_step(config: ml_collections.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """The training step of an inflated config as `train` jits it, lowered for the devices of `mesh`.

    Its text comes as embeddings, made ahead of time.
    """
    if "distillation" in config:
        raise ValueError(
            f"{config.name}: a student's training step, with its teacher's, is not counted or compiled yet"
        )
    graphdef, trained, frozen = parameter_partition.split(abstract_model(config))
    state, frozen = (_placed(mesh, tree, config.fsdp) for tree in (_state(config, trained), cast(frozen, config)))
    batch = abstract_batch(config, config.training.batch_size)
    divided = jax.tree.map(lambda leaf: partitioning.batch_sharding(mesh, len(leaf.shape)), batch)
    batch = partitioning.shapes_on(batch, divided)
    return jit_update(graphdef, step_settings(config), state).lower(state, frozen, batch, config.seed)


def lower_sampling(config: ml_collections.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """Sampling of a batch of `config.training.batch_size` clips, lowered for the devices of `mesh`.

    Of a super-resolution config so many windows, and one evaluation of the network. Text comes as embeddings, of the
    prompts and of the empty prompt.
    """
    graphdef, trained, frozen = parameter_partition.split(abstract_model(config))
    graphdef, state = nnx.split(nnx.merge(graphdef, trained, cast(frozen, config)))
    parameters = _placed(mesh, nnx.to_pure_dict(state), config.fsdp)
    clips, sharding = config.training.batch_size, partitioning.batch_sharding(mesh)
    divided, everywhere = partitioning.batch_sharding(mesh, 1), partitioning.replicated(mesh)
    key = partitioning.shapes_on(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    clip, config = (config.clip.frames, config.clip.size, config.clip.size), _with_unet(config)
    settings = sampling_settings(config)
    if config.diffusion.low_res_factor:
        scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
        windows = abstract_windows(config, settings, clip, clips, mesh)
        of_clip = {"size": clip[1:], "settings": settings, "sharding": sharding}
        return denoise_windows.lower(graphdef, parameters, key, scalar, scalar, *windows, **of_clip)
    text = partitioning.shapes_on(abstract_batch(config, clips).text, divided)
    numbers = jax.ShapeDtypeStruct((clips,), jnp.int32, sharding=divided)
    given = None
    if settings.is_conditional:
        video, mask = (
            jax.ShapeDtypeStruct((clips, *clip, channels), jnp.float32, sharding=divided) for channels in (3, 1)
        )
        given = Condition(video, mask)
    return sample_program.lower(
        graphdef, parameters, key, numbers, (text, text), given, clip=clip, settings=settings, sharding=sharding
    )


PROGRAMS: dict[str, Callable[[ml_collections.ConfigDict, Mesh], jax.stages.Lowered]] = {
    "train": lower_training_step,
    "sample": lower_sampling,
}


def needed_flops(config: ml_collections.ConfigDict, program: str) -> float:
    """FLOPs that the model needs for one call of a program, on all devices together: nothing computed again.

    Counted for one clip, of which a batch needs a multiple; what is added to the update by that is too little to count.

    Args:
      config: as for the program.
      program: one of `PROGRAMS`.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    config.remat = vars(Rematerialization())
    if program == "train":
        a_clip = step_flops(config, parameter_partition.split(abstract_model(config)))
    else:
        settings = sampling_settings(_with_unet(config))
        calls = 1 if config.diffusion.low_res_factor else settings.calls
        a_clip = forward_flops(config) * calls * settings.evaluations_a_call
    return config.training.batch_size * a_clip


def forward_flops(config: ml_collections.ConfigDict) -> float:
    """FLOPs of one evaluation of the network on one clip, as in sampling without guidance."""
    graphdef, trained, frozen = parameter_partition.split(abstract_model(config))
    return count_flops(functools.partial(predict, graphdef), trained, cast(frozen, config), *inputs(config))


def step_flops(config: ml_collections.ConfigDict, parts: tuple[nnx.GraphDef, dict, dict], batch_size: int = 1) -> float:
    """FLOPs of a training step, with what `config.remat` computes again.

    Args:
      config: of the model.
      parts: graph definition, trained and frozen parameters.
      batch_size: clips.
    """
    graphdef, trained, frozen = parts
    settings = step_settings(config) | {"accumulation_steps": 1}
    update = functools.partial(train_step, graphdef=graphdef, **settings)
    return count_flops(update, _state(config, trained), cast(frozen, config), abstract_batch(config, batch_size), 0)


def predict(
    graphdef: nnx.GraphDef, trained: dict, frozen: dict, video: jax.Array, time: jax.Array, text: jax.Array, *given: Any
) -> jax.Array:
    """One evaluation of the network: its parts, then `inputs`."""
    model = nnx.merge(graphdef, trained, frozen)
    return model.predict(video, time, model.embed_text(text), *given)


def inputs(config: ml_collections.ConfigDict) -> tuple:
    """Of `predict`, for one clip, as shapes."""
    batch, time = abstract_batch(config, 1), jax.ShapeDtypeStruct((1,), jnp.float32)
    given = ()
    if config.diffusion.low_res_factor:
        given = batch.video, time
    elif "conditioning" in config:
        given = (jax.ShapeDtypeStruct((*batch.video.shape[:-1], CHANNELS), batch.video.dtype),)
    return batch.video, time, batch.text, *given


def cast(frozen: dict, config: ml_collections.ConfigDict) -> dict:
    """Frozen parameters in the type that a config computes in, as `train` holds them."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(config.compute_dtype)), frozen)


def _with_unet(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config as a trained run has it."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.unet = config.image_model.unet
    return config


def _state(config: ml_collections.ConfigDict, trained: dict) -> TrainState:
    optimizer, averages = step_settings(config)["optimizer"], len(config.training.ema_decays)
    return jax.eval_shape(lambda parameters: create_state(parameters, optimizer, averages), trained)


def _placed(mesh: Mesh, tree: Any, fsdp: bool) -> Any:
    return partitioning.shapes_on(tree, partitioning.parameter_shardings(mesh, tree, fsdp=fsdp))
