"""Training: `python -m lumiere_jax.train --config=configs/stunet.py [--workdir=DIR] [--config.field=value ...]`.

One story for every stage. The config says which: an image model (no `temporal`), or an inflated one (`temporal`, over
the frozen image model of `init_from`), either with or without super-resolution; or what starts from another run
(train_base.py). Started again with the same command, a run continues from its newest complete checkpoint, whatever
stopped it, and ends as an undisturbed one would.
Several processes train one model where the environment says that there are several (`distributed/mesh.py`).
"""

import contextlib
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import ml_collections
from absl import app, flags, logging
from absl.flags import FLAGS
from flax import nnx
from ml_collections import config_flags

from lumiere_jax.checkpoints.checkpointing import NO_SPACE_LEFT, CheckpointError, is_no_space_left
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import Run, build_unet
from lumiere_jax.data.input_pipeline import prefetch
from lumiere_jax.data.open_dataset import fingerprint, open_dataset
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import partitioning, platform, processes
from lumiere_jax.distributed.model_flops import seconds_at_peak
from lumiere_jax.distributed.preemption import Preempted, PreemptionNotice
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.rematerialization import Rematerialization, rematerialize
from lumiere_jax.models.temporal import gate_norms
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.optimizer import learning_rate_schedule
from lumiere_jax.parameter_overview import write_overview
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.results import write_preview
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.train_base import has_base, start_from_base
from lumiere_jax.train_config import check_batches, check_config, check_same_run
from lumiere_jax.train_distillation import make_teacher
from lumiere_jax.train_guards import act
from lumiere_jax.train_progress import Progress
from lumiere_jax.train_setup import (
    batches_of,
    caption_encoder,
    check_captions,
    jit_update,
    open_embeddings,
    prepare_image_model,
    prepare_text,
    step_settings,
    training_batches_of,
    update_from_file,
    versions,
)
from lumiere_jax.train_step import Batch, TrainState, create_state, train_step, validation_step


def train(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, program: str | pathlib.Path | None = None
) -> None:
    """Trains one stage to its end, or continues it.

    Args:
      config: which stage, and how.
      workdir: the run's directory.
      program: a file with the compiled training step, from `compile_for_tpu --save_program`; None: compiles it.

    Raises:
      ValueError: a config that cannot be trained, or that differs from the one that the run was started with; or
        `program` is another one.
      FileNotFoundError: there is no `program`.
      CheckpointError: a backbone or training state that is missing, half-written or of another architecture.
      FloatingPointError: the guards of `config.training` end the run; the last good checkpoint stays.
      Preempted: it was asked to end by SIGTERM or Ctrl-C; its state is saved.
    """
    check_config(config)
    if program and not pathlib.Path(program).is_file():
        raise FileNotFoundError(
            f"--program={program}: there is no such file, compile_for_tpu --save_program writes one"
        )
    run_dir = RunDirectory(workdir)
    mesh = meshes.make_mesh(**config.mesh)
    check_batches(config, mesh)

    # ---------------------------------------------------------------- Data, text encoder, frozen image model
    with processes.first_process_first("data set"):
        train_set, validation_set = open_dataset(config.dataset)
    if "temporal" in config or has_base(config):
        prepared = prepare_image_model(config, run_dir, mesh, train_image_model=train)
    else:
        prepared = prepare_text(config, run_dir, mesh, train_set)
    config, tokenizer, text_encoder = prepared.config, prepared.tokenizer, prepared.text_encoder
    check_batches(config, mesh)  # again: a student's clip is its teacher's
    check_captions(tokenizer, config.text.length, train_set, validation_set)
    if config.training.preview_every:  # both raise now, not at the first preview
        tokenizer.encode(list(config.sampling.preview_prompts), config.text.length)
    sampling_settings(config)
    embeddings = open_embeddings(prepared, train_set, validation_set)
    data = {"training": fingerprint(train_set), "validation": fingerprint(validation_set)}
    check_same_run(run_dir.read_config(), config, run_dir.read_data(), data)
    processes.say(f"=== {config.name} in {run_dir.path} ===")

    # ---------------------------------------------------------------- Network: what is trained, what is frozen
    text_to_video = functools.partial(
        TextToVideo,
        dtype=jnp.dtype(config.compute_dtype),
        padding_sees_tokens=config.text.padding_sees_tokens,
    )
    # Where the embeddings were made ahead of time, the text encoder stays in the host's memory, for previews.
    model = text_to_video(None if embeddings else text_encoder, build_unet(config, prepared.image_unet))
    run_dir.write_config(config, versions(), prepared.references, data)  # only now: the network can be built
    graphdef, trained, frozen = parameter_partition.split(model)
    place = functools.partial(partitioning.place, mesh, fsdp=config.fsdp)
    frozen = place(jax.tree.map(lambda leaf: leaf.astype(model.dtype), frozen))
    processes.say(
        f"parameters: {parameter_partition.count(trained):,} trained, {parameter_partition.count(frozen):,} frozen"
    )

    # ---------------------------------------------------------------- Training state: new, or the newest checkpoint
    encode = caption_encoder(config, tokenizer, embeddings)
    trained = start_from_base(config, run_dir, mesh, trained)
    teacher = make_teacher(config, mesh, trained, encode)
    settings, fields = step_settings(config), config.training
    state = place(create_state(trained, settings["optimizer"], len(fields.ema_decays)))
    checkpoints = run_dir.checkpoints(fields.keep_checkpoints)
    if checkpoints.latest_step() is not None:
        state = TrainState(**checkpoints.restore(state._asdict())[1])
        processes.say(f"continuing from step {int(state.step)}")
    first_step, last_step = int(state.step), fields.steps
    if first_step >= last_step:
        processes.say(f"nothing to do: {first_step} of {last_step} steps are done")
        return
    write_overview(run_dir.path / "parameters.txt", state.parameters, frozen)

    # ---------------------------------------------------------------- Compiled steps
    update = jit_update(graphdef, settings, state)
    validate = functools.partial(validation_step, graphdef=graphdef, objective=settings["objective"])
    validate = jax.jit(partitioning.on_mesh(mesh, validate))
    gates, learning_rate = jax.jit(gate_norms), jax.jit(learning_rate_schedule(fields))

    # ---------------------------------------------------------------- Batches: the position in the data is the step
    # The next batch is loaded and sent to the devices while they compute on this one.
    batches = training_batches_of(config, encode, train_set, first_step)
    batches = prefetch(batches, functools.partial(_to_device, mesh))
    validation_batch = next(batches_of(config, encode, validation_set, fields.validation_clips))
    validation_batch = _to_device(mesh, validation_batch)
    if program:
        batch = jax.tree.map(functools.partial(_of_clips, fields.batch_size), validation_batch)
        update = update_from_file(program, update, state, frozen, batch, config.seed, teacher)

    # ---------------------------------------------------------------- Loop
    def save(state: TrainState) -> None:
        step = int(state.step)
        if "text_encoder" in state.averages[0]:
            checkpoints.wait()  # raises if the last save went wrong, before anything is removed
            # One more than training states, as it is written first.
            whole = partitioning.place(mesh, state.averages[0]["text_encoder"])
            run_dir.write_text_encoder(step, whole, fields.keep_checkpoints + 1)
        checkpoints.save(step, state._asdict())

    def preview(state: TrainState) -> None:
        model = nnx.merge(graphdef, state.averages[0], frozen)
        if embeddings:
            model = text_to_video(text_encoder, model.unet)
        run = Run(config, tokenizer, model, int(state.step), run_dir.path, mesh)
        prompts = list(config.sampling.preview_prompts)
        videos = sample_videos(run, prompts)
        if processes.is_first():
            progress.preview(run.step, write_preview(run_dir.previews, run, prompts, videos))

    # What counts as a step's work is the whole batch at once, however it is divided, and nothing computed again.
    rematerialize(model.unet, Rematerialization())
    as_counted = {"graphdef": parameter_partition.split(model)[0], **settings, "accumulation_steps": 1}
    progress = Progress(
        run_dir.path,
        first_step,
        last_step,
        fields,
        is_shown=processes.is_first(),
        seconds_at_peak=seconds_at_peak(
            functools.partial(train_step, teacher=teacher, **as_counted), state, frozen, validation_batch, config.seed
        ),
    )
    with PreemptionNotice() as notice, checkpoints, contextlib.closing(batches), progress:
        for step in range(first_step + 1, last_step + 1):
            asked = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - asked
            state, metrics = update(state, frozen, batch, config.seed, teacher)
            # One transfer for all of them; the rate is a program of its own, and the devices would wait for it.
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if step % fields.log_every == 0:
                metrics["learning_rate"] = float(learning_rate(step - 1 - int(metrics["skipped"])))
            act(metrics, step, fields, processes.say)
            progress.step(step, metrics, waited, batch.video.shape)
            with progress.pause():
                if _due(step, fields.validate_every, last_step) or step == first_step + 1:
                    losses = validate(state.averages[0], frozen, validation_batch, teacher)
                    progress.validation(step, losses, gates(state.parameters) if "temporal" in config else None)
                is_asked_to_end = notice.reached()
                if _due(step, fields.checkpoint_every, last_step) or is_asked_to_end:
                    save(state)
                if _due(step, fields.preview_every, last_step):
                    preview(state)
            if is_asked_to_end:
                saved = f"{run_dir.path} is saved at step {step} of {last_step}"
                raise Preempted(f"asked to end: {saved}. The same command continues it")
    processes.wait_for_all("end of a stage")


def _to_device(mesh: jax.sharding.Mesh, batch: dict) -> Batch:
    return partitioning.shard_batch(mesh, Batch(batch["video"], batch["text"]))


def _of_clips(count: int, leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)


def _due(step: int, every: int, last_step: int) -> bool:
    return every > 0 and (step % every == 0 or step == last_step)


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    config_flags.DEFINE_config_file("config", None, "What to train: a file of configs/, FILE.py[:VARIANT].")
    flags.DEFINE_string("workdir", None, "The run's directory; default: workdir/ and the config's name.")
    flags.DEFINE_string("program", None, "A training step from compile_for_tpu --save_program, for these devices.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    # Orbax tells much that is of no interest; and its errors with all their tracebacks before it raises them.
    logging.set_verbosity(logging.FATAL)
    config = FLAGS.config
    workdir = FLAGS.workdir or pathlib.Path("workdir", config.name.replace(":", "_"))
    with processes.ended_by_errors(CheckpointError, FloatingPointError, OSError, ValueError):
        try:
            train(config, workdir, FLAGS.program)
        except Preempted as notice:
            processes.say(str(notice))
        except (OSError, ValueError) as error:
            if not is_no_space_left(error):
                raise
            raise CheckpointError(f"{getattr(error, 'filename', None) or workdir}: {NO_SPACE_LEFT}") from error


if __name__ == "__main__":
    platform.configure()
    meshes.initialize()
    define_flags()
    flags.mark_flag_as_required("config")
    app.run(main)
