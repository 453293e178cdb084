import collections
import itertools

import numpy as np
import pytest

from configs import text_to_image
from lumiere_jax.data import video_io
from lumiere_jax.data.input_pipeline import make_batches
from lumiere_jax.data.mixture import Mixture, parse_mixture
from lumiere_jax.data.open_dataset import captions_of, open_dataset


def records(name, count):
    clip = video_io.encode_mp4(np.zeros((2, 8, 8, 3), np.uint8), 4, lossless=True)
    return [{"clip": clip, "caption": f"{name} {number}", "fps": 4.0} for number in range(count)]


def captions(mixture, batches, **settings):
    settings = {"batch_size": 10, "frames": 1, "fps": 4, "size": 8, "seed": 0} | settings
    taken = itertools.islice(make_batches(mixture, **settings), batches)
    return [caption for batch in taken for caption in batch["caption"]]


def test_each_gives_its_share():
    mixture = Mixture((records("a", 3), records("b", 5), records("c", 2)), (0.6, 0.3, 0.1))
    counts = collections.Counter(caption[0] for caption in captions(mixture, 20))
    assert {name: count / 200 for name, count in counts.items()} == pytest.approx(
        {"a": 0.6, "b": 0.3, "c": 0.1}, abs=0.01
    )


def test_each_has_its_own_epochs_and_orders():
    drawn = captions(Mixture((records("a", 10), records("b", 5)), (1, 1)), 8)
    for name, size in (("a", 10), ("b", 5)):
        own = [int(caption.split()[1]) for caption in drawn if caption[0] == name]
        epochs = np.reshape(own[: len(own) // size * size], (-1, size))
        assert len(epochs) >= 4
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_equal_data_sets_are_not_drawn_in_step():
    drawn = captions(Mixture((records("a", 50), records("b", 50)), (1, 1)), 10)
    first, second = ([caption[2:] for caption in drawn if caption[0] == name] for name in "ab")
    assert sum(one == other for one, other in zip(first, second, strict=True)) < 25


def test_a_mixture_that_is_none():
    with pytest.raises(ValueError, match="one positive weight per data set"):
        Mixture((records("a", 1),), (1, 2))
    with pytest.raises(ValueError, match="one positive weight per data set"):
        Mixture((records("a", 1),), (0,))
    with pytest.raises(ValueError, match="the data set is empty"):
        captions(Mixture((records("a", 1), []), (1, 1)), 1)
    with pytest.raises(video_io.VideoError, match="too short"):  # in the second data set, before the first batch
        make_batches(
            Mixture(([records("a", 1)[0] | {"fps": 0.1}], records("b", 1)), (1, 1)),
            batch_size=1, frames=2, fps=1, size=8, seed=0,
        )  # fmt: skip


def test_the_text_form():
    assert parse_mixture("video_folder:/a/b=c=0.7, tfds:ucf101=0.3,video_folder:gs://x/y=1e-2") == [
        ("video_folder", "/a/b=c", 0.7),
        ("tfds", "ucf101", 0.3),
        ("video_folder", "gs://x/y", 0.01),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not NAME:PATH=WEIGHT"),
        ("video_folder:clips", "'video_folder:clips' is not NAME:PATH=WEIGHT"),
        ("clips=0.3", "is not NAME:PATH=WEIGHT"),
        ("tfds:ucf101=1,", "'' is not NAME:PATH=WEIGHT"),
        ("tfds:ucf101=much", "the weight of tfds:ucf101 is 'much', not a number"),
        ("tfds:ucf101=0", "the weight of tfds:ucf101 is 0; it must be positive"),
        ("tfds:ucf101=-1", "must be positive"),
        ("tfds:ucf101=nan", "must be positive"),
        ("tfds:ucf101=1,tfds:ucf101=2", "names a data set twice"),
    ],
)
def test_other_text_forms(text, message):
    with pytest.raises(ValueError, match=message):
        parse_mixture(text)


def test_a_config_names_it(tmp_path):
    config = text_to_image.get_config("test").dataset
    config.update({"name": "mixture", "path": "moving_shapes:tiny=0.75", "data_dir": str(tmp_path)})
    train, validation = open_dataset(config)
    assert (train.weights, validation.weights) == ((0.75,), (0.75,))
    assert (len(train.sources[0]), len(validation.sources[0])) == (16, 8)
    assert len(captions_of(train)) == 16
    config.path = "moving_shapes:tiny=1,imagenet:x=1"
    with pytest.raises(
        ValueError, match=r"imagenet.: use moving_shapes, prepared, video_folder, style_images, tfds or mix"
    ):
        open_dataset(config)
