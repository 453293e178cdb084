"""What a run takes from the Space-Time U-Net that it starts from: a student's teacher, or the conditional model's base.

Clip, networks, diffusion and text are the base's. Its temporal layers are copied into the run's directory: training
starts from them.
"""

import jax
import ml_collections

from lumiere_jax.checkpoints.checkpointing import load_tree, save_tree
from lumiere_jax.checkpoints.image_model import ImageModel
from lumiere_jax.checkpoints.run_directory import Run, RunDirectory, load_run
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import deflate
from lumiere_jax.train_distillation import check_teacher

# The config's sections that such a run has one of, and their field that names the base's --workdir.
_FIELDS = {"distillation": "teacher", "conditioning": "base"}


def has_base(config: ml_collections.ConfigDict) -> bool:
    """Whether a run starts from another run's Space-Time U-Net."""
    return any(section in config for section in _FIELDS)


def base_image_model(config: ml_collections.ConfigDict, run_dir: RunDirectory, mesh: jax.sharding.Mesh) -> ImageModel:
    """The image model under the base; the temporal layers above it are copied into the run's directory.

    Raises:
      ValueError: no base is named, or one that the run cannot start from.
      CheckpointError: as `load_run`.
    """
    section, field = next((section, field) for section, field in _FIELDS.items() if section in config)
    name, path = f"{section}.{field}", config[section][field]
    if not path:
        raise ValueError(f"{name} is empty: give the --workdir of the training to start from, --config.{name}=DIR")
    base = load_run(path, mesh=mesh, text_checkpoint=config.text.get("checkpoint") or None, require_finished=True)
    _check_base(name, base)
    if section == "distillation":
        check_teacher(base, config.distillation.steps)
        config.distillation.sampling = base.config.sampling
    take_over(config, base.config)
    clip = config.clip
    processes.say(
        f"as {base.path} has them: clips of {clip.frames} frames of {clip.size}x{clip.size} at {clip.fps:g} fps, "
        "temporal layers, diffusion"
    )
    _, temporal, _ = parameter_partition.split(base.model.unet)
    save_tree(run_dir.base, temporal, overwrite=True)
    text = base.config.text.to_dict()
    return ImageModel(deflate(base.model.unet), base.model.text_encoder, base.tokenizer, text, base.references)


def _check_base(name: str, base: Run) -> None:
    if "temporal" not in base.config or base.config.diffusion.low_res_factor:
        raise ValueError(f"{name}={base.path} is no Space-Time U-Net's run: {base.config.name}")
    if "conditioning" in base.config:
        raise ValueError(f"{name}={base.path} is a conditional model: give the one that it was fine-tuned from")
    if "distillation" in base.config and name == "conditioning.base":
        raise ValueError(f"{name}={base.path} is a student, whose few steps would be unlearned: give its teacher")


def take_over(config: ml_collections.ConfigDict, source: ml_collections.ConfigDict) -> None:
    """A run's clip, temporal layers and diffusion are its base's, or those that it was started with."""
    for name in ("clip", "temporal", "diffusion"):
        config[name] = source[name]
    if "distillation" in config and "distillation" in source:
        config.distillation.sampling = source.distillation.sampling


def start_from_base(
    config: ml_collections.ConfigDict, run_dir: RunDirectory, mesh: jax.sharding.Mesh, trained: dict
) -> dict:
    """What a run's trained parameters start from.

    Args:
      config: of a prepared run.
      run_dir: its directory.
      mesh: the devices.
      trained: the new network's parameters: the start, where there is no base, and of what the base does not have.
    """
    if not has_base(config):
        return trained
    inflation = dict(trained["unet"])
    expansion = {"conv_in": inflation.pop("conv_in")} if "conditioning" in config else {}
    return {"unet": load_tree(run_dir.base, inflation, partitioning.replicated(mesh)) | expansion}
