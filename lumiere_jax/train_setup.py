"""What a training run needs before its first step: text encoder, frozen image model, optimiser, batches."""

import dataclasses
import functools
import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from lumiere_jax.checkpoints.checkpointing import save_tree
from lumiere_jax.checkpoints.frozen_parts import (
    load_image_unet,
    load_imported_text_encoder,
    load_text_encoder,
    text_encoder_sha256,
)
from lumiere_jax.checkpoints.image_model import ImageModel, check_width, load_image_model
from lumiere_jax.checkpoints.imported_unet import check_conventions, is_imported_unet, open_imported_unet
from lumiere_jax.checkpoints.run_directory import References, RunDirectory
from lumiere_jax.data.input_pipeline import EncodeCaption, make_batches
from lumiere_jax.data.open_dataset import Dataset, captions_of
from lumiere_jax.diffusion import noise_schedule
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.distributed.saved_program import load_program
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.optimizer import make_optimizer
from lumiere_jax.text.embedding_store import EmbeddingStore, made_with
from lumiere_jax.text.load_t5 import find_tokenizer
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import Tokenizer, train_tokenizer
from lumiere_jax.train_base import base_image_model, has_base, is_fine_tuned, take_over
from lumiere_jax.train_distillation import teacher_settings
from lumiere_jax.train_guards import guards_of
from lumiere_jax.train_step import Batch, Objective, TrainState, train_step


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run builds its model from."""

    config: ml_collections.ConfigDict  # with the fields that the image model decides
    tokenizer: Tokenizer
    text_encoder: T5Encoder
    image_unet: UNet2D | None  # to inflate; None: the run trains a new one
    references: References  # to imported weights, of which the run keeps no copy


def prepare_text(
    config: ml_collections.ConfigDict, run_dir: RunDirectory, mesh: jax.sharding.Mesh, dataset: Dataset
) -> Prepared:
    """Tokenizer and text encoder of an image model: pre-trained, frozen and referred to; or new and trained with it.

    Raises:
      ValueError: `text.checkpoint` and `text.tokenizer` do not belong together or to the U-Net.
      CheckpointError: the encoder is another than the one that the run was started with.
    """
    fields, is_new = config.text, _read_by_all(run_dir) is None
    recorded = run_dir.read_references().text_encoder
    checkpoint = fields.checkpoint or (recorded.path if recorded else "")
    if not checkpoint:
        if fields.tokenizer:
            raise ValueError(f"text.tokenizer={fields.tokenizer!r} belongs to an encoder: give text.checkpoint too")
        if processes.is_first() and (is_new or run_dir.read_tokenizer() is None):
            run_dir.write_tokenizer(train_tokenizer(captions_of(dataset), fields.vocab_size))
        processes.wait_for_all("tokenizer")
        tokenizer = run_dir.read_tokenizer()
        sizes = ("vocab_size", "emb_dim", "num_heads", "num_layers", "head_dim", "mlp_dim")
        text_encoder = T5Encoder(T5Config(**{size: fields[size] for size in sizes}), rngs=nnx.Rngs(config.seed + 2))
        references = References()
    else:
        if not is_new and recorded is None:
            raise ValueError(f"text.checkpoint={checkpoint!r}: the run in {run_dir.path} trains its own text encoder")
        kept = None if is_new else run_dir.read_tokenizer()
        tokenizer = kept or Tokenizer.load(find_tokenizer(checkpoint, fields.tokenizer))
        check_width(checkpoint, UNet2DConfig(**config.unet).text_dim)
        text_encoder, found = load_imported_text_encoder(checkpoint, recorded, **_text_placement(config, mesh))
        references = References(text_encoder=found)
        run_dir.write_tokenizer(tokenizer)
    return Prepared(config, tokenizer, text_encoder, None, references)


def _read_by_all(run_dir: RunDirectory) -> ml_collections.ConfigDict | None:
    """The config that a run was started with; no process writes before all have read."""
    saved = run_dir.read_config()
    processes.wait_for_all("config")
    return saved


def prepare_image_model(
    config: ml_collections.ConfigDict,
    run_dir: RunDirectory,
    mesh: jax.sharding.Mesh,
    train_image_model: Callable[[ml_collections.ConfigDict, Any], None],
) -> Prepared:
    """The image model that a run starts from: frozen under a STUNet, trained first where there is none; or a style's.

    What this project trained is copied into the run's directory, what was imported is referred to.

    Raises:
      CheckpointError: no image model, or another one than the run was started with.
      ValueError: an imported U-Net was trained otherwise than the config's `diffusion` says, or has no text encoder.
    """
    saved = _read_by_all(run_dir)
    config = ml_collections.ConfigDict(config.to_dict())  # a copy that takes new fields
    if saved is None:
        run_dir.remove_image_model()  # what an earlier start left that did not get as far as its config
        processes.wait_for_all("image model")
        if has_base(config) or is_fine_tuned(config):
            image = base_image_model(config, run_dir, mesh)
        else:
            image = _image_model(config, run_dir, mesh, train_image_model)
        _keep(image, run_dir, mesh)
        tokenizer, text_encoder, unet, references = image.tokenizer, image.text_encoder, image.unet, image.references
        config.unet, text = dataclasses.asdict(unet.config), image.text
    else:
        tokenizer, sharding = run_dir.read_tokenizer(), partitioning.replicated(mesh)
        config.unet, text = saved.unet, saved.text.to_dict()
        if has_base(config) or run_dir.base.exists():
            take_over(config, saved)
        if "distillation" in config:
            config.distillation.sampling = saved.distillation.sampling
        if "style" in config:
            config.style.base_unet = saved.style.base_unet
        # Where imported weights lie may change from start to start; their hashes may not.
        moved_to = config.init_from if run_dir.read_references().unet else None
        unet, unet_reference = load_image_unet(run_dir, config, moved_to=moved_to, sharding=sharding)
        moved_to = config.text.get("checkpoint")
        placement = _text_placement(config, mesh)
        text_encoder, text_reference = load_text_encoder(run_dir, 0, moved_to=moved_to, **placement)
        references = References(unet_reference, text_reference)
    # An imported U-Net knows of no text fields but its width, so the run's own count.
    imported = ("length", "padding_sees_tokens") if references.unet and not has_base(config) else ()
    own = ("dropout", "embeddings", *imported)
    config.text = text | {field: config.text[field] for field in own}
    return Prepared(config, tokenizer, text_encoder, unet, references)


def _text_placement(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """How a frozen text encoder is loaded: in which type; on the devices, or on the host if only previews need it."""
    where = {"on_host": True} if config.text.get("embeddings") else {"sharding": partitioning.replicated(mesh)}
    return {"dtype": jnp.dtype(config.compute_dtype), **where}


def _keep(image: ImageModel, run_dir: RunDirectory, mesh: jax.sharding.Mesh) -> None:
    """Copies what this project trained into the directory of a new run."""
    run_dir.write_tokenizer(image.tokenizer)
    if image.references.text_encoder is None:
        run_dir.write_text_encoder(0, nnx.to_pure_dict(nnx.state(image.text_encoder)))
    if image.references.unet is None:
        unet = partitioning.place(mesh, nnx.to_pure_dict(nnx.state(image.unet)))
        save_tree(run_dir.backbone, unet, overwrite=True)


def _image_model(
    config: ml_collections.ConfigDict,
    run_dir: RunDirectory,
    mesh: jax.sharding.Mesh,
    train_image_model: Callable[[ml_collections.ConfigDict, Any], None],
) -> ImageModel:
    path = config.init_from
    if not path:
        path = run_dir.image_model
        processes.say(f"init_from names no image model: training it first, in {path}")
        train_image_model(config.image_model, path)
    if is_imported_unet(path):
        check_conventions(open_imported_unet(path), config.diffusion)
    return load_image_model(
        path,
        text_checkpoint=config.text.get("checkpoint", ""),
        tokenizer=config.text.get("tokenizer", ""),
        dtype=jnp.dtype(config.compute_dtype),
        mesh=mesh,
        text_on_host=bool(config.text.get("embeddings")),
    )


def make_objective(config: ml_collections.ConfigDict) -> Objective:
    """The training objective of a config; of a student once its teacher's sampling is written into it."""
    fields, distilled = config.diffusion, {}
    if config.get("distillation", {}).get("sampling"):
        distilled = {"student_steps": config.distillation.steps, "teacher": teacher_settings(config)}
    return Objective(
        schedule=noise_schedule.from_config(fields.schedule, fields.log_snr_shift),
        prediction=fields.prediction,
        weighting=fields.weighting,
        low_res_factor=fields.low_res_factor or None,
        max_noise_level=fields.max_noise_level,
        max_blur=fields.max_blur,
        min_jpeg_quality=fields.min_jpeg_quality,
        align_corners=fields.align_corners,
        masks=tuple(config.get("conditioning", {}).get("masks", {}).items()),
        **distilled,
    )


def step_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a config says of `train_step`: its keyword arguments but for the model."""
    fields = config.training
    return {
        "optimizer": make_optimizer(fields),
        "objective": make_objective(config),
        "ema_decays": tuple(fields.ema_decays),
        "accumulation_steps": fields.accumulation_steps,
        "guards": guards_of(fields),
    }


def jit_update(graphdef: nnx.GraphDef, settings: dict[str, Any], state: TrainState) -> Callable[..., Any]:
    """`train_step` compiled, as a function of its other arguments; it uses up the state, and leaves it where it lay.

    Args:
      graphdef: of the model.
      settings: from `step_settings`.
      state: whose arrays (or `jax.ShapeDtypeStruct`) say where they lie.
    """
    update = functools.partial(train_step, graphdef=graphdef, **settings)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    update = partitioning.on_mesh(state.step.sharding.mesh, update)
    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))


def update_from_file(
    path: str | pathlib.Path, update: Callable[..., Any], state: TrainState, frozen: Any, batch: Batch, *others: Any
) -> Callable[..., Any]:
    """`update`, which needs no compiling for batches like `batch`; for others (of images) it compiles as ever.

    Args:
      path: of a program that `compile_for_tpu --save_program` wrote.
      update: from `jit_update`.
      state, frozen, batch, *others: its arguments, or their shapes and places.

    Raises:
      FileNotFoundError, ValueError: there is no such program, or it is another one.
    """
    loaded = load_program(path, update.lower(state, frozen, batch, *others))
    processes.say(f"the training step's program comes from {path}")

    def chosen(state: TrainState, frozen: Any, some: Batch, *others: Any) -> Any:
        return (loaded if some.video.shape == batch.video.shape else update)(state, frozen, some, *others)

    return chosen


def versions() -> dict[str, str]:
    """What a run ran with: Python, the libraries, and this repository's commit where it is a git checkout.

    Uncommitted changes are marked: `-dirty`.
    """
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")
    found = {library: importlib.metadata.version(library) for library in libraries}
    return {"python": platform.python_version(), **found, "git": _commit()}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # Wherever the training is started from.
        told = subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown: git is not installed"
    return told.stdout.strip() or "not a git checkout"


def check_captions(tokenizer: Tokenizer, length: int, *datasets: Dataset) -> None:
    """Raises a ValueError for a caption that is too long: at once, not hours later when its batch comes."""
    for dataset in datasets:
        tokenizer.encode(captions_of(dataset), length)


def open_embeddings(prepared: Prepared, *datasets: Dataset) -> EmbeddingStore | None:
    """The text embeddings that a run's config names; None where the text encoder runs in the train step.

    Raises:
      FileNotFoundError, ValueError: they are not whole, not this text encoder's, or lack captions of the data sets.
    """
    fields = prepared.config.text
    if not fields.get("embeddings"):
        return None
    store = EmbeddingStore(fields.embeddings)
    sha256 = text_encoder_sha256(prepared.text_encoder, prepared.references.text_encoder)
    text_dim = prepared.text_encoder.config.emb_dim
    facts = made_with(sha256, text_dim, prepared.tokenizer, fields.length, fields.padding_sees_tokens)
    store.check(facts, {caption for dataset in datasets for caption in captions_of(dataset)})
    return store


def caption_encoder(
    config: ml_collections.ConfigDict, tokenizer: Tokenizer, embeddings: EmbeddingStore | None
) -> EncodeCaption:
    """Captions to what the train step gets of them: token ids, or stored embeddings."""
    if embeddings:
        return lambda captions: {"text": embeddings.embeddings(captions)}
    return lambda captions: {"text": tokenizer.encode(captions, config.text.length)[0]}


def training_batches_of(
    config: ml_collections.ConfigDict, encode_caption: EncodeCaption, dataset: Dataset, start_step: int
) -> Iterator[dict]:
    """What a run trains on, from step `start_step` on: with dropped captions, flips and batches of single frames."""
    return batches_of(
        config,
        encode_caption,
        dataset,
        config.training.batch_size,
        start_step=start_step,
        caption_dropout=config.text.dropout,
        flip_probability=config.dataset.flip_probability,
        image_share=config.training.image_share,
        image_batch_size=config.training.image_batch_size,
    )


def batches_of(
    config: ml_collections.ConfigDict,
    encode_caption: EncodeCaption,
    dataset: Dataset,
    batch_size: int,
    **training_only: float | int,
) -> Iterator[dict]:
    """This host's batches of `config.clip`, all captions and clips as they are; see `make_batches` for the rest."""
    return make_batches(
        dataset,
        batch_size=batch_size,
        frames=config.clip.frames,
        fps=config.clip.fps,
        size=config.clip.size,
        crop_from=config.clip.crop_from,
        seed=config.seed,
        encode_caption=encode_caption,
        num_threads=config.dataset.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache_bytes=config.dataset.cache_bytes,
        **training_only,
    )
