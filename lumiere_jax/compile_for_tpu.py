"""Compiles a config's program for a TPU slice that is not at hand: does it fit, how long would a step take?

    python -m lumiere_jax.compile_for_tpu --config=configs/stunet.py:if_m --topology=v5e:4x4
    python -m lumiere_jax.compile_for_tpu --config=configs/stunet.py:if_m --topology=v5e:4x4 --program=sample

The very functions that train and sample are compiled ahead of time by libtpu, on any Linux machine; no weights are made.
"""
import dataclasses
import functools
import json
import pathlib
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import app, flags, logging
from absl.flags import FLAGS
from ml_collections import config_flags

from lumiere_jax.abstract_model import abstract_batch, abstract_model
from lumiere_jax.distributed import partitioning, tpu_slice
from lumiere_jax.distributed.compiled_program import Cost, cost_of
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.distributed.model_flops import count_flops, peak_flops
from lumiere_jax.models import parameter_partition
from lumiere_jax.train_setup import check_batches, check_config, jit_update, step_settings
from lumiere_jax.train_step import create_state


def lower_training_step(config, mesh):
    model = abstract_model(config)
    graphdef, trained, frozen = parameter_partition.split(model)
    settings = step_settings(config)
    def placed(tree, shardings):
        return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings)
    state = jax.eval_shape(lambda p: create_state(p, settings["optimizer"], len(config.training.ema_decays)), trained)
    state = placed(state, partitioning.parameter_shardings(mesh, state, fsdp=config.fsdp))
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype), frozen)
    frozen = placed(frozen, partitioning.parameter_shardings(mesh, frozen, fsdp=config.fsdp))
    batch = abstract_batch(config, config.training.batch_size)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=partitioning.batch_sharding(mesh, len(leaf.shape))), batch)
    return jit_update(graphdef, settings, state).lower(state, frozen, batch, config.seed)
