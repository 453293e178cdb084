"""Files that people give: odd images, masks and videos, and what is said of those that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from lumiere_jax.data import task_inputs
from lumiere_jax.data.video_io import VideoError, write_mp4


def picture(height=8, width=12):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // (height - 1), x * 255 // (width - 1), 0 * x + 90], axis=-1).astype(np.uint8)


def saved(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(path, **options)
    return path


def test_images_of_all_kinds_become_rgb(tmp_path):
    expected = picture()
    np.testing.assert_array_equal(task_inputs.read_image(saved(tmp_path / "a.png", expected)), expected)
    grey = saved(tmp_path / "grey.png", expected[..., 0])
    np.testing.assert_array_equal(task_inputs.read_image(grey), np.repeat(expected[..., :1], 3, -1))
    deep = saved(tmp_path / "deep.png", expected[..., 1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(task_inputs.read_image(deep), np.repeat(expected[..., 1:2], 3, -1))
    Image.fromarray(expected).convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_allclose(task_inputs.read_image(tmp_path / "cmyk.tif"), expected, atol=1)
    Image.fromarray(expected).quantize(64).save(tmp_path / "palette.png")
    assert task_inputs.read_image(tmp_path / "palette.png").shape == expected.shape


def test_images_are_upright(tmp_path):
    tags = Image.Exif()
    tags[274] = 6  # to be turned clockwise by a quarter
    Image.fromarray(picture()).save(tmp_path / "turned.png", exif=tags)
    np.testing.assert_array_equal(task_inputs.read_image(tmp_path / "turned.png"), np.rot90(picture(), -1))
    assert task_inputs.frame_size(tmp_path / "turned.png") == (12, 8)


def test_transparent_is_white_in_an_image_and_new_in_a_mask(tmp_path):
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[:, :5] = 0
    path = saved(tmp_path / "alpha.png", np.dstack([picture(), alpha]))
    image = task_inputs.read_image(path)
    assert (image[:, :5] == 255).all()
    np.testing.assert_array_equal(image[:, 5:], picture()[:, 5:])
    np.testing.assert_array_equal(task_inputs.read_mask(path), (alpha == 0).astype(np.float32))


def test_masks_are_white_where_pixels_are_new(tmp_path):
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert task_inputs.read_mask(saved(tmp_path / "mask.png", grey)).tolist() == [[0, 0, 1, 1]]


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png is no image that can be read"):
        task_inputs.read_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        task_inputs.read_image(tmp_path / "gone.png")
    frames = [Image.fromarray(np.roll(picture(), t, 1)) for t in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"moving\.gif is animated: give one image, or a video file"):
        task_inputs.read_image(tmp_path / "moving.gif")
    Image.fromarray(np.ones((4, 4), np.float32), "F").save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif holds floating point numbers"):
        task_inputs.read_image(tmp_path / "float.tif")


@pytest.fixture
def video(tmp_path):
    """Two seconds at 12 frames per second; every frame has another grey."""
    grey = np.arange(24, dtype=np.uint8) * 8 + 20
    write_mp4(tmp_path / "video.mp4", np.broadcast_to(grey[:, None, None, None], (24, 16, 32, 3)).copy(), 12, crf=1)
    return tmp_path / "video.mp4"


def test_videos_are_taken_from_their_start_at_the_rate_of_the_model(video):
    for fps, frames, expected in ((12, 3, [0, 1, 2]), (4, 6, [0, 3, 6, 9, 12, 15]), (24, 4, [0, 0, 1, 1])):
        found = task_inputs.video_for(video, frames=frames, fps=fps, size=(4, 8))
        assert found.shape == (frames, 4, 8, 3)
        np.testing.assert_allclose((found.mean((1, 2, 3)) + 1) * 127.5, np.array(expected) * 8 + 20, atol=3)


def test_videos_that_are_too_short_or_none(video, tmp_path):
    with pytest.raises(ValueError, match=r"video\.mp4 gives 8 frames at 4 per second, and 9 .* or --frames=8"):
        task_inputs.video_for(video, frames=9, fps=4, size=(4, 8))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded"):
        task_inputs.video_for(tmp_path / "text.mp4", frames=1, fps=4, size=(4, 8))


def test_masks_belong_to_something_of_their_size(video, tmp_path):
    mask = saved(tmp_path / "mask.png", np.uint8(255) * (np.arange(32) == 9)[None].repeat(16, 0))
    found = task_inputs.mask_for(mask, frames=3, fps=4, size=(4, 8), of=(16, 32))
    assert found.tolist() == [[0, 0, 1, 0, 0, 0, 0, 0]] * 4  # whatever covers a part of it
    with pytest.raises(ValueError, match=r"the mask .*mask\.png is 32x16, but what it belongs to 33x16"):
        task_inputs.mask_for(mask, frames=3, fps=4, size=(4, 8), of=(16, 33))
    moving = task_inputs.mask_for(video, frames=8, fps=4, size=(4, 8), of=(16, 32))
    assert moving.shape == (8, 4, 8)
    assert moving[:, 0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]  # grey 20, 44, 68, ... 188
