"""Images as a data set."""

import numpy as np
import pytest
from PIL import Image

from configs import style
from lumiere_jax.data.input_pipeline import make_batches
from lumiere_jax.data.open_dataset import captions_of, fingerprint, open_dataset
from lumiere_jax.data.style_images import open_style_images


@pytest.fixture
def folder(tmp_path):
    """Two images of one colour each, one of them half transparent, and a text."""
    Image.new("RGB", (40, 32), (255, 0, 0)).save(tmp_path / "b.png")
    Image.new("RGBA", (32, 48), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a white page\n")
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def test_images_become_batches_of_single_frames(folder):
    records = open_style_images(folder, default_caption="a picture")
    batches = make_batches(records, batch_size=4, frames=1, fps=8, size=16, crop_from=24, seed=0)
    batch = next(batches)
    assert batch["video"].shape == (4, 1, 16, 16, 3)
    colours = dict(zip(batch["caption"], batch["video"], strict=True))
    np.testing.assert_array_equal(colours["a white page"], np.ones((1, 16, 16, 3)))
    np.testing.assert_array_equal(colours["a picture"][0, 3, 5], [1, -1, -1])


def test_captions_and_what_a_run_knows_of_the_images(folder):
    (folder / "captions.csv").write_text("file,caption\nb.png,a red page\n")
    fields = style.get_config("test").dataset
    fields.path, fields.captions = str(folder), str(folder / "captions.csv")
    images, validation = open_dataset(fields)
    assert captions_of(images) == captions_of(validation) == ["a white page", "a red page"]
    before = fingerprint(images)
    Image.new("RGB", (40, 32), (254, 0, 0)).save(folder / "b.png")
    assert fingerprint(open_dataset(fields)[0]) != before
    fields.path = str(folder / "b.png")
    assert captions_of(open_dataset(fields)[0]) == ["a red page"]


def test_what_cannot_be_used(folder, tmp_path):
    with pytest.raises(ValueError, match=r"b\.png: no caption"):
        open_style_images(folder)
    with pytest.raises(FileNotFoundError, match="there is no such image or folder"):
        open_style_images(folder / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        open_style_images(tmp_path / "empty")
    (folder / "c.png").write_text("no image")
    with pytest.raises(ValueError, match=r"c\.png is no image that can be read"):
        open_style_images(folder, default_caption="a picture")
    fields = style.get_config("test").dataset
    with pytest.raises(ValueError, match=r"dataset\.path is empty: give an image or a folder"):
        open_dataset(fields)
