"""Does the band of `benchmarks.overfit` tell a broken set-up from a sound one? Known faults, planted one at a time.

    python -m benchmarks.overfit_faults --image_model=DIR [--workdir=DIR] [--only=NAME,...]

Each fault is planted into the code or the config of the recipe, which is then trained until its validation loss leaves
the band, or to its end. Faults of the temporal layers alone start from an image model of the recipe that is there
already (`--image_model`). Prints for each at which step it was found. The results are quoted in docs/overfit.md.
"""

import contextlib
import dataclasses
import pathlib
import sys
import unittest.mock
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS

from benchmarks.overfit import Band, Measurement, bands, compare, compared_loss, read_recorded, recipe
from lumiere_jax.data.clip_loader import ClipLoader
from lumiere_jax.diffusion import loss as diffusion_loss
from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.results import file_name
from lumiere_jax.text.tokenizer import Tokenizer
from lumiere_jax.train import train
from lumiere_jax.train_progress import Progress

Patches = Callable[[], contextlib.AbstractContextManager]


Change = Callable[[ml_collections.ConfigDict], None]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong.

    Attributes:
      stage: the one that has it; with "stunet" the image model under it is sound.
      config: what is wrong in that stage's config.
      patches: what is wrong in the code.
    """

    stage: str
    config: Change = lambda config: None
    patches: Patches = contextlib.nullcontext


def _learning_rate(factor: float) -> Change:
    def change(config: ml_collections.ConfigDict) -> None:
        config.training.learning_rate *= factor

    return change


def _on_clips(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Patches:
    """Clips are loaded otherwise, for training and validation alike."""
    load = ClipLoader.load

    def changed(self: ClipLoader, key: Any, record: Any, frames: int, rng: np.random.Generator) -> np.ndarray:
        return change(load(self, key, record, frames, rng), rng)

    return lambda: unittest.mock.patch.object(ClipLoader, "load", changed)


def _captions_of_others() -> contextlib.AbstractContextManager:
    encode, rng = Tokenizer.encode, np.random.default_rng(0)

    def shuffled(self: Tokenizer, texts: list[str], length: int) -> Any:
        return encode(self, [texts[i] for i in rng.permutation(len(texts))], length)

    return unittest.mock.patch.object(Tokenizer, "encode", shuffled)


def _target_is_noise() -> contextlib.AbstractContextManager:
    return unittest.mock.patch.object(diffusion_loss, "target", lambda x0, epsilon, *_: epsilon)


def _average_stays() -> contextlib.AbstractContextManager:
    return unittest.mock.patch("optax.incremental_update", lambda _new, average, _step: average)


def _no_noise() -> contextlib.AbstractContextManager:
    return unittest.mock.patch.object(CosineSchedule, "alpha_sigma", lambda _, t: (jnp.ones_like(t), jnp.zeros_like(t)))


def _noise_level_untold() -> contextlib.AbstractContextManager:
    return unittest.mock.patch.object(CosineSchedule, "network_time", lambda _, t: jnp.zeros_like(t))


FAULTS: dict[str, Fault] = {
    "none (image model)": Fault("image_model"),  # these two must not be found
    "none (temporal layers)": Fault("stunet"),
    "nothing is trained (learning rate 0)": Fault("image_model", _learning_rate(0.0)),
    "learning rate 10 times smaller": Fault("image_model", _learning_rate(0.1)),
    "learning rate 10 times larger": Fault("image_model", _learning_rate(10.0)),
    "captions always dropped": Fault("image_model", lambda config: config.text.update(dropout=1.0)),
    "captions of other clips": Fault("image_model", patches=_captions_of_others),
    "the target is the noise": Fault("image_model", patches=_target_is_noise),
    "the average of the parameters is never updated": Fault("image_model", patches=_average_stays),
    "no noise is added": Fault("image_model", patches=_no_noise),
    "the network is not told the noise level": Fault("image_model", patches=_noise_level_untold),
    "red and blue swapped": Fault("image_model", patches=_on_clips(lambda clip, _: clip[..., ::-1])),
    "temporal layers are not trained": Fault("stunet", _learning_rate(0.0)),
    "temporal layers: learning rate 10 times smaller": Fault("stunet", _learning_rate(0.1)),
    "frames in random order": Fault("stunet", patches=_on_clips(lambda clip, rng: rng.permutation(clip))),
    "clips played backwards at random": Fault(
        "stunet", patches=_on_clips(lambda clip, rng: clip[:: rng.choice((1, -1))])
    ),
    "every frame is the clip's first": Fault(
        "stunet", patches=_on_clips(lambda clip, _: np.repeat(clip[:1], len(clip), axis=0))
    ),
    "temporal layers: captions of other clips": Fault("stunet", patches=_captions_of_others),
    "temporal kernels see one frame": Fault(
        "stunet", lambda config: config.temporal.update(conv_kernel=1, resampler_kernel=1)
    ),
    "resamplers start with He's initialisation": Fault(
        "stunet", lambda config: config.temporal.update(resampler_init="he")
    ),
}


class _LeftTheBand(Exception):
    """Ends a training whose fault is found."""


def find(
    fault: Fault, stages: Mapping[str, Band], config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[Measurement]:
    """Trains with a fault until it is found, or to the end of the stage that has it; returns what was measured.

    Args:
      fault: what to plant.
      stages: the band of each stage.
      config: the recipe's; with `init_from` for a fault of the temporal layers.
      workdir: for the run.
    """
    measured: list[Measurement] = []
    running = config if fault.stage == "stunet" else config.image_model
    fault.config(running)
    with fault.patches(), _watch(fault.stage, stages[fault.stage], measured), contextlib.suppress(_LeftTheBand):
        train(running, workdir)
    return measured


@contextlib.contextmanager
def _watch(stage: str, band: Band, measured: list[Measurement]) -> Iterator[None]:
    """Compares each validation loss with the band as it comes, and ends the training at the first one outside."""
    show = Progress.validation

    def validation(self: Progress, step: int, losses: Mapping[str, Any], *others: Any) -> None:
        show(self, step, losses, *others)
        if step not in band.steps:
            return
        at = band.steps.index(step)
        one = Band((step,), (band.lower[at],), (band.upper[at],))
        measured.extend(
            compare(stage, {step: compared_loss({name: float(loss) for name, loss in losses.items()})}, one)
        )
        if measured[-1].verdict != "inside":
            raise _LeftTheBand

    with unittest.mock.patch.object(Progress, "validation", validation):
        yield


def describe(measured: list[Measurement]) -> str:
    """Where a fault was found, or that it was not."""
    last = measured[-1]
    where = f"{last.stage.replace('_', ' ')}, step {last.step}: {last.loss:.4f}, band {last.lower:.4f}-{last.upper:.4f}"
    return f"{last.verdict}, {where}" if last.verdict != "inside" else f"not found ({where})"


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("workdir", "workdir/overfit_faults", "The runs; must be new.")
    flags.DEFINE_string("image_model", None, "A sound image model of the recipe: image_model of a run, or of a seed.")
    flags.DEFINE_string("data_dir", "", "Where data sets are kept; default: TFDS's own, ~/tensorflow_datasets.")
    flags.DEFINE_list("only", [], "Names of faults; default: all.")
    flags.DEFINE_integer("seed", 100, "Not one of the recorded ones.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    unknown = set(FLAGS.only) - FAULTS.keys()
    if unknown:
        sys.exit(f"error: --only={','.join(unknown)}: no such fault, only\n  " + "\n  ".join(FAULTS))
    workdir = pathlib.Path(FLAGS.workdir)
    if workdir.exists():
        sys.exit(f"error: --workdir={workdir} is there already, and a run in it would be continued: give a new one")
    stages, found = bands(read_recorded()), {}
    for name in FLAGS.only or FAULTS:
        fault = FAULTS[name]
        config = recipe(FLAGS.seed, FLAGS.data_dir)
        config.init_from = FLAGS.image_model if fault.stage == "stunet" else ""
        # Pictures of a broken run are of no use here.
        config.training.preview_every = config.image_model.training.preview_every = 0
        directory = workdir / file_name(list(FAULTS).index(name), name)
        found[name] = describe(find(fault, stages, config, directory))
        print(f"{name}: {found[name]}", flush=True)
    print("\n| fault | |\n|---|---|")
    for name, text in found.items():
        print(f"| {name} | {text} |")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flag_as_required("image_model")
    app.run(main)
