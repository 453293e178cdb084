"""What of a clip is given: the conditions of each application, at any resolution."""

import numpy as np
import pytest

from lumiere_jax.diffusion import condition

draw = np.random.default_rng(0)


def clip(frames=3, height=4, width=6):
    return draw.uniform(-1, 1, (frames, height, width, 3)).astype(np.float32)


def square(height=4, width=6):
    """A region of 2x3 pixels."""
    region = np.zeros((height, width), np.float32)
    region[1:3, 2:5] = 1
    return region


def test_image_to_video_gives_the_first_frame_alone():
    image = clip(1)[0]
    given = condition.image_to_video(image, 5)
    np.testing.assert_array_equal(given.mask[..., 0], (np.arange(5) == 0)[:, None, None] * np.ones((4, 6)))
    np.testing.assert_array_equal(given.video[0], image)
    assert not given.video[1:].any()


def test_channels_are_the_masked_clip_and_the_mask():
    video, hole = clip(), square()
    channels = np.asarray(condition.inpainting(video, hole).channels())
    assert channels.shape == (3, 4, 6, condition.CHANNELS)
    np.testing.assert_array_equal(channels[..., :3], np.where(hole[..., None] > 0, 0, video))
    np.testing.assert_array_equal(channels[..., 3], np.broadcast_to(1 - hole, (3, 4, 6)))


def test_keyframes_and_extensions():
    first, last = clip(2)
    given = condition.keyframes({0: first, 6: last}, 7)
    assert given.mask[:, 0, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 1]
    np.testing.assert_array_equal(given.video[6], last)
    video = clip(3)
    for start in (0, 2, 4):
        given = condition.extension(video, 7, first=start)
        assert np.flatnonzero(given.mask[:, 0, 0, 0]).tolist() == [start, start + 1, start + 2]
        np.testing.assert_array_equal(given.video[start : start + 3], video)


def test_a_hole_that_moves():
    video, holes = clip(), np.stack([np.roll(square(), t, axis=1) for t in range(3)])
    np.testing.assert_array_equal(condition.inpainting(video, holes).mask[..., 0], 1 - holes)


def test_outpainting_puts_the_clip_into_a_larger_one():
    video = clip()
    given = condition.outpainting(video, top=1, left=2, right=3)
    assert given.video.shape == (3, 5, 11, 3)
    np.testing.assert_array_equal(given.video[:, 1:, 2:8], video)
    assert given.mask.sum() == 3 * 4 * 6
    assert given.mask[:, 1:, 2:8].all()


def test_a_cinemagraph_moves_in_its_region_after_the_first_frame():
    image = clip(1)[0]
    given = condition.cinemagraph(image, square(), 4)
    assert given.mask[0].all()
    for frame in range(1, 4):
        np.testing.assert_array_equal(given.mask[frame, ..., 0], 1 - square())
        np.testing.assert_array_equal(given.video[frame], image)


def test_paste_is_exact():
    video, generated = clip(), clip()
    pasted = condition.inpainting(video, square()).paste(generated)
    hole = np.broadcast_to(square()[..., None] > 0, video.shape)
    np.testing.assert_array_equal(pasted[hole], generated[hole])
    np.testing.assert_array_equal(pasted[~hole], video[~hole])


@pytest.mark.parametrize(("height", "width"), [(4, 6), (2, 3), (3, 4), (5, 7), (8, 12), (1, 1), (32, 48)])
def test_resized_makes_nothing_up(height, width):
    """Against the pixels that each new one covers, one by one, in fractions."""
    video = clip(1, 8, 12)
    hole = np.zeros((8, 12), np.float32)
    hole[3:4, 7:8] = 1
    given = condition.inpainting(video, hole)
    if (height, width) == (1, 1):
        with pytest.raises(ValueError, match="at 1x1 no pixel lies inside of what is given"):
            condition.resized(given, height, width)
        return
    small = condition.resized(given, height, width)
    for i in range(height):
        for j in range(width):
            top, bottom, left, right = i * 8 / height, (i + 1) * 8 / height, j * 12 / width, (j + 1) * 12 / width
            total, known = np.zeros(3), True
            for y in range(int(top), int(np.ceil(bottom - 1e-9))):
                for x in range(int(left), int(np.ceil(right - 1e-9))):
                    share = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    total += share * given.video[0, y, x]
                    known &= bool(given.mask[0, y, x, 0])
            assert small.mask[0, i, j, 0] == known
            expected = total / ((bottom - top) * (right - left)) if known else np.zeros(3)
            np.testing.assert_allclose(small.video[0, i, j], expected, atol=1e-6)


def test_what_cannot_be_a_condition():
    video, image = clip(), clip(1)[0]
    for make, message in (
        (lambda: condition.keyframes({}, 3), "at least one image"),
        (lambda: condition.keyframes({3: image}, 3), "keyframe 3: the clip has frames 0 to 2"),
        (lambda: condition.keyframes({0: image, 1: image[:2]}, 3), "keyframe 1 is 6x2, the others are 6x4"),
        (lambda: condition.image_to_video(image, 1), "nothing is left to make"),
        (lambda: condition.extension(video, 4, first=2), "first=2: 3 given frames from there on do not fit into 4"),
        (lambda: condition.inpainting(video, square(5)), "the mask is 5 x 6, but the clip 3 x 4 x 6"),
        (lambda: condition.inpainting(video, 0 * square()), "all of the clip is given.*black"),
        (lambda: condition.inpainting(video, 1 + square()), "nothing of the clip is given.*white"),
        (lambda: condition.outpainting(video, top=-1, left=2), "top=-1 must not be negative"),
        (lambda: condition.outpainting(video), "all of the clip is given"),
        (lambda: condition.cinemagraph(image, 0 * square(), 3), "all of the clip is given"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
