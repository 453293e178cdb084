"""What super-resolution is conditioned on: the low-resolution video, brought to full size and noised.

Noise-conditioning augmentation (Ho et al. 2022, "Cascaded diffusion models", section 4): in training the low-resolution
video is noised to a random level that the network is told, so in sampling it forgives the base model's faults.
The paper does not say how Lumiere's super-resolution is conditioned; this is the field's (and DeepFloyd IF's) way.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.diffusion.prediction import per_example


def downsample(
    video: Float[Array, "batch frames height width channels"], factor: int
) -> Float[Array, "batch frames small_height small_width channels"]:
    """Averages blocks of `factor` x `factor` pixels.

    Raises:
      ValueError: `factor` does not divide height and width.
    """
    batch, frames, height, width, channels = video.shape
    if height % factor or width % factor:
        raise ValueError(f"{height}x{width} frames cannot be reduced {factor} times: choose a divisor of both")
    blocks = video.reshape(batch, frames, height // factor, factor, width // factor, factor, channels)
    return blocks.mean((3, 5))


def upsample(
    video: Float[Array, "batch frames height width channels"], height: int, width: int, *, align_corners: bool = True
) -> Float[Array, "batch frames {height} {width} channels"]:
    """Bilinear interpolation.

    Args:
      video: to be enlarged.
      height, width: of the result.
      align_corners: DeepFloyd IF's convention: corner pixels keep their values, so that the picture is shifted against
        the one that `downsample` took it from, by (factor - 1) / 2 pixels outwards at the edges and not at all in the
        middle. Otherwise pixel areas are aligned, as blocks are: nothing is shifted, and a crop (`clip.crop_from`) is
        enlarged like the frame that it is of. Past the middle of the outermost pixels their values are repeated.
    """
    rows, columns = (
        jnp.asarray(_bilinear_weights(size, new_size, align_corners), video.dtype)
        for size, new_size in ((video.shape[2], height), (video.shape[3], width))
    )
    return along_rows_and_columns(rows, video, columns)


def upsample_part(
    video: Float[Array, "frames small_height small_width channels"],
    size: tuple[int, int],
    corner: tuple[Array, Array],
    part: tuple[int, int],
    *,
    align_corners: bool = True,
) -> Float[Array, "frames height width channels"]:
    """A part of `upsample` to `size`, of (height, width) `part`, whose upper left pixel is `corner`."""
    rows, columns = (
        jax.lax.dynamic_slice_in_dim(jnp.asarray(_bilinear_weights(*sizes, align_corners), video.dtype), start, length)
        for sizes, start, length in zip(zip(video.shape[1:3], size, strict=True), corner, part, strict=True)
    )
    return along_rows_and_columns(rows, video, columns)


def along_rows_and_columns(
    rows: Float[Array, "*#clips height small_height"],
    video: Float[Array, "*#clips frames small_height small_width channels"],
    columns: Float[Array, "*#clips width small_width"],
) -> Float[Array, "*#clips frames height width channels"]:
    """Multiplies each frame's columns by `rows` and its rows by `columns`: matrices for all clips, or one for each.

    In full precision: bfloat16, to which a TPU would round, has steps of a grey level.
    """
    return jnp.einsum("...Hh,...fhwc,...Ww->...fHWc", rows, video, columns, precision=jax.lax.Precision.HIGHEST)


def check_level(field: str, level: float | int, schedule: NoiseSchedule) -> None:
    """Raises ValueError if a config field's augmentation level is no diffusion time that a network can be told."""
    if schedule.levels is None and not 0.0 <= level <= 1.0:
        raise ValueError(f"{field}={level}: give a diffusion time from 0 to 1")
    if schedule.levels is not None and not 0.0 < level <= 1.0:
        raise ValueError(
            f"{field}={level}: level i of this schedule's {schedule.levels} lies at (i + 1) / {schedule.levels}; "
            f"give a time from {1 / schedule.levels:g} to 1"
        )


def _bilinear_weights(size: int, new_size: int, align_corners: bool) -> np.ndarray:
    """`[new_size, size]`: row i interpolates the inputs around its position among them."""
    if align_corners:
        position = np.linspace(0.0, size - 1, new_size)
    else:
        position = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(size)))


def augment(
    low_res: Float[Array, "batch frames height width channels"],
    level: Float[Array, " batch"],
    noise: Float[Array, "batch frames height width channels"],
    schedule: NoiseSchedule,
) -> Float[Array, "batch frames height width channels"]:
    """Noises each clip's low-resolution video with standard normal `noise` to its level, a diffusion time in [0, 1].

    The network is told `schedule.network_time(level)`. DeepFloyd IF's integer level i lies at (i + 1) / 1000 of the
    discrete schedule, and the network is told i.
    """
    alpha, sigma = schedule.alpha_sigma(level)
    return per_example(alpha, low_res) * low_res + per_example(sigma, low_res) * noise
