"""Images and masks at another size, larger or smaller: each pixel is the mean of what it covers."""

import numpy as np
from jaxtyping import Float

Region = Float[np.ndarray, "..."]  # [height, width], or [frames, height, width]; above 0 inside


def resized_image(
    image: Float[np.ndarray, "*batch height width 3"], height: int, width: int
) -> Float[np.ndarray, "*batch new_height new_width 3"]:
    """Images of which each pixel is the mean of what it covers, smaller or larger."""
    rows, columns = _coverage(image.shape[-3], height), _coverage(image.shape[-2], width)
    return np.einsum("hH,...HWc,wW->...hwc", rows, image, columns, optimize=True).astype(np.float32)


def resized_region(region: Region, height: int, width: int) -> Region:
    """A region, 0 or 1, at another size: each pixel is 1 that covers any part of it."""
    rows, columns = (_coverage(*sizes) > 0 for sizes in zip(region.shape[-2:], (height, width), strict=True))
    covered = np.einsum(
        "hH,...HW,wW->...hw", *(part.astype(np.float32) for part in (rows, region > 0, columns)), optimize=True
    )
    return (covered > 0).astype(np.float32)


def proportional_width(size: tuple[int, int], height: int) -> int:
    """The width that goes with a height, for something of `size` (height, width)."""
    return max(1, round(height * size[1] / size[0]))


def _coverage(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The share of each old pixel in each new one, along one side."""
    edges = np.arange(new + 1) * (old / new)
    starts, ends = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(1, old + 1))
    overlap = np.clip(ends - starts, 0.0, None)
    overlap[overlap < 1e-9 * old] = 0.0  # edges that fall together but for rounding
    return overlap / overlap.sum(1, keepdims=True)
