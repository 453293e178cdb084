"""Which words of a prompt does a trained model read? Two measures that tell more than clips do at its beginning.

    python -m benchmarks.text_probe --checkpoint=pretrained/lumiere_shapes/base

**What is left of a word where the U-Net reads it.** An image model is trained on single frames. Words that change none
of them ("to the left") need not survive its text encoder, its pooling and its cross-attention, through which alone the
paper's temporal layers know of the text, as all three are frozen. Attributes of `moving_shapes` prompts are read from
the mean of the features over the tokens by ridge regression on one-hot labels, and scored on prompts that it has not
seen: accuracies, beside how often the commonest answer is right. The mean hides what a nonlinear reader of single
tokens could still find.

**What a wrong word costs.** The loss on rendered clips whose caption says another colour, another shape or the opposite
direction, over the loss with the right caption, less one: percent at several noise levels, with standard errors. Zero:
the word is not read.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from absl.flags import FLAGS
from flax import nnx

from lumiere_jax import load_run
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data import moving_shapes, shapes_captions, shapes_scene
from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.diffusion.loss import diffusion_loss
from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.distributed import platform
from lumiere_jax.models.spatial_layers import SpatialAttention
from lumiere_jax.pipelines.generation import sampling_settings

ATTRIBUTES = ("colour", "shape", "size", "motion", "direction")
LOG_SNRS = (-6.0, -4.0, -2.0, 0.0)
_RIDGE = 1e-3
_SEEN = 0.75  # share of the prompts that the regression is fitted to
_BATCH = 8
_SHORTEST = 2.0  # seconds of motion in a scene, also for models of single frames
# The words of each value, and by which value they are replaced: the one so many places further.
_WORDS = {
    "colour": ({colour: (colour,) for colour in shapes_scene.COLOURS}, 3),
    "shape": (shapes_captions.SHAPE_WORDS, 1),
    "direction": ({name: shapes_captions.DIRECTION_WORDS[name] for name in shapes_scene.DIRECTIONS}, 4),
}


# ------------------------------------------------------------------------------------ what is left of a word


def text_features(run: Run, prompts: list[str]) -> dict[str, np.ndarray]:
    """Features of each prompt, `[prompts, width]`, in the order in which the text passes through the model."""
    unet, text = run.model.unet, _embedded(run, prompts)
    context = unet.encoder_hid_proj(text)
    values = [
        module.add_v_proj(module.norm_cross(context)).mean(1)
        for _, module in nnx.iter_modules(unet)
        if isinstance(module, SpatialAttention)
    ]
    features = {
        "text encoder": text.mean(1),
        "pooled, added to the time embedding": unet.text_pooling(text),
        "values of cross-attention": jnp.concatenate(values, axis=-1),
    }
    return {name: np.asarray(array, np.float64) for name, array in features.items()}


@dataclasses.dataclass(frozen=True)
class Probed:
    """How often a probe is right about prompts that it was not fitted to, and how often the commonest answer is."""

    accuracy: float
    commonest: float


def probe(features: np.ndarray, labels: list[str]) -> Probed:
    """Fits and scores a probe.

    Args:
      features: `[prompts, width]`.
      labels: one a prompt.
    """
    names, classes = np.unique(labels, return_inverse=True)
    fitted = int(_SEEN * len(features))
    mean, deviation = features[:fitted].mean(0), features[:fitted].std(0) + 1e-9
    design = np.concatenate([(features - mean) / deviation, np.ones((len(features), 1))], axis=1)
    seen, targets = design[:fitted], np.eye(len(names))[classes[:fitted]]
    gram = seen.T @ seen + _RIDGE * fitted * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, seen.T @ targets)
    truth = classes[fitted:]
    return Probed(float(np.mean((design[fitted:] @ weights).argmax(1) == truth)), np.bincount(truth).max() / len(truth))


def features_table(features: dict[str, np.ndarray], scenes: list[Scene]) -> str:
    """One row for each place, one column for each attribute; directions of the objects that have one."""
    lines = [f"| | {' | '.join(ATTRIBUTES)} |", "|---" * (1 + len(ATTRIBUTES)) + "|"]
    labels = {name: [getattr(scene.objects[0], name) for scene in scenes] for name in ATTRIBUTES}
    known = {name: np.flatnonzero(np.array(values) != "none") for name, values in labels.items()}
    by_place = {
        place: [probe(values[known[name]], [labels[name][i] for i in known[name]]) for name in ATTRIBUTES]
        for place, values in features.items()
    }
    for place, probes in by_place.items():
        lines.append(f"| {place} | {' | '.join(f'{each.accuracy:.2f}' for each in probes)} |")
    any_place = next(iter(by_place.values()))
    lines.append(f"| the commonest answer | {' | '.join(f'{each.commonest:.2f}' for each in any_place)} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ what a wrong word costs


def with_another(attribute: str, prompt: str, scene: Scene) -> str:
    """The prompt of a scene with one object, whose colour, shape or direction (to the opposite) is said wrongly."""
    (moving,) = scene.objects
    words, further = _WORDS[attribute]
    values = list(words)
    other = values[(values.index(getattr(moving, attribute)) + further) % len(values)]
    # All of the words that say it: "to the right", not "right" alone.
    said = max((word for word in words[getattr(moving, attribute)] if word in prompt), key=len)
    return prompt.replace(said, words[other][0])


@functools.partial(jax.jit, static_argnames=("graphdef", "schedule", "objective"))
def _losses(
    state: nnx.State,
    videos: jax.Array,
    text: jax.Array,
    noise: jax.Array,
    time: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    schedule: NoiseSchedule,
    objective: str,
) -> jax.Array:
    model = nnx.merge(graphdef, state)

    def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
        return model.predict(x, schedule.network_time(t), text)

    return diffusion_loss(denoiser, videos, time, noise, schedule=schedule, objective=objective)[1]


def rendered(run: Run, scenes: list[Scene]) -> np.ndarray:
    """The scenes as clips of the model's size, in [-1, 1]."""
    clip = run.config.clip
    videos = [moving_shapes.render(scene, clip.size, clip.frames, clip.fps) for scene in scenes]
    return (np.stack(videos) / 127.5 - 1).astype(np.float32)


def losses(run: Run, videos: np.ndarray, prompts: list[str], log_snr: float) -> np.ndarray:
    """The loss of each clip with its prompt at a noise level; the same noise at every call."""
    schedule = sampling_settings(run.config).schedule
    time = schedule.time_at_log_snr(jnp.full(_BATCH, log_snr))
    graphdef, state = nnx.split(run.model)
    of_batch = functools.partial(
        _losses, graphdef=graphdef, schedule=schedule, objective=run.config.diffusion.prediction
    )
    found = []
    for first in range(0, len(videos), _BATCH):
        batch = slice(first, first + _BATCH)
        noise = jax.random.normal(jax.random.key(first), videos[batch].shape)
        found.append(np.asarray(of_batch(state, videos[batch], _embedded(run, prompts[batch]), noise, time)))
    return np.concatenate(found)


def words_table(run: Run, prompts: list[str], scenes: list[Scene]) -> str:
    """One row for each noise level, one column for each attribute that is replaced; of scenes that have all of them."""
    lines = [f"| log-SNR | loss | {' | '.join(f'another {name}' for name in _WORDS)} |"]
    lines.append("|---" * (2 + len(_WORDS)) + "|")
    videos = rendered(run, scenes)
    for log_snr in LOG_SNRS:
        right = losses(run, videos, prompts, log_snr)
        cells = [f"{log_snr:g}", f"{right.mean():.4f}"]
        for name in _WORDS:
            wrong = [with_another(name, *pair) for pair in zip(prompts, scenes, strict=True)]
            more = 100 * (losses(run, videos, wrong, log_snr) - right) / right.mean()
            cells.append(f"{more.mean():+.1f} ± {more.std() / np.sqrt(len(more)):.1f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _embedded(run: Run, prompts: list[str]) -> jax.Array:
    ids, _ = run.tokenizer.encode(prompts, run.config.text.length)
    return run.model.embed_text(jnp.asarray(ids))


def main(_argv: list[str]) -> None:
    """Entry point."""
    run = load_run(FLAGS.checkpoint)
    duration = max(_SHORTEST, run.config.clip.frames / run.config.clip.fps)
    pairs = moving_shapes.prompts(FLAGS.prompts, seed=0, duration=duration)
    prompts, scenes = map(list, zip(*pairs, strict=True))
    print(features_table(text_features(run, prompts), scenes), end="\n\n")
    translating = [pair for pair in pairs if pair[1].objects[0].motion == "translating"][: FLAGS.batches * _BATCH]
    print(words_table(run, *map(list, zip(*translating, strict=True))))


if __name__ == "__main__":
    platform.configure()
    flags.DEFINE_string("checkpoint", None, "A run's directory, or a published model's.")
    flags.DEFINE_integer("prompts", 2000, "To fit and score the probes.", 100)
    flags.DEFINE_integer("batches", 4, f"Of {_BATCH} clips, to score wrong words on.", 1)
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
