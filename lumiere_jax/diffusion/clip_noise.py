"""Noise for clips of which only a part is in memory: each row of each frame is drawn from a key of its own.

So a window's noise is that of its place in the clip, however the clip is cut: windows that overlap share it.
"""

import jax
from jaxtyping import Array, Float, Int, Key


def noise_of_rows(
    key: Key[Array, ""],
    frames: Int[Array, " frames"],
    rows: Int[Array, " rows"],
    width: int,
    channels: int = 3,
) -> Float[Array, "frames rows {width} {channels}"]:
    """Standard normal noise of some rows of some frames of a clip, float32.

    Args:
      key: of all of the clip's noise.
      frames, rows: their numbers in the clip.
      width: of the clip; pixels in a row.
      channels: of a pixel.
    """

    def row_of(frame: Array, row: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, frame), row), (width, channels))

    return jax.vmap(jax.vmap(row_of, (None, 0)), (0, None))(frames, rows)


def clip_key(key: Key[Array, ""], stream: int, number: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key of one of a clip's noises, which depends on the clip's number alone, whatever else is sampled beside it.

    Args:
      key: of a seed.
      stream: what the noise is for: streams are independent.
      number: of the clip.
    """
    return jax.random.fold_in(jax.random.fold_in(key, stream), number)
