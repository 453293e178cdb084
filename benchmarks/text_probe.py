"""What of a prompt is left where a U-Net reads it? Linear probes of a trained model's text features.

    python -m benchmarks.text_probe --checkpoint=pretrained/lumiere_shapes/base

An image model is trained on single frames. Words that change none of them ("to the left") need not survive its text
encoder, its pooling and its cross-attention, through which alone the paper's temporal layers know of the text, as all
three are frozen. Attributes of `moving_shapes` prompts are read from the mean of the features over the tokens by ridge
regression on one-hot labels, and scored on prompts that the regression has not seen. Into the table: accuracies, beside
how often the commonest answer is right. The mean hides what a nonlinear reader of single tokens could still find.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from absl.flags import FLAGS
from flax import nnx

from lumiere_jax import load_run
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data import moving_shapes
from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.distributed import platform
from lumiere_jax.models.temporal import MotionTextAttention
from lumiere_jax.models.unet2d import SpatialAttention

ATTRIBUTES = ("colour", "shape", "size", "motion", "direction")
_RIDGE = 1e-3
_SEEN = 0.75  # share of the prompts that the regression is fitted to


def text_features(run: Run, prompts: list[str]) -> dict[str, np.ndarray]:
    """Features of each prompt, `[prompts, width]`, in the order in which the text passes through the model."""
    unet = run.model.unet
    ids, _ = run.tokenizer.encode(prompts, run.config.text.length)
    text = run.model.embed_text(jnp.asarray(ids))
    context = unet.encoder_hid_proj(text)
    frozen, temporal = [], []
    for _, module in nnx.iter_modules(unet):
        if isinstance(module, SpatialAttention):
            frozen.append(module.add_v_proj(module.norm_cross(context)).mean(1))
        if isinstance(module, MotionTextAttention):
            values = np.split(module.to_kv(module.norm_text(context)), 2, axis=-1)[1]
            temporal.append(values.mean(1))
    features = {
        "text encoder": text.mean(1),
        "pooled, added to the time embedding": unet.text_pooling(text),
        "values of the image model's cross-attention": np.concatenate(frozen, axis=-1),
    }
    if temporal:
        features["values of the temporal layers' text attention"] = np.concatenate(temporal, axis=-1)
    return {name: np.asarray(values, np.float64) for name, values in features.items()}


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


def table(features: dict[str, np.ndarray], scenes: list[Scene]) -> str:
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
    any_place = next(itertools.islice(by_place.values(), 1))
    lines.append(f"| the commonest answer | {' | '.join(f'{each.commonest:.2f}' for each in any_place)} |")
    return "\n".join(lines)


def main(_argv: list[str]) -> None:
    """Entry point."""
    run = load_run(FLAGS.checkpoint)
    duration = run.config.clip.frames / run.config.clip.fps
    prompts, scenes = map(list, zip(*moving_shapes.prompts(FLAGS.prompts, seed=0, duration=duration), strict=True))
    print(table(text_features(run, prompts), scenes))


if __name__ == "__main__":
    platform.configure()
    flags.DEFINE_string("checkpoint", None, "A run's directory, or a published model's.")
    flags.DEFINE_integer("prompts", 2000, "To fit and score the probes.", 100)
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
