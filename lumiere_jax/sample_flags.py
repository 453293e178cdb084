"""The command line of `sample`, and what its flags mean to the functions that they end in.

Defined by the entry point alone, so that several can be imported side by side; `evaluate` shares some of it.
"""

from typing import Any, get_args

from absl import flags
from absl.flags import FLAGS

from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.diffusion.samplers import Sampler, Spacing
from lumiere_jax.provenance.marks import define_provenance_flags
from lumiere_jax.sample_tasks import define_task_flags


def define_flags() -> None:
    """All of the command line."""
    flags.DEFINE_string(
        "checkpoint", None, "The --workdir of a text-to-video training, or temporal layers that export_weights wrote."
    )
    flags.DEFINE_multi_string(
        "super_resolution", [], "The same of a super-resolution training; repeated: each enlarges the last one's clips."
    )
    flags.DEFINE_string(
        "init_from", "", "The image model of exported layers; or where a run's imported U-Net was moved to."
    )
    flags.DEFINE_multi_string("super_resolution_init_from", [], "The same for each --super_resolution, in their order.")
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
    flags.DEFINE_list(
        "guidance_interval",
        None,
        "FIRST,LAST diffusion time, of 0 to 1, at which the base model is guided; default: all.",
    )
    flags.DEFINE_float(
        "guidance_rescale",
        None,
        "How far, 0 to 1, to bring guided clips back to the contrast of unguided ones; default: the config's.",
    )
    flags.DEFINE_string("negative_prompt", "", "What guidance leads away from, at all resolutions.")
    flags.DEFINE_enum("sampler", None, get_args(Sampler), "Of the base model; default: the config's.")
    flags.DEFINE_enum("spacing", None, get_args(Spacing), "Of its times; default: the config's.")
    flags.DEFINE_bool("denoising", False, "Write NAME_denoising.png, too: the middle frame as each step predicts it.")
    flags.DEFINE_integer(
        "window",
        None,
        "Frames at a time, for clips that are longer than the base model's: MultiDiffusion joins them.",
        1,
    )
    flags.DEFINE_integer(
        "window_overlap", None, "Frames that its neighbouring windows share; default: a quarter of --window.", 0
    )
    flags.DEFINE_integer(
        "window_batch", None, "Windows of a clip that the base model denoises at once; default: all.", 1
    )
    flags.DEFINE_enum(
        "window_weights",
        None,
        ["uniform", "feathered"],
        "How windows and tiles are averaged, at all resolutions; default: the config's, or uniform as in the paper.",
    )
    define_task_flags()
    define_approximation_flags()
    define_device_flags()
    define_memory_flags()
    define_provenance_flags()


def define_approximation_flags() -> None:
    """What is computed less exactly, by the base model unless said otherwise; docs/sampling.md has its price."""
    default = Approximations()
    flags.DEFINE_integer(
        "deep_features_every", default.deep_features_every, "Run all layers at every so many-th call only.", 1
    )
    flags.DEFINE_integer("shallow_layers", default.shallow_layers, "Last layers that the other calls run.", 1)
    flags.DEFINE_float(
        "half_rate_from", default.half_rate_from, "Diffusion time, 0 to 1, above which frames are denoised in pairs."
    )
    flags.DEFINE_bool("int8", False, "Keep the networks' kernels as 8-bit integers, at all resolutions.")


def define_device_flags() -> None:
    """How sampling is divided over devices."""
    flags.DEFINE_integer("batch_size", None, "Clips that are sampled at once; default: 4, or as the devices need.", 1)
    flags.DEFINE_integer("mesh_rows", 1, "Devices that share the height of a clip; the others divide the batch.", 1)


def define_memory_flags() -> None:
    """How super-resolution is brought into the memory that there is."""
    flags.DEFINE_float(
        "memory_gib", None, "GiB of a device for super-resolution, beside parameters; default: what is free.", 0.0
    )
    flags.DEFINE_integer(
        "super_resolution_window_batch",
        None,
        "Windows that super-resolution denoises at once; default: the config's, or what fits.",
        1,
    )
    flags.DEFINE_integer("tile", None, "Pixels of a side of its tiles; default: whole frames, or what fits.", 1)
    flags.DEFINE_integer("tile_overlap", None, "Pixels that neighbouring tiles share; default: an eighth of a tile.", 0)


def enlarging_flags() -> dict[str, Any]:
    """The choices of `super_resolution.prepare` that the flags make."""
    if FLAGS.tile is None and FLAGS.tile_overlap is not None:
        raise ValueError(f"--tile_overlap={FLAGS.tile_overlap} says nothing without --tile")
    overlap = FLAGS.tile // 8 if FLAGS.tile and FLAGS.tile_overlap is None else FLAGS.tile_overlap
    return {
        "memory": None if FLAGS.memory_gib is None else int(FLAGS.memory_gib * 2**30),
        "window_batch": FLAGS.super_resolution_window_batch,
        "tile": None if FLAGS.tile is None else (FLAGS.tile, overlap),
        "negative_prompt": FLAGS.negative_prompt,
        "weights": FLAGS.window_weights,
    }


def approximation_flags() -> Approximations:
    """The approximations that the flags ask for."""
    if FLAGS.deep_features_every == 1 and FLAGS.shallow_layers != Approximations().shallow_layers:
        raise ValueError(f"--shallow_layers={FLAGS.shallow_layers} says nothing without --deep_features_every")
    return Approximations(FLAGS.deep_features_every, FLAGS.shallow_layers, FLAGS.half_rate_from)


def window_flags() -> dict[str, Any]:
    """The windows of the base model that the flags ask for: choices of `sample_videos`."""
    for name in ("window_overlap", "window_batch"):
        if FLAGS.window is None and FLAGS[name].value is not None:
            raise ValueError(f"--{name}={FLAGS[name].value} says nothing without --window")
    if FLAGS.window is None and FLAGS.window_weights is not None and not FLAGS.super_resolution:
        raise ValueError(
            f"--window_weights={FLAGS.window_weights} says nothing without windows: give --window or --super_resolution"
        )
    if FLAGS.window is None:
        return {}
    overlap = FLAGS.window // 4 if FLAGS.window_overlap is None else FLAGS.window_overlap
    return {"window": (FLAGS.window, overlap), "weights": FLAGS.window_weights, "window_batch": FLAGS.window_batch}


def guidance_interval_flag() -> tuple[float, float] | None:
    """The diffusion times at which the base model is guided; None: the config's."""
    words = FLAGS.guidance_interval
    if words is None:
        return None
    try:
        first, last = map(float, words)
    except ValueError:
        raise ValueError(f"--guidance_interval={','.join(words)}: give two numbers, FIRST,LAST") from None
    return first, last
