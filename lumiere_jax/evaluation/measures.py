"""All that is measured of rows of clips: what needs no weights of each clip, what needs networks of a whole row."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Bool, Float, Int

from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.evaluation import intervals
from lumiere_jax.evaluation.bootstrap import bootstrap_interval
from lumiere_jax.evaluation.motion import adjacent_frame_error, means_of, motion_of, period
from lumiere_jax.evaluation.prompt_following import accuracy_of, right_attributes
from lumiere_jax.evaluation.seams import neighbour_mse, seam_ratio

Clip = Float[np.ndarray, "frames height width 3"]

_MIN_PERIODIC_FRAMES = 6  # of `period`


@dataclasses.dataclass(frozen=True)
class Row:
    """Clips of one kind.

    Attributes:
      name: what tables call it.
      repeats: of each repeat the clips, read when their turn comes; a row of real clips has one.
      fps: frames per second.
      borders: where windows of super-resolution meet (`seams.borders`), of all clips; None: they have none. Clips
        without windows have them, too, where they are what clips with windows are held against.
    """

    name: str
    repeats: Sequence[Sequence[Callable[[], Clip]]]
    fps: float
    borders: Bool[np.ndarray, " pairs"] | None = None

    def clips(self) -> Iterator[Clip]:
        """Of all repeats, one after the other."""
        for repeat in self.repeats:
            for read in repeat:
                yield read()


def measures_without_networks(row: Row, scenes: Sequence[Scene] | None) -> dict[str, Any]:
    """Prompt following and motion where scenes are known, and of any clips how much moves, and how periodically.

    Args:
      row: all repeats count together.
      scenes: what each clip of a repeat shows; None: not known.

    Returns:
      "prompt following" (`accuracy_of`) where scenes are known, "motion" (`means_of`), and "seams" where there are
      borders.
    """
    total = sum(map(len, row.repeats))
    clips = tqdm.tqdm(row.clips(), total=total, desc=row.name, unit="clip", leave=False)
    answers, motions, differences = [], [], []
    for number, clip in enumerate(clips):
        scene = None if scenes is None else scenes[number % len(scenes)]
        if scene is not None:
            answers.append(right_attributes(clip, scene, row.fps))
        has_one_object = scene is not None and len(scene.objects) == 1  # whose track is compared with the scene's
        motions.append(motion_of(clip, scene, row.fps) if has_one_object else _motion(clip, row.fps))
        if row.borders is not None:
            differences.append(neighbour_mse(clip))
    found = {} if scenes is None else {"prompt following": accuracy_of(answers)}
    found["motion"] = means_of(motions)
    if row.borders is not None:
        found["seams"] = {"border ratio": _border_ratio(np.stack(differences), row.borders)}
    return found


def _border_ratio(
    differences: Float[np.ndarray, "clips pairs"], borders: Bool[np.ndarray, " pairs"]
) -> dict[str, float]:
    """`seam_ratio` of all clips together, as a mean of the clips' ratios would be that of those that hardly move.

    NaN where all stand still.
    """

    def ratio(chosen: Int[np.ndarray, " clips"]) -> float:
        mean = differences[chosen].mean(0)
        return seam_ratio(mean, borders) if mean[~borders].any() else math.nan

    clips = len(differences)
    low, high = bootstrap_interval(ratio, clips) if clips > 1 else (math.nan, math.nan)
    return {"mean": ratio(np.arange(clips)), "low": low, "high": high, "n": clips}


def _motion(clip: Clip, fps: float) -> dict[str, float]:
    found = {"adjacent frame error": adjacent_frame_error(clip)}
    # The means of periods say nothing; how strong they are does.
    return found | ({"periodicity": period(clip, fps).strength} if len(clip) >= _MIN_PERIODIC_FRAMES else {})


def over_repeats(values: Sequence[float]) -> dict[str, Any]:
    """Of a measure that each repeat gives one value of: its mean and interval, and the values."""
    return intervals.mean_of_few(values) | {"values": [float(value) for value in values]}
