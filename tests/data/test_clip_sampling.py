import numpy as np
import pytest

from lumiere_jax.data import clip_sampling
from lumiere_jax.data.video_io import VideoError


@pytest.mark.parametrize("source_fps", [10, 24, 25, 29.97, 60])
def test_frames_are_the_nearest_in_time(source_fps):
    stamps = np.arange(int(8 * source_fps)) / source_fps
    times = clip_sampling.sample_times(80, 16, start=0.7)
    found = clip_sampling.frame_indices(stamps, times)
    distances = np.abs(stamps[None] - times[:, None])
    np.testing.assert_allclose(distances[np.arange(80), found], distances.min(axis=1), atol=1e-6)
    # The clip lasts as long in the source: it is never stretched.
    assert stamps[found[-1]] - stamps[found[0]] == pytest.approx(79 / 16, abs=1.001 / source_fps)


def test_uneven_stamps_and_ties():
    stamps = np.array([0.0, 0.1, 0.5, 0.6, 1.0])
    # 0.3 and 0.8 lie in the middle: the earlier frame.
    found = clip_sampling.frame_indices(stamps, np.array([0.0, 0.3, 0.31, 0.8, 0.81]))
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 4])


def test_stamps_rounded_to_milliseconds_count_as_exact():
    stamps = np.round(np.arange(60) / 30, 3)  # as in mkv
    np.testing.assert_array_equal(
        clip_sampling.frame_indices(stamps, clip_sampling.sample_times(30, 15)), np.arange(0, 60, 2)
    )


def test_same_rate_takes_every_frame_and_no_more():
    stamps = np.arange(16) / 8
    np.testing.assert_array_equal(clip_sampling.frame_indices(stamps, clip_sampling.sample_times(16, 8)), np.arange(16))
    with pytest.raises(VideoError, match=r"a\.mp4: too short, its last frame is at 1\.875 s .* 2\.000 s"):
        clip_sampling.frame_indices(stamps, clip_sampling.sample_times(17, 8), "a.mp4")
    with pytest.raises(VideoError, match="too short"):
        clip_sampling.frame_indices(np.zeros(0), clip_sampling.sample_times(1, 8))


def test_reads_one_frame_ahead_only():
    read = []

    def frames():
        for index in range(100):
            read.append(index)
            yield index / 10, index

    assert list(clip_sampling.sample_by_time(frames(), [0.0, 0.2])) == [0, 2]
    assert read[-1] <= 3


def test_bad_times():
    with pytest.raises(ValueError, match="frames >= 1"):
        clip_sampling.sample_times(0, 16)
    with pytest.raises(ValueError, match="fps > 0"):
        clip_sampling.sample_times(4, 0)


def test_whole_factor_is_the_mean_of_blocks():
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    expected = frames.reshape(3, 8, 3, 8, 3, 3).astype(np.float64).mean((2, 4))
    np.testing.assert_allclose(clip_sampling.center_crop_resize(frames, 8), expected, atol=0.56)


def triangle_weights(size, new_size, factor, offset):
    """Rows of the antialiased linear filter: a triangle two new pixels wide, over the source's centers."""
    centers = offset + (np.arange(new_size)[:, None] + 0.5) * factor
    weights = np.maximum(1 - np.abs(np.arange(size)[None] + 0.5 - centers) / factor, 0)
    return weights / weights.sum(1, keepdims=True)


def test_broken_factor_does_not_alias():
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 15, 3), dtype=np.uint8)
    # The part of the wanted shape is 12 x 12 from column 1 on.
    rows, columns = triangle_weights(12, 8, 1.5, 0), triangle_weights(15, 8, 1.5, 1)
    expected = np.einsum("ih,thwc,jw->tijc", rows, frames.astype(np.float64), columns)
    np.testing.assert_allclose(clip_sampling.center_crop_resize(frames, 8), expected, atol=1.01)


@pytest.mark.parametrize("shape", [(20, 41), (41, 20)])
def test_crop_is_central_and_keeps_the_aspect(shape):
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    top, left = (shape[0] - 20) // 2, (shape[1] - 20) // 2
    np.testing.assert_array_equal(
        clip_sampling.center_crop_resize(frames, 20), frames[:, top : top + 20, left : left + 20]
    )
    assert clip_sampling.center_crop_resize(frames, (10, 6)).shape == (2, 10, 6, 3)


def test_circle_stays_round():
    y, x = np.mgrid[:90, :160]
    circle = ((y - 45) ** 2 + (x - 80) ** 2 < 30**2)[None, ..., None] * np.full(3, 255, np.uint8)
    small = clip_sampling.center_crop_resize(circle.astype(np.uint8), (30, 40))[0, ..., 0] > 127
    assert np.ptp(np.flatnonzero(small.any(0))) == np.ptp(np.flatnonzero(small.any(1))) == 19


def test_random_crop_moves_along_the_long_side_alike_in_all_frames():
    frames = np.tile(np.arange(100, dtype=np.uint8)[None, None, :, None], (2, 20, 1, 3))
    lefts = set()
    for seed in range(20):
        crop = clip_sampling.random_crop_resize(frames, 20, np.random.default_rng(seed))
        left = int(crop[0, 0, 0, 0])
        np.testing.assert_array_equal(crop, frames[:, :, left : left + 20])
        lefts.add(left)
    assert min(lefts) < 15
    assert max(lefts) > 65


def test_nothing_is_scaled_up():
    frames = np.zeros((1, 30, 50, 3), np.uint8)
    with pytest.raises(VideoError, match=r"b\.mp4: frames are 30x50, smaller than the 32x32"):
        clip_sampling.center_crop_resize(frames, 32, "b.mp4")
    with pytest.raises(ValueError, match="size must be"):
        clip_sampling.center_crop_resize(frames, 0)
