"""What a training config may say: its values, alone, with the devices, and beside those that the run was started with.

All is checked before any long work.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lumiere_jax.diffusion import low_resolution
from lumiere_jax.diffusion.condition_masks import check_masks
from lumiere_jax.diffusion.loss import loss_weight
from lumiere_jax.models.rematerialization import Rematerialization
from lumiere_jax.train_base import has_base
from lumiere_jax.train_setup import make_objective, step_settings

# Fields in which a continued run may differ from how it was started.
_FREE_TO_CHANGE = {
    *("name", "pretrained", "sampling", "init_from", "image_model"),
    *("mesh", "fsdp", "remat"),  # loss and gradients are the same to rounding
    *("training.steps", "training.keep_checkpoints"),
    *("text.checkpoint", "text.tokenizer"),  # where they lie; what they are is checked by hash
    *("distillation.teacher", "conditioning.base", "style.base"),  # the run has a copy
    *("training.checkpoint_every", "training.log_every", "training.preview_every", "training.validate_every"),
    *("training.on_nonfinite", "training.skip_budget"),  # what ends a run, not what a step does
    *("dataset.data_dir", "dataset.cache_bytes", "dataset.threads", "text.embeddings"),
    "dataset.path",  # where they lie; what they are is checked by hash
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a ValueError for values that cannot be trained, before any long work."""
    for field in ("steps", "batch_size", "accumulation_steps", "checkpoint_every", "log_every", "validation_clips"):
        if config.training[field] < 1:
            raise ValueError(f"training.{field}={config.training[field]} must be at least 1")
    decays = config.training.ema_decays
    if not decays or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f"training.ema_decays={decays}: give at least one decay, each at least 0 and below 1")
    for field in ("frames", "fps", "size"):
        if not config.clip[field] > 0:
            raise ValueError(f"clip.{field}={config.clip[field]} must be positive")
    if "conditioning" in config:
        check_masks(config.conditioning.masks.to_dict())
        if config.diffusion.low_res_factor:
            raise ValueError("conditioning: super-resolution has no conditional model, set diffusion.low_res_factor=0")
        if config.conditioning.kernel not in ("zeros", "pretrained"):
            raise ValueError(f"conditioning.kernel={config.conditioning.kernel!r}: use 'zeros' or 'pretrained'")
    if "style" in config and not 1.0 <= config.style.zoom <= 16.0:
        raise ValueError(f"style.zoom={config.style.zoom}: give 1, for whole images, to 16")
    if "distillation" in config and config.distillation.steps < 1:
        raise ValueError(f"distillation.steps={config.distillation.steps} must be at least 1")
    _check_data_fields(config)
    Rematerialization(**config.remat)  # raises for a policy that there is not
    _check_low_resolution(config)
    objective = make_objective(config)
    loss_weight(jnp.zeros(()), objective.prediction, objective.weighting)  # raises if they do not go together
    if objective.low_res_factor:
        low_resolution.check_level("diffusion.max_noise_level", config.diffusion.max_noise_level, objective.schedule)
    has_image_model = "temporal" not in config or config.init_from or has_base(config)
    if not has_image_model and config.image_model.pretrained:
        raise ValueError(
            f"init_from is empty, but {config.name} inflates {config.image_model.pretrained}, which is imported, not "
            "trained: `python -m lumiere_jax.import_weights deepfloyd_if --weights=DIR --output=IMPORTED`, then "
            "--config.init_from=IMPORTED (docs/pretrained_weights.md)"
        )
    step_settings(config)  # raises for what no step can be made of
    source = "init_from" if "temporal" in config else "text.checkpoint"
    if config.text.get("embeddings") and not (has_image_model if "temporal" in config else config.text.checkpoint):
        raise ValueError(
            f"text.embeddings={config.text.embeddings} needs a text encoder that is trained already: set {source}"
        )


def _check_low_resolution(config: ml_collections.ConfigDict) -> None:
    fields = config.diffusion
    factor, blur, quality = fields.low_res_factor, fields.max_blur, fields.min_jpeg_quality
    if factor < 0:
        raise ValueError(f"diffusion.low_res_factor={factor} must not be negative")
    if factor and config.clip.size % factor:
        raise ValueError(f"diffusion.low_res_factor={factor} does not divide clip.size={config.clip.size}")
    if not 0 <= blur < math.inf:
        raise ValueError(f"diffusion.max_blur={blur}: give a standard deviation in pixels of the small video, or 0")
    if quality not in range(101):
        raise ValueError(
            f"diffusion.min_jpeg_quality={quality}: give a whole number from 1 (worst) to 100, or 0 for no compression"
        )
    if not factor and (blur or quality):
        raise ValueError(
            f"diffusion.max_blur={blur} and diffusion.min_jpeg_quality={quality} are for super-resolution, and "
            "diffusion.low_res_factor is 0: set them to 0"
        )


def _check_data_fields(config: ml_collections.ConfigDict) -> None:
    if config.clip.crop_from and not config.clip.crop_from >= config.clip.size:
        raise ValueError(
            f"clip.crop_from={config.clip.crop_from} is smaller than the crops, clip.size={config.clip.size}: give the "
            "size of the frames that they are taken of, or 0 for no crops"
        )
    for name, value in (
        ("text.dropout", config.text.dropout),
        ("dataset.flip_probability", config.dataset.flip_probability),
    ):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be 0 to 1")
    share, batch_size = config.training.image_share, config.training.image_batch_size
    if not 0 <= share < 1:
        raise ValueError(f"training.image_share={share} must be at least 0 and below 1")
    if share and config.clip.frames == 1:
        raise ValueError(f"training.image_share={share}: clip.frames=1, every batch is of single frames already")
    if share and batch_size < 1:
        raise ValueError(
            f"training.image_share={share} needs training.image_batch_size of at least 1, not {batch_size}"
        )


def check_batches(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises a ValueError if a batch cannot be divided over the devices, part by part, or its videos' height."""
    fields = config.training
    if config.clip.size % mesh.shape["rows"]:
        raise ValueError(
            f"mesh.rows={mesh.shape['rows']} does not divide the height, clip.size={config.clip.size}: choose a divisor"
        )
    for name in ("batch_size", *(("image_batch_size",) if fields.image_share else ())):
        divisor = fields.accumulation_steps * mesh.shape["data"]
        if fields[name] % divisor:
            raise ValueError(
                f"training.{name}={fields[name]} is no multiple of training.accumulation_steps="
                f"{fields.accumulation_steps} times {mesh.shape['data']} devices along data: make it one of {divisor}"
            )


def check_same_run(
    saved: ml_collections.ConfigDict | None,
    config: ml_collections.ConfigDict,
    saved_data: Mapping[str, str],
    data: Mapping[str, str],
) -> None:
    """Raises a ValueError that lists in what a run would be continued otherwise than it was started.

    Args:
      saved: the config that the run was started with; None: it is new.
      config: the present one.
      saved_data: `fingerprint` of the data sets that the run was started with, by split; empty if it is not known.
      data: of the present ones.
    """
    if saved is None:
        return
    before, now = (
        _flat(fields) | {f"contents of the {split} data": f"sha256 {sha256[:12]}" for split, sha256 in contents.items()}
        for fields, contents in ((saved, saved_data), (config, data if saved_data else {}))
    )
    changed = [
        f"  {field}: {before.get(field, 'absent')} when it was started, {now.get(field, 'absent')} now"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    ]
    if changed:
        raise ValueError(
            "this workdir holds a run of another config. Use another --workdir, or the config that it was started "
            "with:\n" + "\n".join(changed)
        )


def _flat(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if name in _FREE_TO_CHANGE:
            continue
        fields |= _flat(value, f"{name}.") if isinstance(value, ml_collections.ConfigDict) else {name: value}
    return fields
