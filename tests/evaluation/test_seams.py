"""The measure of seams on clips whose seams are known."""

import dataclasses

import numpy as np
import pytest

from lumiere_jax.evaluation.measures import Row, measures_without_networks
from lumiere_jax.evaluation.seams import borders, elsewhere_of, neighbour_mse, seam_ratio


def pairs(mask):
    """Numbers of the later frame of each pair."""
    return (np.flatnonzero(mask) + 1).tolist()


def drifting(frames, step=0.1, jumps=(), jump=0.0, axis=0):
    """A clip whose neighbours along an axis differ by `step`, and where it jumps by `jump`."""
    steps = np.full(frames - 1, step)
    steps[[at - 1 for at in jumps]] = jump
    values = np.concatenate([[0.0], np.cumsum(steps)]).reshape(-1, 1, 1, 1)
    return np.moveaxis(np.broadcast_to(values, (frames, 3, 4, 3)), 0, axis)


def test_borders_are_where_the_mixture_of_windows_changes():
    assert pairs(borders(24, 8, 0)) == [8, 16]
    assert pairs(borders(20, 8, 2)) == [6, 8, 12, 14]
    assert pairs(borders(20, 8, 2, "latest")) == [6, 12]
    assert pairs(borders(20, 8, 2, "feathered")) == [6, 7, 8, 12, 13, 14]
    # The last window is moved back: its overlap is longer.
    assert pairs(borders(12, 8, 2)) == [4, 8]
    assert pairs(borders(12, 8, 0)) == [4, 8]
    assert not borders(8, 8, 2).any()
    assert not borders(5, 8, 2).any()
    # The paper's: 13 windows of 80 frames, two pairs for each neighbour.
    assert borders(80, 8, 2).sum() == 24


@pytest.mark.parametrize(("axis", "name"), [(0, "frames"), (1, "height"), (2, "width")])
def test_neighbours_along_each_axis(axis, name):
    video = drifting(10, jumps=(4,), jump=0.5, axis=axis)
    expected = np.full(9, 0.01)
    expected[3] = 0.25
    np.testing.assert_allclose(neighbour_mse(video, name), expected)
    for other in {"frames", "height", "width"} - {name}:
        assert neighbour_mse(video, other).max() < 1e-12


def test_ratio_of_known_seams():
    border = borders(24, 8, 0)
    assert seam_ratio(neighbour_mse(drifting(24)), border) == pytest.approx(1.0)
    assert seam_ratio(neighbour_mse(drifting(24, jumps=(8, 16), jump=0.2)), border) == pytest.approx(4.0)
    # A jump within a window is motion: it counts against the borders.
    assert seam_ratio(neighbour_mse(drifting(24, jumps=(4,), jump=0.2)), border) == pytest.approx(21 / 24)
    # Frames that are held at borders are no seam either.
    assert seam_ratio(neighbour_mse(drifting(24, jumps=(8, 16), jump=0.0)), border) == 0.0


def test_pairs_that_are_compared_with():
    disjoint, overlapping = borders(32, 8, 0), borders(32, 8, 2)
    elsewhere = elsewhere_of([disjoint, overlapping])
    assert pairs(elsewhere) == [n for n in range(1, 32) if n not in {6, 8, 12, 14, 16, 18, 20, 24, 26}]
    # Jumps at the other way's borders leave this one's ratio alone.
    mse = neighbour_mse(drifting(32, jumps=(6, 12, 14), jump=0.5))
    assert seam_ratio(mse, disjoint, elsewhere) == pytest.approx(1.0)
    assert seam_ratio(mse, disjoint) < 1.0


def test_errors():
    mse, border = neighbour_mse(drifting(24)), borders(24, 8, 0)
    with pytest.raises(ValueError, match="axis='time': use one of frames"):
        neighbour_mse(drifting(3), "time")
    with pytest.raises(ValueError, match="no neighbours along frames"):
        neighbour_mse(drifting(2)[:1])
    with pytest.raises(ValueError, match="0 pairs at borders"):
        seam_ratio(mse, borders(24, 24, 0))
    with pytest.raises(ValueError, match="2 of them both"):
        seam_ratio(mse, border, border)
    with pytest.raises(ValueError, match="stands still"):
        seam_ratio(neighbour_mse(np.zeros((24, 2, 2, 3))), border)


def test_an_evaluation_tells_the_seams_of_a_row_of_clips():
    border = borders(20, 8, 2)
    # Ratios 4 and 1, and 4 times as much motion in the second: together (4 + 4) / (1 + 4).
    clips = [drifting(20, 0.01, jumps=pairs(border), jump=0.02), drifting(20, 0.02)]
    row = Row("clips", [[lambda clip=clip: clip for clip in clips]], 8.0, border)
    found = measures_without_networks(row, None)["seams"]["border ratio"]
    assert found["mean"] == pytest.approx(8 / 5)
    assert (found["low"], found["high"], found["n"]) == (pytest.approx(1), pytest.approx(4), 2)
    still = Row("still", [[lambda: np.zeros((20, 16, 16, 3))] * 2], 8.0, border)
    assert np.isnan(measures_without_networks(still, None)["seams"]["border ratio"]["mean"])
    assert "seams" not in measures_without_networks(dataclasses.replace(row, borders=None), None)
