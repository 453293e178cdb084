"""The measures of a row of clips that need published networks, as far as their weights are given."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lumiere_jax.checkpoints.evaluation_networks import load_c3d, load_clip, load_i3d
from lumiere_jax.evaluation import intervals, published_weights
from lumiere_jax.evaluation.clip_similarity import clip_features, clip_similarity
from lumiere_jax.evaluation.frechet_video_distance import feature_statistics, frechet_distance, i3d_features
from lumiere_jax.evaluation.inception_score import c3d_probabilities, inception_score, load_c3d_mean
from lumiere_jax.evaluation.measures import Row, over_repeats
from lumiere_jax.evaluation.published_weights import PublishedFile
from lumiere_jax.models import c3d as c3d_network
from lumiere_jax.models import i3d as i3d_network
from lumiere_jax.text.clip_tokenizer import CLIPTokenizer

FVD, INCEPTION, CLIP = "Fréchet video distance", "inception score", "CLIP similarity"
_BATCH = 4  # clips that a network sees at once


class NetworkMeasures:
    """Fréchet video distance (I3D), inception score (C3D) and CLIP similarity, each where its weights are given."""

    def __init__(
        self,
        *,
        i3d: str | None = None,
        resize: str = "tf1_bilinear",
        c3d: str | None = None,
        c3d_mean: str | None = None,
        inception_splits: int = 10,
        clip: str | None = None,
    ):
        """Loads the networks.

        Args:
          i3d: a file of I3D's weights.
          resize: how frames come to I3D's size, see `i3d_features`.
          c3d: a file of C3D's weights.
          c3d_mean: the mean of the clips that C3D was trained with; goes with `c3d`.
          inception_splits: parts of the clips whose inception scores are averaged.
          clip: a directory of CLIP's weights and tokenizer.

        Raises:
          FileNotFoundError: a file is not there; says which it is to be, and whence.
          ValueError: a file holds something else; or one of `c3d` and `c3d_mean` without the other.
          ImportError: as the files' readers.
        """
        if (c3d is None) != (c3d_mean is None):
            raise ValueError("the inception score needs both of C3D's files: give --c3d and --c3d_mean, or neither")
        self._facts: dict[str, dict[str, Any]] = {}
        self._splits = inception_splits
        self._i3d = self._c3d = self._clip = None
        if i3d is not None:
            self._facts[FVD] = _weights("I3D", published_weights.I3D, i3d)
            self._facts[FVD] |= {"features": "logits", "resize": resize, "covariance": "N - 1"}
            self._i3d = i3d_features(load_i3d(published_weights.find(published_weights.I3D, i3d)), resize)
        if c3d is not None:
            mean = published_weights.find(published_weights.C3D_MEAN, c3d_mean)
            mean_sha256 = published_weights.provenance(published_weights.C3D_MEAN, mean).sha256
            self._facts[INCEPTION] = _weights("C3D", published_weights.C3D, c3d)
            self._facts[INCEPTION] |= {"mean_sha256": mean_sha256, "splits": inception_splits}
            network = load_c3d(published_weights.find(published_weights.C3D, c3d))
            self._c3d = c3d_probabilities(network, load_c3d_mean(mean))
        if clip is not None:
            self._facts[CLIP] = _weights("CLIP", published_weights.CLIP, clip)
            self._clip = clip_features(load_clip(clip), CLIPTokenizer.load(clip))

    def facts(self) -> dict[str, dict[str, Any]]:
        """By measure what of it belongs to the protocol."""
        return self._facts

    def check(self, *, clips: int, frames: int, has_reference: bool, has_prompts: bool) -> None:
        """Raises a ValueError for clips that cannot be measured, before they are made.

        Args:
          clips: of each repeat.
          frames: of each clip.
          has_reference: whether there are real clips.
          has_prompts: whether each clip has a prompt.
        """
        if self._i3d and not has_reference:
            raise ValueError("the Fréchet video distance is one from real clips: give --reference=DIR, or no --i3d")
        if self._i3d and frames < i3d_network.MIN_FRAMES:
            raise ValueError(f"clips of {frames} frames: I3D needs {i3d_network.MIN_FRAMES} or more")
        if self._i3d and clips < 2:
            raise ValueError("one clip: the Fréchet video distance needs 2, and thousands to be compared with others'")
        if self._c3d and frames != c3d_network.FRAMES:
            raise ValueError(f"clips of {frames} frames: C3D needs {c3d_network.FRAMES}")
        if self._c3d and clips < self._splits:
            raise ValueError(f"{clips} clips in {self._splits} parts: give --inception_splits, at most {clips}")
        if self._clip and not has_prompts:
            raise ValueError("CLIP similarity is one to prompts, and not every clip has one: give no --clip")

    def measure(self, row: Row, reference: Row | None, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the networks say of a row.

        Args:
          row: of generated clips; distances and scores are one for each repeat.
          reference: real clips.
          prompts: of the clips of a repeat.

        Returns:
          by measure its mean, with the interval from `low` to `high`: over the repeats, and of CLIP similarity over all
          clips.
        """
        found: dict[str, dict[str, Any]] = {}
        if self._i3d:
            real, *generated = (
                feature_statistics(self._i3d, _batches(repeat)) for repeat in (reference.repeats[0], *row.repeats)
            )
            found[FVD] = over_repeats([frechet_distance(real, each) for each in generated])
        if self._c3d:
            scores = [
                inception_score(np.concatenate(list(map(self._c3d, _batches(repeat)))), self._splits)
                for repeat in row.repeats
            ]
            found[INCEPTION] = over_repeats([score.mean for score in scores])
            found[INCEPTION]["deviations over splits"] = [score.deviation for score in scores]
        if self._clip:
            similarities = [self._similarities(repeat, prompts) for repeat in row.repeats]
            found[CLIP] = intervals.mean(np.concatenate(similarities))
        return found

    def _similarities(self, repeat: Sequence[Any], prompts: Sequence[str]) -> Float[np.ndarray, " clips"]:
        vectors = self._clip.prompts(prompts)
        of_batches = zip(_batches(repeat), range(0, len(repeat), _BATCH), strict=True)
        return np.concatenate(
            [clip_similarity(self._clip.frames(clips), vectors[first : first + _BATCH]) for clips, first in of_batches]
        )


def _weights(network: str, wanted: PublishedFile, path: str) -> dict[str, Any]:
    known = published_weights.provenance(wanted, path)
    return {"network": network, "sha256": known.sha256, "is_published_file": known.is_published}


def _batches(repeat: Sequence[Any]) -> Iterator[Float[np.ndarray, "clips frames height width 3"]]:
    for first in range(0, len(repeat), _BATCH):
        yield np.stack([read() for read in repeat[first : first + _BATCH]])
