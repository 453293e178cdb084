"""Fréchet video distance (Unterthiner et al., arXiv 1812.01717): how far two sets of clips are apart in features.

Both sets are taken for Gaussians over the features of their clips, and compared by the Fréchet (2-Wasserstein) distance

    d² = |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½)

which is what is reported, squared. The protocol is the reference program's: the features are I3D's logits, frames are
resized to 224x224 by TensorFlow 1's bilinear resizing, the covariances are divided by N - 1. Distances of few clips are
too large, by an amount that depends on N: compare only distances of as many clips.

Any function `videos [clips, frames, height, width, 3] in [-1, 1] -> features [clips, features]` can take I3D's place.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.evaluation.bilinear import resized
from lumiere_jax.models.i3d import I3D, SIZE

Features = Callable[[Float[np.ndarray | Array, "clips frames height width 3"]], Float[np.ndarray, "clips features"]]


def i3d_features(i3d: I3D, resize: str = "tf1_bilinear") -> Features:
    """The features of the Fréchet video distance: I3D's logits `[clips, 400]`.

    Args:
      i3d: with published weights (`checkpoints/evaluation_networks.py`).
      resize: how frames come to 224x224 pixels, whatever their proportions. `tf1_bilinear`: as the reference program.
        `half_pixel`: as ports to PyTorch do; the distances are others (`evaluation/bilinear.py`).

    Raises:
      ValueError: another `resize`.
    """
    if resize not in ("tf1_bilinear", "half_pixel"):
        raise ValueError(f"resize={resize!r}: give tf1_bilinear or half_pixel")

    @nnx.jit
    def compute(network: I3D, videos: Array) -> Array:
        with jax.default_matmul_precision("highest"):  # TPUs would round what they multiply to bfloat16
            return network(resized(videos, SIZE, SIZE, resize))

    def features(
        videos: Float[np.ndarray | Array, "clips frames height width 3"],
    ) -> Float[np.ndarray, "clips classes"]:
        return np.asarray(compute(i3d, jax.numpy.asarray(videos, jax.numpy.float32)))

    return features


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of features, in float64; immutable: `add` and `merge` return new ones.

    Sets that are added in parts, or merged from several hosts, give what all features at once give, but for rounding.

    Attributes:
      count: how many clips.
      mean: of their features.
      scatter: sum over the clips of the outer product of what the mean leaves, with itself.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, features: Float[np.ndarray | Array, "clips features"]) -> "FeatureStatistics":
        """Of all clips at once.

        Raises:
          ValueError: no clips, or features that are not finite.
        """
        values = np.asarray(features, np.float64)
        if not len(values):
            raise ValueError("no clips: statistics need one or more")
        if not np.isfinite(values).all():
            clips = np.flatnonzero(~np.isfinite(values).all(1))
            raise ValueError(f"the features of clips {clips[:8].tolist()} are not finite: look at these clips")
        mean = values.mean(0)
        return cls(len(values), mean, (values - mean).T @ (values - mean))

    def add(self, features: Float[np.ndarray | Array, "clips features"]) -> "FeatureStatistics":
        """These and more clips."""
        return self.merge(FeatureStatistics.of(features))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Of the clips of both (Chan et al. 1979).

        Raises:
          ValueError: features of another width.
        """
        _check_same_width(self, other)
        count = self.count + other.count
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return FeatureStatistics(
            count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between
        )

    def covariance(self, ddof: int = 1) -> Float[np.ndarray, "features features"]:
        """The scatter divided by N - `ddof`: 1, as the reference program (TF-GAN), or 0, as StyleGAN-V's.

        Raises:
          ValueError: too few clips.
        """
        if self.count <= ddof or self.count < 2:
            raise ValueError(f"{self.count} clips: a covariance needs 2 or more, and more than ddof={ddof}")
        return self.scatter / (self.count - ddof)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an `.npz`, whole or not at all."""
        path = pathlib.Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, count=self.count, mean=self.mean, scatter=self.scatter)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FeatureStatistics":
        """What `save` wrote.

        Raises:
          FileNotFoundError: nothing at `path`.
          ValueError: something else.
        """
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {"count", "mean", "scatter"}:
                raise ValueError(f"{path} holds {sorted(file.files)}, not the count, mean and scatter of features")
            return cls(int(file["count"]), file["mean"], file["scatter"])


def feature_statistics(features: Features, batches: Iterable[Float[np.ndarray | Array, "..."]]) -> FeatureStatistics:
    """The statistics of clips that come in batches; one batch is in memory at a time.

    Args:
      features: of the videos of a batch.
      batches: videos `[clips, frames, height, width, 3]` in [-1, 1].

    Raises:
      ValueError: no batches.
    """
    parts: Iterator[FeatureStatistics] = (FeatureStatistics.of(features(videos)) for videos in batches)
    first = next(parts, None)
    if first is None:
        raise ValueError("no batches of videos: statistics need one clip or more")
    return functools.reduce(FeatureStatistics.merge, parts, first)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, *, ddof: int = 1) -> float:
    """The squared Fréchet distance of the Gaussians with these means and covariances, in float64.

    The trace of (Σ_a Σ_b)^½ is that of (Σ_a^½ Σ_b Σ_a^½)^½: the sum of the singular values of Σ_a^½ Σ_b^½. All roots
    are of symmetric matrices, so nothing is complex, and singular covariances (fewer clips than features) do no harm.

    Args:
      a, b: of two sets of clips.
      ddof: see `FeatureStatistics.covariance`.

    Raises:
      ValueError: too few clips, or features of different widths.
    """
    _check_same_width(a, b)
    first, second = a.covariance(ddof), b.covariance(ddof)
    shared = np.linalg.svd(_root(first) @ _root(second), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(first) + np.trace(second) - 2 * shared
    return float(max(distance, 0.0))  # below 0 by rounding, where the sets are the same


def _root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The root of a symmetric matrix that is positive but for rounding, which would leave 1e-8 where it has 0."""
    values, vectors = np.linalg.eigh(matrix)
    rounding = len(values) * np.finfo(values.dtype).eps * np.abs(values).max()
    return (vectors * np.sqrt(np.where(values > rounding, values, 0))) @ vectors.T


def _check_same_width(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} numbers: take both from the same network")
