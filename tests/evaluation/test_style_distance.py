"""The distance of patches: where it is known, and which of two pictures is nearer to a style."""

import numpy as np
import pytest

from lumiere_jax.evaluation.style_distance import style_distance


def strokes(seed, horizontal=False):
    """Lines of random brightness, down the image or across it."""
    lines = np.random.default_rng(seed).uniform(-1, 1, (1, 1, 48, 1))
    image = np.broadcast_to(lines, (1, 48, 48, 3))
    return image.swapaxes(1, 2) if horizontal else image


def test_the_same_patches_are_at_no_distance():
    image = strokes(0)
    assert style_distance(image, image) == 0
    assert style_distance(image[:, ::-1], image) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("difference", [0.1, 0.5])
def test_pixels_that_all_differ_by_as_much(difference):
    """A constant is projected on a random direction of unit length: its square is 1 in the mean."""
    image = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32, 32, 3))
    found = style_distance(image + difference, image, directions=4096)
    assert found == pytest.approx(difference, rel=0.05)


def test_a_normal_distribution_of_another_width():
    """The Wasserstein distance of N(0, s) and N(0, t) is |s - t|, along every direction."""
    draw = np.random.default_rng(0)
    narrow, wide = (scale * draw.standard_normal((4, 128, 128, 3)) for scale in (0.2, 0.5))
    assert style_distance(wide, narrow) == pytest.approx(0.3, rel=0.03)


def test_strokes_of_the_same_direction_are_nearer():
    """Though the colours of all pixels are distributed alike."""
    style, like, unlike = strokes(0), strokes(1), strokes(1, horizontal=True)
    assert style_distance(like, style) < 0.6 * style_distance(unlike, style)


def test_pictures_that_are_too_small():
    with pytest.raises(ValueError, match=r"images of \(4, 48\) pixels are smaller than a patch of 5"):
        style_distance(strokes(0), strokes(0)[:, :4])
