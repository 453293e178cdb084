"""What a student's run takes from its teacher's (configs/distill.py, diffusion/distillation.py).

Clip, networks, diffusion and text are the teacher's. Its temporal layers are copied into the student's run directory:
training starts from them, and the loss asks them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from lumiere_jax.checkpoints.checkpointing import load_tree, save_tree
from lumiere_jax.checkpoints.image_model import ImageModel
from lumiere_jax.checkpoints.run_directory import Run, RunDirectory, load_run
from lumiere_jax.data.input_pipeline import EncodeCaption
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import deflate
from lumiere_jax.pipelines.generation import Settings, sampling_settings
from lumiere_jax.train_step import Teacher


def teacher_image_model(
    config: ml_collections.ConfigDict, run_dir: RunDirectory, mesh: jax.sharding.Mesh
) -> ImageModel:
    """The image model under a student's teacher, whose temporal layers are copied into the run's directory."""
    fields = config.distillation
    if not fields.teacher:
        raise ValueError(
            "distillation.teacher is empty: give the --workdir of the training that the student learns from, "
            "--config.distillation.teacher=DIR"
        )
    teacher = load_run(
        fields.teacher, mesh=mesh, text_checkpoint=config.text.get("checkpoint") or None, require_finished=True
    )
    _check_teacher(teacher, fields.steps)
    take_over(config, teacher.config, teacher.config.sampling)
    clip = config.clip
    processes.say(
        f"as {teacher.path} has them: clips of {clip.frames} frames of {clip.size}x{clip.size} at {clip.fps:g} fps, "
        "temporal layers, diffusion"
    )
    _, temporal, _ = parameter_partition.split(teacher.model.unet)
    save_tree(run_dir.teacher, temporal, overwrite=True)
    text = teacher.config.text.to_dict()
    return ImageModel(
        deflate(teacher.model.unet), teacher.model.text_encoder, teacher.tokenizer, text, teacher.references
    )


def _check_teacher(teacher: Run, steps: int) -> None:
    """Raises a ValueError for a run that a student cannot learn from."""
    config = teacher.config
    if "temporal" not in config or config.diffusion.low_res_factor:
        raise ValueError(f"distillation.teacher={teacher.path} is no Space-Time U-Net's run: {config.name}")
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


def take_over(
    config: ml_collections.ConfigDict, source: ml_collections.ConfigDict, sampling: ml_collections.ConfigDict
) -> None:
    """A student's clip, temporal layers and diffusion are its teacher's; and the config says how that one samples."""
    for name in ("clip", "temporal", "diffusion"):
        config[name] = source[name]
    config.distillation.sampling = sampling


def load_teacher(
    config: ml_collections.ConfigDict,
    run_dir: RunDirectory,
    mesh: jax.sharding.Mesh,
    trained: dict,
    encode_caption: EncodeCaption,
) -> tuple[dict, Teacher | None]:
    """What a run's trained parameters start from, and its teacher.

    Args:
      config: of a prepared run.
      run_dir: its directory.
      mesh: the devices.
      trained: the new network's parameters: the start, where there is no teacher.
      encode_caption: how captions are given to the train step.
    """
    if "distillation" not in config:
        return trained, None
    parameters = {"unet": load_tree(run_dir.teacher, trained["unet"], partitioning.replicated(mesh))}
    # A copy: the training state is used up.
    frozen = jax.tree.map(lambda leaf: jnp.array(leaf, config.compute_dtype, copy=True), parameters)
    empty = jnp.asarray(encode_caption([""])["text"][0])
    return parameters, Teacher(partitioning.place(mesh, frozen, fsdp=config.fsdp), empty)


def teacher_settings(config: ml_collections.ConfigDict) -> Settings:
    """How a student's teacher is sampled: as its own run's config says, but by DDIM."""
    fields = ml_collections.ConfigDict(config.to_dict() | {"sampling": config.distillation.sampling})
    return dataclasses.replace(sampling_settings(fields), sampler="ddim")
