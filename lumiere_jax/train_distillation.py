"""A student's teacher: the Space-Time U-Net that it starts from (train_base.py), which the loss asks.

See configs/distill.py and diffusion/distillation.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data.input_pipeline import EncodeCaption
from lumiere_jax.distributed import partitioning
from lumiere_jax.pipelines.generation import Settings, sampling_settings
from lumiere_jax.train_step import Teacher


def check_teacher(teacher: Run, steps: int) -> None:
    """Raises a ValueError for a run that a student cannot learn from."""
    config = teacher.config
    if "distillation" in config and config.distillation.steps != 2 * steps:
        raise ValueError(
            f"distillation.steps={steps}: {teacher.path} needs {config.distillation.steps} steps itself, its student "
            f"half of them: set {config.distillation.steps // 2}"
        )
    interval = sampling_settings(config).guidance_interval
    if interval != (0.0, 1.0):
        raise ValueError(
            f"distillation.teacher={teacher.path} is guided at times {interval} alone, which is not distilled: its "
            "sampling.guidance_interval must be (0, 1)"
        )


def make_teacher(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, parameters: dict, encode_caption: EncodeCaption
) -> Teacher | None:
    """Whom a run is distilled from; None where it is not.

    Args:
      config: of a prepared run.
      mesh: the devices.
      parameters: that training starts from: the teacher's.
      encode_caption: how captions are given to the train step.
    """
    if "distillation" not in config:
        return None
    # A copy: the training state is used up.
    frozen = jax.tree.map(lambda leaf: jnp.array(leaf, config.compute_dtype, copy=True), parameters)
    empty = jnp.asarray(encode_caption([""])["text"][0])
    return Teacher(partitioning.place(mesh, frozen, fsdp=config.fsdp), empty)


def teacher_settings(config: ml_collections.ConfigDict) -> Settings:
    """How a student's teacher is sampled: as its own run's config says, but by DDIM."""
    fields = ml_collections.ConfigDict(config.to_dict() | {"sampling": config.distillation.sampling})
    return dataclasses.replace(sampling_settings(fields), sampler="ddim")
