"""All that is measured of rows of clips: what needs no weights of each clip, what needs networks of a whole row."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Float

from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.evaluation import intervals
from lumiere_jax.evaluation.motion import adjacent_frame_error, means_of, motion_of, period
from lumiere_jax.evaluation.prompt_following import accuracy_of, right_attributes

Clip = Float[np.ndarray, "frames height width 3"]

_MIN_PERIODIC_FRAMES = 6  # of `period`


@dataclasses.dataclass(frozen=True)
class Row:
    """Clips of one kind.

    Attributes:
      name: what tables call it.
      repeats: of each repeat the clips, read when their turn comes; a row of real clips has one.
      fps: frames per second.
    """

    name: str
    repeats: Sequence[Sequence[Callable[[], Clip]]]
    fps: float

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
      "prompt following" (`accuracy_of`) where scenes are known, and "motion" (`means_of`).
    """
    total = sum(map(len, row.repeats))
    clips = tqdm.tqdm(row.clips(), total=total, desc=row.name, unit="clip", leave=False)
    if scenes is None:
        return {"motion": means_of([_motion(clip, row.fps) for clip in clips])}
    answers, motions = [], []
    for number, clip in enumerate(clips):
        scene = scenes[number % len(scenes)]
        answers.append(right_attributes(clip, scene, row.fps))
        motions.append(motion_of(clip, scene, row.fps))
    return {"prompt following": accuracy_of(answers), "motion": means_of(motions)}


def _motion(clip: Clip, fps: float) -> dict[str, float]:
    found = {"adjacent frame error": adjacent_frame_error(clip)}
    # The means of periods say nothing; how strong they are does.
    return found | ({"periodicity": period(clip, fps).strength} if len(clip) >= _MIN_PERIODIC_FRAMES else {})


def over_repeats(values: Sequence[float]) -> dict[str, Any]:
    """Of a measure that each repeat gives one value of: its mean and interval, and the values."""
    return intervals.mean_of_few(values) | {"values": [float(value) for value in values]}
