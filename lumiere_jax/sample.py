"""Sampling: `python -m lumiere_jax.sample --checkpoint=DIR --prompt="a red circle moving left" --output=DIR`.

For every prompt and resolution: mp4, gif, contact sheet, X-T slice, and a JSON file that says how it was made.
The same seed gives the same pixels. The functions behind it are importable: see `lumiere_jax`.
On several hosts each runs the same command (`distributed/mesh.py`), and the first one writes.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from jax.sharding import Mesh

from lumiere_jax.checkpoints.checkpointing import CheckpointError, tree_hash
from lumiere_jax.checkpoints.run_directory import Run, RunDirectory, load_run
from lumiere_jax.checkpoints.temporal_weights import load_temporal
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import platform, processes
from lumiere_jax.pipelines.results import file_name, library_versions, write_video
from lumiere_jax.pipelines.text_to_video import sample_in_batches


def sample(
    run: Run,
    super_resolution: Run | None,
    prompts: Sequence[str],
    output: pathlib.Path,
    *,
    seed: int,
    batch_size: int | None = None,
    **settings: Any,
) -> None:
    """Samples every prompt and writes it, at the base and, with `super_resolution`, at the higher resolution.

    Args:
      run: a text-to-video run.
      super_resolution: a super-resolution run, or None.
      prompts: the texts.
      output: the directory to write to.
      seed: of the noise.
      batch_size: clips that are sampled at once; None: see `sample_in_batches`.
      **settings: the other arguments of `sample_videos`.

    Raises:
      ValueError: as `sample_in_batches`.
    """
    batches = sample_in_batches(run, super_resolution, prompts, seed=seed, batch_size=batch_size, **settings)
    made_with = {"seed": seed, **settings, "versions": library_versions(), **_describe("checkpoint", run)}
    if super_resolution is not None:
        made_with |= _describe("super_resolution", super_resolution)
    first = 0
    for base, high in batches:
        if processes.is_first():
            batch = prompts[first : first + len(base)]
            for suffix, videos in {"": base, "_high_resolution": high}.items():
                if videos is not None:
                    _write(videos, batch, first, suffix, output, run.config.clip.fps, made_with)
        first += len(base)
    processes.wait_for_all("sampled")  # one that ends would not wait long for the first to write


def load(
    path: str,
    *,
    init_from: str = "",
    text_checkpoint: str = "",
    tokenizer: str = "",
    ema_decay: float | None = None,
    mesh: Mesh | None = None,
) -> Run:
    """Loads a run's directory, or exported temporal layers onto their image model.

    Args:
      path: a run directory, or a file that `export_weights` wrote.
      init_from: of a run: where its imported U-Net lies now, if it was moved. Of a file: its image model.
      text_checkpoint: the same for the text encoder; a run that holds its own has no use for it.
      tokenizer: of a file: the SentencePiece model; default: the one beside the text encoder.
      ema_decay: of a run: which of its averages; default: the first. A file holds one alone.
      mesh: as for `load_run`.

    Raises:
      ValueError, OSError, CheckpointError: as `load_run` and `load_temporal`.
    """
    if path.endswith(".safetensors"):
        if not init_from:
            raise ValueError(
                f"{path} holds temporal layers alone: say with --init_from=DIR which image model they belong to (its "
                "metadata name it: the imported U-Net's directory, or the run of an image model)"
            )
        if ema_decay is not None:
            raise ValueError(f"ema_decay={ema_decay}: {path} holds one average alone, give none")
        return load_temporal(path, init_from=init_from, text_checkpoint=text_checkpoint, tokenizer=tokenizer, mesh=mesh)
    refers_to_text = RunDirectory(path).read_references().text_encoder is not None
    text_checkpoint = text_checkpoint if refers_to_text else None
    return load_run(path, mesh=mesh, init_from=init_from or None, text_checkpoint=text_checkpoint, ema_decay=ema_decay)


def _write(
    videos: np.ndarray, prompts: Sequence[str], first: int, suffix: str, output: pathlib.Path, fps: float, facts: dict
) -> None:
    for number, (prompt, video) in enumerate(zip(prompts, videos, strict=True), start=first):
        shape = dict(zip(("frames", "height", "width"), video.shape, strict=False))
        sidecar = {"prompt": prompt, "number": number, **facts, **shape, "fps": fps}
        mp4 = write_video(output, file_name(number, prompt) + suffix, video, fps, sidecar)[0]
        print(f"{mp4}  {shape['frames']} frames of {shape['width']}x{shape['height']}: {prompt!r}", flush=True)


def _describe(name: str, run: Run) -> dict:
    parameters = tree_hash(run.parameters())
    return {name: {"path": str(run.path), "name": run.config.name, "step": run.step, "sha256": parameters}}


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
    """The prompts of the flags, then those of the file.

    Raises:
      ValueError: there are none.
    """
    lines = pathlib.Path(prompts_file).read_text(encoding="utf-8").splitlines() if prompts_file else []
    found = [*prompts, *(line.strip() for line in lines if line.strip())]
    if not found:
        raise ValueError('no prompt: give --prompt="..." or --prompts_file=FILE with one prompt per line')
    return found


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string(
        "checkpoint", None, "The --workdir of a text-to-video training, or temporal layers that export_weights wrote."
    )
    flags.DEFINE_string("super_resolution", None, "The same of a super-resolution training.")
    flags.DEFINE_string(
        "init_from", "", "The image model of exported layers; or where a run's imported U-Net was moved to."
    )
    flags.DEFINE_string("super_resolution_init_from", "", "The same for --super_resolution.")
    flags.DEFINE_string(
        "text_checkpoint", "", "The T5 encoder of exported layers; or where the imported one was moved to. For both."
    )
    flags.DEFINE_string("tokenizer", "", "The SentencePiece model of --text_checkpoint; default: the one beside it.")
    flags.DEFINE_float("ema_decay", None, "Which of a run's averages, by its decay; default: the first.")
    flags.DEFINE_multi_string("prompt", [], "What to show; may be repeated.")
    flags.DEFINE_string("prompts_file", None, "A text file with one prompt per line.")
    flags.DEFINE_string("output", "samples", "Where the clips go.")
    flags.DEFINE_integer("seed", 0, "Of the noise: the same seed gives the same pixels.", 0, 2**31 - 2)
    flags.DEFINE_integer("frames", None, "Frames per clip; default: as trained.", 1)
    flags.DEFINE_integer("height", None, "Pixels of the base clip; default: as trained.", 1)
    flags.DEFINE_integer("width", None, "Pixels of the base clip; default: as trained.", 1)
    flags.DEFINE_integer("steps", None, "Denoising steps of the base model; default: the run's config.", 1)
    flags.DEFINE_float("guidance", None, "Classifier-free guidance weight, 1 is none; default: the config's.")
    flags.DEFINE_enum("sampler", None, ["ddpm", "ddim", "dpm_solver_pp_2m"], "Default: the config's.")
    define_device_flags()


def define_device_flags() -> None:
    """How sampling is divided over devices."""
    flags.DEFINE_integer("batch_size", None, "Clips that are sampled at once; default: 4, or as the devices need.", 1)
    flags.DEFINE_integer("mesh_rows", 1, "Devices that share the height of a clip; the others divide the batch.", 1)


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    with processes.ended_by_errors(ValueError, OSError, CheckpointError):
        prompts = read_prompts(FLAGS.prompt, FLAGS.prompts_file)
        both = {"text_checkpoint": FLAGS.text_checkpoint, "tokenizer": FLAGS.tokenizer}
        both["mesh"] = meshes.make_mesh(rows=FLAGS.mesh_rows)
        run = load(FLAGS.checkpoint, init_from=FLAGS.init_from, ema_decay=FLAGS.ema_decay, **both)
        super_resolution = None
        if FLAGS.super_resolution:
            super_resolution = load(FLAGS.super_resolution, init_from=FLAGS.super_resolution_init_from, **both)
        sample(
            run,
            super_resolution,
            prompts,
            pathlib.Path(FLAGS.output),
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            frames=FLAGS.frames,
            size=(FLAGS.height or run.config.clip.size, FLAGS.width or run.config.clip.size),
            steps=FLAGS.steps,
            guidance_weight=FLAGS.guidance,
            sampler=FLAGS.sampler,
        )


if __name__ == "__main__":
    platform.configure()
    meshes.initialize()
    define_flags()
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
