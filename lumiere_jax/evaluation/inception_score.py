"""Inception score of videos (Saito et al., TGAN, arXiv 1611.06624; TGANv2, arXiv 1811.09245).

exp(E KL(p(y|x) || p(y))) over clips x and the classes y of UCF101, as C3D sees them: 1 where all clips look alike to
it, 101 where it is sure of each and all classes are as frequent. The preparation of the clips is that of TGANv2's
program: levels are 128 x + 128 (not 127.5) in BGR, frames are resized to 112x112 with their corners aligned, the mean
clip of the training is subtracted. TGANv2 takes the mean over ten sets of 2048 clips.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.evaluation.bilinear import resized
from lumiere_jax.models.c3d import C3D, FRAMES, SIZE

_CROP = 8  # the first row and column that are kept of the mean
Probabilities = Callable[[Float[np.ndarray | Array, "clips 16 height width 3"]], Float[np.ndarray, "clips classes"]]


class InceptionScore(NamedTuple):
    """The mean of the scores of the splits, and their standard deviation (0 of one split)."""

    mean: float
    deviation: float


def inception_score(probabilities: Float[np.ndarray | Array, "clips classes"], splits: int = 1) -> InceptionScore:
    """The inception score, in float64.

    Args:
      probabilities: of the classes, for each clip.
      splits: parts in the order of the clips, each with a p(y) of its own, whose scores are averaged.

    Raises:
      ValueError: no probabilities, or more splits than clips.
    """
    p = np.asarray(probabilities, np.float64)
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError(f"probabilities are to be 0 or more and to sum to 1: they sum to {p.sum(1)[:4].tolist()}, ...")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits={splits}: give 1 to {len(p)}, as many as there are clips")
    scores = [np.exp(scipy.special.rel_entr(part, part.mean(0)).sum(1).mean()) for part in np.array_split(p, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def load_c3d_mean(path: str | os.PathLike[str]) -> Float[np.ndarray, "16 112 112 3"]:
    """The mean of C3D's training clips, BGR in levels, from the `.npz` that TGANv2's authors published.

    It is of 128x171 pixels, of which TGANv2 takes the rows and the columns 8 to 120: not the columns of the middle, as
    TGAN does. Axes of length 1 are dropped.

    Raises:
      FileNotFoundError: nothing at `path`.
      ValueError: no array `mean` of 3 channels, 16 frames and 120 pixels or more of each side.
    """
    with np.load(path, allow_pickle=False) as file:
        mean = np.squeeze(file["mean"]) if "mean" in file.files else np.zeros(0)
    if mean.ndim != 4 or mean.shape[:2] != (3, FRAMES) or min(mean.shape[2:]) < _CROP + SIZE:
        raise ValueError(f"{path}: its `mean` is to be [3, {FRAMES}, 128, 171], not {list(mean.shape)}")
    inside = slice(_CROP, _CROP + SIZE)
    return mean[:, :, inside, inside].transpose(1, 2, 3, 0).astype(np.float32)


def c3d_input(
    videos: Float[Array, "clips 16 height width 3"], mean: Float[np.ndarray, "16 112 112 3"]
) -> Float[Array, "clips 16 112 112 3"]:
    """Clips as C3D wants them.

    Args:
      videos: RGB in [-1, 1].
      mean: of C3D's training clips, BGR (`load_c3d_mean`).
    """
    levels = 128 * videos[..., ::-1]
    return resized(levels, SIZE, SIZE, "align_corners") + (128 - jnp.asarray(mean, levels.dtype))


def c3d_probabilities(c3d: C3D, mean: Float[np.ndarray, "16 112 112 3"]) -> Probabilities:
    """The function from videos of 16 frames, RGB in [-1, 1], to the probabilities of UCF101's classes.

    Args:
      c3d: with published weights (`checkpoints/evaluation_networks.py`).
      mean: as for `c3d_input`.
    """

    @nnx.jit
    def compute(network: C3D, videos: Array) -> Array:
        with jax.default_matmul_precision("highest"):  # TPUs would round what they multiply to bfloat16
            return network(c3d_input(videos, mean))

    def probabilities(
        videos: Float[np.ndarray | Array, "clips frames height width 3"],
    ) -> Float[np.ndarray, "clips classes"]:
        if videos.shape[1] != FRAMES:
            raise ValueError(f"clips of {videos.shape[1]} frames: C3D sees {FRAMES}, choose which")
        return np.asarray(compute(c3d, jnp.asarray(videos, jnp.float32)))

    return probabilities
