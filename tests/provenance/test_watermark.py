"""The watermark: not seen, found again after what happens to clips, and not found where it is not."""

import numpy as np
import pytest
from marked_clips import textured_clip
from PIL import Image

from lumiere_jax.data.video_io import VideoError, decode_video, encode_mp4, to_uint8, write_gif, write_png
from lumiere_jax.provenance.watermark import Watermark, pattern_of
from lumiere_jax.provenance.watermark_detection import FALSE_POSITIVES, correlations, detect, detect_in_frames, whitened

CLIP = textured_clip()


def marked(clip, key="a key"):
    return np.stack([Watermark(key).marked(image) for image in clip])


def resized(clip, height, width):
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height))) for image in clip])


def found(clip, key="a key"):
    return detect_in_frames(clip, key)


@pytest.mark.parametrize("clip", [CLIP, np.full((2, 64, 64, 3), 90, np.uint8)], ids=["textured", "even"])
def test_change_is_small_and_of_the_luminance(clip):
    change = marked(clip).astype(float) - clip
    assert 10 * np.log10(255**2 / np.mean(change**2)) > 40
    assert np.abs(change).max() < 20
    assert abs(change.mean()) < 0.05
    middle = change[(marked(clip).min(-1) > 0) & (marked(clip).max(-1) < 255)]  # where nothing was cut off
    np.testing.assert_array_equal(middle, middle[:, :1] * np.ones(3))


def test_is_weaker_where_nothing_hides_it():
    half_even = CLIP[0].copy()
    half_even[:, :48] = 128
    change = (Watermark("a key").marked(half_even).astype(float) - half_even)[..., 0]
    even, textured = change[:, :40].std(), change[:, 60:].std()
    assert 0.8 < even < 1.5
    assert textured > 1.5 * even


def test_is_the_same_in_all_frames():
    """So that it adds up over them, in whatever order and however many come."""
    first, second, third = (marked(CLIP).astype(float) - CLIP)[:3, ..., 0]
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.8
    assert np.corrcoef(first.ravel(), third.ravel())[0, 1] > 0.8
    np.testing.assert_array_equal(marked(CLIP[2:3]), marked(CLIP)[2:3])


def test_pattern_stays_what_it_was():
    """Clips of earlier versions would not be found any more."""
    pattern = pattern_of("lumiere-jax", 64, 64)
    np.testing.assert_allclose(pattern[::16, 5], [0.101, -0.215, 0.472, -0.814], atol=2e-3)
    assert np.sqrt(np.mean(pattern**2)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda clip: clip, 1),
        (lambda clip: decode_video(encode_mp4(clip, 8, crf=23))[0], 1),
        (lambda clip: resized(clip, 48, 48), 1),
        (lambda clip: resized(clip, 200, 200), 1),
        (lambda clip: clip[:, 3:75, 20:92], 0.75),
        (lambda clip: resized(clip[:, 10:82, :72], 96, 96), 0.75),
        (lambda clip: clip[:, :, 20:80], 0.625),
        (lambda clip: clip[5:6], 1),
        (lambda clip: clip[::-2], 1),
    ],
    ids=["as_it_is", "mp4", "smaller", "larger", "crop", "crop_and_larger", "upright_crop", "one_frame", "backwards"],
)
def test_is_found_after(change, share):
    result = found(change(marked(CLIP)))
    assert result.found
    assert result.share == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("size", [(64, 200), (200, 64), (65, 99)])
def test_is_found_in_frames_of_any_shape(size):
    """Also where they are longer than a period of the pattern."""
    assert found(marked(textured_clip(4, *size))).found


def test_is_found_in_files(tmp_path):
    write_gif(tmp_path / "a.gif", marked(CLIP), 8)
    write_png(tmp_path / "a.png", marked(CLIP)[0])
    assert detect(tmp_path / "a.gif", "a key").frames == 8
    for name in ("a.gif", "a.png"):
        assert detect(tmp_path / name, "a key").found
        assert not detect(tmp_path / name).found


def test_is_not_found_without_the_mark_or_with_another_key():
    assert not found(CLIP).found
    for number in range(4):
        result = found(marked(CLIP), f"key {number}")
        assert not result.found
        assert result.log10_p > -3


def test_correlations_are_standard_normal_without_the_mark():
    """What p-values rest on: for each key, of marked clips too, and of clips with little to be seen."""
    for clip in (CLIP, marked(CLIP), CLIP // 16, textured_clip(2, 64, 150)):
        white = np.mean([whitened(image) for image in clip], axis=0)
        for share in (1.0, 0.6):
            values = np.stack([correlations(white, share, f"{number}") for number in range(6)])
            assert abs(values.mean()) < 0.02
            assert values.std() == pytest.approx(1, abs=0.05)
            assert values.max() < 6.5


def test_threshold_is_what_p_values_say():
    scores = [found(CLIP, f"{number}") for number in range(10)]
    assert all(result.found == (result.log10_p < np.log10(FALSE_POSITIVES)) for result in scores)
    assert sum(result.log10_p < -1 for result in scores) <= 4  # at most 1 is expected
    assert max(result.score for result in scores) > 2


@pytest.mark.parametrize("size", [(1, 1), (3, 16), (16, 16)])
def test_frames_that_are_too_small_are_hardly_changed(size):
    clip = textured_clip(2, *size)
    assert np.abs(marked(clip).astype(int) - clip).max() < 20
    assert not found(marked(clip)[:, : size[0], : size[1]], "another key").found


@pytest.mark.parametrize("level", [0, 128, 255])
def test_nothing_is_found_in_nothing(level):
    result = found(np.full((3, 40, 40, 3), level, np.uint8))
    assert (result.score, result.log10_p, result.found) == (0, 0, False)


def test_errors():
    with pytest.raises(VideoError, match="clip 3: the frame size changes"):
        detect_in_frames([CLIP[0], CLIP[0, :, :50]], name="clip 3")
    with pytest.raises(VideoError, match="no frames"):
        detect_in_frames([])
    with pytest.raises(ValueError, match="key is empty"):
        Watermark("")


def test_rendered_even_clips_are_found():
    square = np.full((4, 64, 64, 3), -0.6, np.float32)
    square[:, 20:40, 20:40] = (0.8, -0.5, 0.1)
    assert found(decode_video(encode_mp4(marked(to_uint8(square)), 8))[0]).found
