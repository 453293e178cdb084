"""The programs that train and sample, for shapes alone: what `compile_for_tpu` compiles, and the benchmarks count."""

from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from lumiere_jax.abstract_model import abstract_batch, abstract_model
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.rematerialization import Rematerialization
from lumiere_jax.train_setup import jit_update, step_settings
from lumiere_jax.train_step import create_state


def lower_training_step(config: ml_collections.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """The training step of an inflated config as `train` jits it, lowered for the devices of `mesh`.

    Its text comes as embeddings, made ahead of time.

    Raises:
      ValueError: what `train` would refuse too.
    """
    model = abstract_model(config)
    graphdef, trained, frozen = parameter_partition.split(model)
    settings = step_settings(config)
    state = jax.eval_shape(
        lambda parameters: create_state(parameters, settings["optimizer"], len(config.training.ema_decays)), trained
    )
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype), frozen)
    state, frozen = (_placed(mesh, tree, config.fsdp) for tree in (state, frozen))
    batch = jax.tree.map(
        lambda leaf: _with_sharding(leaf, partitioning.batch_sharding(mesh, len(leaf.shape))),
        abstract_batch(config, config.training.batch_size),
    )
    return jit_update(graphdef, settings, state).lower(state, frozen, batch, config.seed)


def training_step_flops(config: ml_collections.ConfigDict) -> float:
    """FLOPs that a training step on the whole batch needs: nothing computed again, no channel padded.

    Counted for one clip, of which a batch needs a multiple but for the update, which is little.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    config.remat = Rematerialization().__dict__
    graphdef, trained, frozen = parameter_partition.split(abstract_model(config))


def _placed(mesh: Mesh, tree: Any, fsdp: bool) -> Any:
    return jax.tree.map(_with_sharding, tree, partitioning.parameter_shardings(mesh, tree, fsdp=fsdp))


def _with_sharding(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
