"""Several data sets as one, by weight."""

import dataclasses
from collections.abc import Sequence

from lumiere_jax.data.clip_loader import Record


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data sets that a batch draws from; each is shuffled and goes through its epochs by itself.

    Attributes:
        sources: the data sets.
        weights: how many clips each gives, relative to the others; kept to within 1 % over any stretch of the stream
            that is long enough, not by chance.

    Raises:
        ValueError: no data sets, or not one positive weight for each.
    """

    sources: tuple[Sequence[Record], ...]
    weights: tuple[float | int, ...]

    def __post_init__(self):
        if not self.sources or len(self.sources) != len(self.weights) or not all(w > 0 for w in self.weights):
            raise ValueError(
                f"a mixture needs one positive weight per data set: {len(self.sources)} data sets, {self.weights}"
            )


def parse_mixture(text: str) -> list[tuple[str, str, float]]:
    """Reads `name:path=weight,name:path=weight`, e.g. `video_folder:clips=0.7,tfds:ucf101=0.3`.

    Returns:
        Name, path and weight of each data set, as `dataset.name` and `dataset.path` would have them.

    Raises:
        ValueError: another form, a weight that is no positive number, or a data set that is named twice.
    """
    parts: list[tuple[str, str, float]] = []
    for part in text.split(","):
        names, equals, weight = part.strip().rpartition("=")
        name, colon, path = names.partition(":")
        if not (equals and colon and name and path):
            raise ValueError(
                f"dataset.path={text!r}: {part!r} is not NAME:PATH=WEIGHT; write for example "
                "video_folder:clips=0.7,tfds:ucf101=0.3 (paths cannot contain commas)"
            )
        try:
            parts.append((name, path, float(weight)))
        except ValueError:
            raise ValueError(f"dataset.path={text!r}: the weight of {names} is {weight!r}, not a number") from None
        if not 0 < parts[-1][2] < float("inf"):
            raise ValueError(f"dataset.path={text!r}: the weight of {names} is {weight}; it must be positive")
    if len({part[:2] for part in parts}) < len(parts):
        raise ValueError(f"dataset.path={text!r} names a data set twice: add up its weights")
    return parts
