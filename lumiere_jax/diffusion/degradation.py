"""What becomes of a low-resolution video in training, besides noise: blur and compression.

Small videos that are made by averaging blocks are sharper and cleaner than what a base model makes. A network that was
trained on some of the faults mends them: blur, noise and JPEG are those of Real-ESRGAN (Wang et al. 2021, section 3).
Nothing in this file is from the Lumiere paper.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lumiere_jax.diffusion.low_resolution import along_rows_and_columns

_BLOCK = 8
# Quantisation tables for luminance and chrominance: ITU-T T.81, annex K.1. Rows go from low to high vertical frequency.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# RGB to Y, Cb, Cr: ITU-T T.871 (JFIF), without the offset of 128 of Cb and Cr.
_TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])


def blur(
    video: Float[Array, "batch frames height width channels"], deviation: Float[Array, " batch"]
) -> Float[Array, "batch frames height width channels"]:
    """Gaussian blur of all frames of a clip alike; weights that would lie outside of the frame go to those inside.

    Args:
      video: to be blurred.
      deviation: standard deviation for each clip, in pixels of this video; 0 leaves it as it is.
    """
    rows, columns = (_gaussian_weights(size, deviation).astype(video.dtype) for size in video.shape[2:4])
    return along_rows_and_columns(rows, video, columns)


def jpeg(
    video: Float[Array, "batch frames height width 3"], quality: Int[Array, " batch"]
) -> Float[Array, "batch frames height width 3"]:
    """What a video in [-1, 1] looks like after each frame was a JPEG file with full chrominance (4:4:4).

    That is the lossy part of the standard: 8 bits, YCbCr, discrete cosine transform of blocks of 8x8 pixels, and
    quantisation by the tables of its annex K, scaled by quality as libjpeg does. Frames are continued to whole blocks
    by their last row and column.

    Args:
      video: RGB.
      quality: from 1 to 100, for each clip.
    """
    height, width = video.shape[2:4]
    ycbcr = jnp.rint(_recolour(_TO_YCBCR, _to_levels(video))).at[..., 0].add(-128.0)
    padding = [(0, 0), (0, 0), (0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)]
    ycbcr = jnp.pad(ycbcr, padding, mode="edge")
    blocks_down, blocks_across = (size // _BLOCK for size in ycbcr.shape[2:4])
    rows, columns = (jnp.asarray(_cosines(count), video.dtype) for count in (blocks_down, blocks_across))
    step = jnp.tile(_quantisation_steps(quality), (1, blocks_down, blocks_across, 1))[:, None]
    coefficients = _quantise(along_rows_and_columns(rows, ycbcr, columns), step).astype(video.dtype)
    ycbcr = along_rows_and_columns(rows.T, coefficients, columns.T)[:, :, :height, :width]
    ycbcr = jnp.clip(jnp.rint(ycbcr), -128, 127).at[..., 0].add(128.0)
    return jnp.clip(jnp.rint(_recolour(_TO_RGB, ycbcr)) / 127.5 - 1.0, -1.0, 1.0)


def _gaussian_weights(size: int, deviation: Float[Array, " batch"]) -> Float[Array, "batch {size} {size}"]:
    distance = np.arange(size)[:, None] - np.arange(size)
    # A deviation far below a pixel gives the identity, without a division by 0.
    weights = jnp.exp(-0.5 * jnp.square(distance / jnp.maximum(deviation, 1e-3)[:, None, None]))
    return weights / weights.sum(-1, keepdims=True)


def _recolour(matrix: np.ndarray, video: Array) -> Array:
    # Not as a TPU would by default: bfloat16 has steps of a grey level.
    return jnp.einsum("dc,bfhwc->bfhwd", matrix.astype(video.dtype), video, precision=jax.lax.Precision.HIGHEST)


def _to_levels(video: Array) -> Array:
    """The 256 levels of 8 bits."""
    return jnp.clip(jnp.rint((video + 1.0) * 127.5), 0, 255)


def _cosines(blocks: int) -> np.ndarray:
    """`[8 blocks, 8 blocks]`: the orthonormal discrete cosine transform (DCT-II) of each 8 numbers.

    One matrix for a whole row of pixels: such products suit accelerators better than many of 8 numbers, and cost
    nothing beside the network.
    """
    frequency, place = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)
    one = np.cos((2 * place + 1) * frequency * np.pi / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    one[0] /= np.sqrt(2)
    return np.kron(np.eye(blocks), one)


def _quantisation_steps(quality: Int[Array, " batch"]) -> Int[Array, "batch 8 8 3"]:
    """libjpeg's `jpeg_quality_scaling` and `jpeg_add_quant_table`, in whole numbers as there."""
    scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE], axis=-1)
    return jnp.clip((tables * scale[:, None, None, None] + 50) // 100, 1, 255)


def _quantise(coefficients: Array, step: Array) -> Array:
    """The nearest multiples of `step`, halves away from 0: of eighths, as in libjpeg, so that halves are exact."""
    eighths = jnp.rint(8 * coefficients).astype(jnp.int32)
    return jnp.sign(eighths) * ((jnp.abs(eighths) + 4 * step) // (8 * step)) * step
