import numpy as np
import pytest
from PIL import Image

from lumiere_jax.data.video_io import to_float
from lumiere_jax.evaluation.xt_slice import write_xt_slice, xt_slice

VIDEO = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def test_rows_are_frames():
    image = xt_slice(VIDEO, row=2)
    for time in range(5):
        np.testing.assert_array_equal(image[time], VIDEO[time, 2])
    np.testing.assert_array_equal(xt_slice(VIDEO), xt_slice(VIDEO, row=3))
    np.testing.assert_array_equal(xt_slice(to_float(VIDEO), row=-1), xt_slice(VIDEO, row=5))


def test_columns_and_scale():
    image = xt_slice(VIDEO, column=7, scale=3)
    assert image.shape == (15, 6, 3)
    np.testing.assert_array_equal(image[3:6], np.stack([VIDEO[1, :, 7]] * 3))


def test_motion_shows_as_a_slanted_line():
    video = np.full((5, 4, 8, 3), -1.0, np.float32)
    for time in range(5):
        video[time, :, time + 2] = 1.0
    assert np.argmax(xt_slice(video)[..., 0], axis=1).tolist() == [2, 3, 4, 5, 6]


def test_bad_arguments():
    with pytest.raises(ValueError, match="row 6 is outside the image, which has 6"):
        xt_slice(VIDEO, row=6)
    with pytest.raises(ValueError, match="column -9 is outside"):
        xt_slice(VIDEO, column=-9)
    with pytest.raises(ValueError, match="a row or a column"):
        xt_slice(VIDEO, row=0, column=0)
    with pytest.raises(ValueError, match="scale must be"):
        xt_slice(VIDEO, scale=0)


def test_written_as_png(tmp_path):
    write_xt_slice(tmp_path / "slice.png", VIDEO, column=1, scale=2)
    with Image.open(tmp_path / "slice.png") as image:
        np.testing.assert_array_equal(np.asarray(image), xt_slice(VIDEO, column=1, scale=2))
