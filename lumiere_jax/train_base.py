"""What a run takes from the one that it starts from: a student's teacher, a conditional model's base, or a style's.

Networks, diffusion and text are the base's. A student and a conditional model start from its temporal layers, of which
the run's directory gets a copy, and have its clips. A style starts from its spatial layers. Fine-tuning, where
`init_from` names an inflated run in place of an image model, starts from its temporal layers, with clips of its own.
"""

import jax
import ml_collections

from lumiere_jax.checkpoints.checkpointing import load_tree, save_tree
from lumiere_jax.checkpoints.image_model import ImageModel
from lumiere_jax.checkpoints.imported_unet import is_imported_unet
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import deflate
from lumiere_jax.pipelines.stylized_generation import spatial_layers_hash
from lumiere_jax.train_distillation import check_teacher

# The config's sections that such a run has one of, and their field that names the base's --workdir.
_FIELDS = {"distillation": "teacher", "conditioning": "base", "style": "base"}
_FINE_TUNED = "init_from"


def has_base(config: ml_collections.ConfigDict) -> bool:
    """Whether a run starts from another run, and has its clips.

    Temporal super-resolution has `conditioning`, but no `base` there: its temporal layers are new.
    """
    return _field(config) != _FINE_TUNED


def is_fine_tuned(config: ml_collections.ConfigDict) -> bool:
    """Whether `init_from` names an inflated run, whose temporal layers are trained further."""
    path = "" if has_base(config) else config.init_from
    if not path or is_imported_unet(path):
        return False
    base = RunDirectory(path).read_config()
    return base is not None and "temporal" in base


def _field(config: ml_collections.ConfigDict) -> str:
    """The config's field that names the base."""
    fields = (f"{section}.{field}" for section, field in _FIELDS.items() if field in config.get(section, {}))
    return next(fields, _FINE_TUNED)


def base_image_model(config: ml_collections.ConfigDict, run_dir: RunDirectory, mesh: jax.sharding.Mesh) -> ImageModel:
    """The image model under the base; temporal layers above it are copied into the run's directory, where they count.

    Raises:
      ValueError: no base is named, or one that the run cannot start from.
      CheckpointError: as `load_run`.
    """
    name = _field(config)
    section, _, field = name.rpartition(".")
    path = config[section][field] if section else config[field]
    if not path:
        raise ValueError(f"{name} is empty: give the --workdir of the training to start from, --config.{name}=DIR")
    base = load_run(path, mesh=mesh, text_checkpoint=config.text.get("checkpoint") or None, require_finished=True)
    _check_base(name, base, config)
    take_over(config, base.config)
    if section == "style":
        config.style.base_unet = spatial_layers_hash(base)
        size = f"{config.clip.size}x{config.clip.size}"
        processes.say(f"as {base.path} has them: images of {size}, diffusion, and the spatial layers to start from")
    else:
        if section == "distillation":
            check_teacher(base, config.distillation.steps)
            config.distillation.sampling = base.config.sampling
        clip, has_them = config.clip, f"as {base.path} has them:"
        clips = f"clips of {clip.frames} frames of {clip.size}x{clip.size} at {clip.fps:g} fps"
        processes.say(f"{has_them} {clips}, temporal layers, diffusion" if section else f"{has_them} temporal layers")
        save_tree(run_dir.base, parameter_partition.split(base.model.unet)[1], overwrite=True)
    unet = deflate(base.model.unet) if "temporal" in base.config else base.model.unet
    return ImageModel(unet, base.model.text_encoder, base.tokenizer, base.config.text.to_dict(), base.references)


def _check_base(name: str, base: Run, config: ml_collections.ConfigDict) -> None:
    if name == _FINE_TUNED:
        for section in _FIELDS:
            if section in base.config:
                raise ValueError(
                    f"init_from={base.path} has {section}: give a run without, such as the one that it was started from"
                )
        factors = base.config.diffusion.low_res_factor, config.diffusion.low_res_factor
        if factors[0] != factors[1]:
            raise ValueError(
                f"init_from={base.path} has diffusion.low_res_factor={factors[0]}, the config {factors[1]}: fine-tune "
                "with the config that it was trained with"
            )
        return
    if base.config.diffusion.low_res_factor:
        raise ValueError(f"{name}={base.path} is a super-resolution run: {base.config.name}")
    if name == "style.base":
        if "style" in base.config:
            raise ValueError(f"{name}={base.path} is a style itself: give the run that it was fine-tuned from")
        return
    if "temporal" not in base.config:
        raise ValueError(f"{name}={base.path} is no Space-Time U-Net's run: {base.config.name}")
    if "conditioning" in base.config:
        raise ValueError(f"{name}={base.path} is a conditional model: give the one that it was fine-tuned from")
    if "distillation" in base.config and name == "conditioning.base":
        raise ValueError(f"{name}={base.path} is a student, whose few steps would be unlearned: give its teacher")


def take_over(config: ml_collections.ConfigDict, source: ml_collections.ConfigDict) -> None:
    """What of a run's config is its base's, or as it was started with."""
    config.diffusion = source.diffusion
    if not has_base(config):
        config.temporal = source.temporal
    elif "style" in config:
        config.clip.size = source.clip.size
        config.clip.crop_from = round(config.style.zoom * source.clip.size)
    else:
        config.clip, config.temporal = source.clip, source.temporal


def start_from_base(
    config: ml_collections.ConfigDict, run_dir: RunDirectory, mesh: jax.sharding.Mesh, trained: dict
) -> dict:
    """What a run's trained parameters start from.

    Args:
      config: of a prepared run.
      run_dir: its directory.
      mesh: the devices.
      trained: the network's parameters: the start, where no temporal layers are a base's, and of what it does not have.
    """
    if not run_dir.base.exists():
        return trained
    inflation = dict(trained["unet"])
    expansion = {"conv_in": inflation.pop("conv_in")} if "conditioning" in config else {}
    return {"unet": load_tree(run_dir.base, inflation, partitioning.replicated(mesh)) | expansion}
