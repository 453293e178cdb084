"""Features for a Fréchet distance where I3D's weights are not at hand: of a small network that knows `moving_shapes`.

As I3D was trained to tell Kinetics' actions, this one is trained to tell shape, colour, motion and direction of
rendered clips; the features are what its last layer sees. It knows no model's clips, and is trained anew each time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx
from jaxtyping import Array, Float, Int

from lumiere_jax.data import moving_shapes, shapes_scene
from lumiere_jax.data.video_io import to_float
from lumiere_jax.evaluation.frechet_video_distance import Features
from lumiere_jax.models.layers import SpatialConv, TemporalConv

ATTRIBUTES = {
    "shape": shapes_scene.SHAPES,
    "colour": tuple(shapes_scene.COLOURS),
    "motion": shapes_scene.MOTIONS,
    "direction": (*shapes_scene.DIRECTIONS, "none"),
}
_WIDTHS = (16, 32, 48)
_he = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_BATCH = 16
_HELD_BACK = 96  # clips that show how well it tells them
_FIRST_SEED = 1000  # of scenes that no evaluation's prompts are drawn with


class SpaceTime(nnx.Module):
    """A convolution of each frame and one over time; half of the height and width. Not normalised: colours count."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.spatial_conv = SpatialConv(before, after, kernel_init=_he, rngs=rngs)
        self.temporal_conv = TemporalConv(after, after, kernel_init=_he, param=nnx.Param, rngs=rngs)

    def __call__(self, x: Float[Array, "clips frames height width in"]) -> Float[Array, "clips frames h w out"]:
        return nnx.relu(self.temporal_conv(nnx.relu(self.spatial_conv(x)[:, :, ::2, ::2])))


class Attributes(nnx.Module):
    """Three layers over space and time, mean and maximum of what they find, and a linear layer for each attribute."""

    def __init__(self, *, rngs: nnx.Rngs):
        widths = zip((3, *_WIDTHS), _WIDTHS, strict=False)
        self.layers = nnx.List([SpaceTime(before, after, rngs=rngs) for before, after in widths])
        self.classes = nnx.Dict(
            {name: nnx.Linear(2 * _WIDTHS[-1], len(values), rngs=rngs) for name, values in ATTRIBUTES.items()}
        )

    def features(self, videos: Float[Array, "clips frames height width 3"]) -> Float[Array, "clips features"]:
        """Of clips in [-1, 1]."""
        x = videos
        for layer in self.layers:
            x = layer(x)
        return jnp.concatenate([x.mean((1, 2, 3)), x.max((1, 2, 3))], axis=-1)


class Trained(NamedTuple):
    """The features, and how often each attribute of clips that were held back is told right."""

    features: Features
    accuracy: dict[str, float]


def train_features(*, frames: int, fps: float, size: int, steps: int, seed: int = 0) -> Trained:
    """Trains the network on clips that are rendered for it.

    Args:
      frames, fps, size: of all clips.
      steps: of training, with 16 clips each.
      seed: of its parameters.
    """
    network = Attributes(rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(3e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def update(network: Attributes, optimizer: nnx.Optimizer, videos: Array, labels: dict[str, Array]) -> None:
        optimizer.update(network, nnx.grad(_loss)(network, videos, labels))

    clips = functools.partial(_clips, frames=frames, fps=fps, size=size)
    for step in tqdm.trange(steps, desc="features", unit="step"):
        update(network, optimizer, *clips(_BATCH, _FIRST_SEED + 1 + step))
    compute = nnx.jit(lambda network, videos: network.features(videos))

    def features(videos: Float[np.ndarray | Array, "clips frames height width 3"]) -> Float[np.ndarray, "clips f"]:
        return np.asarray(compute(network, jnp.asarray(videos, jnp.float32)))

    videos, labels = clips(_HELD_BACK, _FIRST_SEED)
    seen = features(videos)
    told = {name: np.asarray(layer(seen)).argmax(1) for name, layer in network.classes.items()}
    return Trained(features, {name: float((told[name] == labels[name]).mean()) for name in ATTRIBUTES})


def _loss(network: Attributes, videos: Array, labels: dict[str, Array]) -> Array:
    seen = network.features(videos)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(layer(seen), labels[name]).mean()
        for name, layer in network.classes.items()
    ]
    return sum(losses)


def _clips(
    count: int, seed: int, *, frames: int, fps: float, size: int
) -> tuple[Float[np.ndarray, "clips frames height width 3"], dict[str, Int[np.ndarray, " clips"]]]:
    """Rendered clips and the numbers of their attributes."""
    scenes = [scene for _, scene in moving_shapes.prompts(count, seed, duration=frames / fps)]
    videos = to_float(np.stack([moving_shapes.render(scene, size, frames, fps) for scene in scenes]))
    labels = {
        name: np.array([values.index(getattr(scene.objects[0], name)) for scene in scenes])
        for name, values in ATTRIBUTES.items()
    }
    return videos, labels
