import hashlib
import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from lumiere_jax.data import video_io
from lumiere_jax.data.clip_sampling import center_crop_resize
from lumiere_jax.data.input_pipeline import is_image_step, make_batches, prefetch
from lumiere_jax.data.mixture import Mixture

STORED_FRAMES, STORED_FPS = 12, 8


def stored_clip(number):
    """Frames whose values tell record and time: red is the record, green the time; blue is a pattern."""
    clip = np.zeros((STORED_FRAMES, 16, 16, 3), np.uint8)
    clip[..., 0] = 10 * number
    clip[..., 1] = 20 * np.arange(STORED_FRAMES)[:, None, None]
    clip[..., 2] = np.random.default_rng(number).integers(0, 256, clip.shape[:3])
    return clip


@pytest.fixture(scope="module")
def source():
    """Ten records."""
    return [
        {
            "clip": video_io.encode_mp4(stored_clip(number), STORED_FPS, lossless=True),
            "caption": f"clip {number}".encode(),
            "fps": float(STORED_FPS),
        }
        for number in range(10)
    ]


SETTINGS = {"batch_size": 4, "frames": 4, "fps": 4, "size": 16, "seed": 3}


def take(count, source, **settings):
    return list(itertools.islice(make_batches(source, **(SETTINGS | settings)), count))


def digest(batch):
    return hashlib.sha256(batch["video"].tobytes() + repr(batch["caption"]).encode()).hexdigest()


def all_captions(batches):
    return [caption for batch in batches for caption in batch["caption"]]


def records_and_times(batch):
    """Which record each example is of, and which stored frames it shows."""
    values = video_io.to_uint8(batch["video"])
    return values[:, 0, 0, 0, 0] // 10, values[:, :, 0, 0, 1] // 20


def test_clips_are_sampled_by_time_from_random_starts(source):
    starts = set()
    for batch in take(10, source):
        assert batch["video"].shape == (4, 4, 16, 16, 3)
        assert batch["video"].dtype == np.float32
        numbers, times = records_and_times(batch)
        for row, number in enumerate(numbers):
            assert batch["caption"][row] == f"clip {number}"
            np.testing.assert_array_equal(np.diff(times[row]), 2)  # stored at 8 fps, wanted at 4
            expected = video_io.to_float(stored_clip(number)[times[row]])
            np.testing.assert_array_equal(batch["video"][row], expected)
        starts |= set(times[:, 0].tolist())
    assert starts == {0, 1, 2, 3, 4, 5}  # the last clip is on frames 5, 7, 9, 11


def test_images_are_random_frames_of_the_whole_clip(source):
    batches = take(30, source, frames=1)
    assert batches[0]["video"].shape == (4, 1, 16, 16, 3)
    shown = np.concatenate([records_and_times(batch)[1].ravel() for batch in batches])
    assert set(shown.tolist()) == set(range(STORED_FRAMES))


def test_an_epoch_has_each_record_once_in_an_order_of_its_own(source):
    numbers = np.concatenate([records_and_times(batch)[0] for batch in take(10, source)])
    epochs = numbers.reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    other = np.concatenate([records_and_times(batch)[0] for batch in take(10, source, seed=4)])
    assert (other != numbers).any()


def test_the_order_of_the_source_can_be_kept(source):
    numbers = np.concatenate([records_and_times(batch)[0] for batch in take(5, source, shuffle=False)])
    np.testing.assert_array_equal(numbers, np.tile(np.arange(10), 2))


def test_positions_differ_between_epochs(source):
    batches = take(10, source, shuffle=False, batch_size=10)
    starts = np.stack([records_and_times(batch)[1][:, 0] for batch in batches])
    assert (starts.std(axis=0) > 0).all()


# Everything that draws or counts, at once.
EVERYTHING = {"caption_dropout": 0.3, "flip_probability": 0.5, "image_share": 0.4, "image_batch_size": 8}
EVERYTHING |= {"size": 8, "crop_from": 16}


@pytest.mark.parametrize("settings", [{"caption_dropout": 0.3}, EVERYTHING])
@pytest.mark.parametrize("step", [1, 4, 7])
def test_resuming_at_a_step_gives_the_same_batches_bit_for_bit(source, step, settings):
    source = Mixture((source[:7], source[7:]), (1, 2))
    whole = [digest(batch) for batch in take(9, source, **settings)]
    assert len(set(whole)) == 9
    resumed = [digest(batch) for batch in take(9 - step, source, start_step=step, **settings)]
    assert resumed == whole[step:]


def test_threads_and_cache_change_nothing(source):
    expected = [digest(batch) for batch in take(8, source, caption_dropout=0.3)]
    for settings in [{"num_threads": 1}, {"num_threads": 4}, {"cache_bytes": 10**8}]:
        assert [digest(batch) for batch in take(8, source, caption_dropout=0.3, **settings)] == expected
    crops = {"size": 8, "crop_from": 16}
    expected = [digest(batch) for batch in take(8, source, **crops)]
    assert [digest(batch) for batch in take(8, source, cache_bytes=10**8, **crops)] == expected


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(source, hosts):
    source = Mixture((source[:7], source[7:]), (1, 2))
    settings = EVERYTHING | {"start_step": 2}
    whole = take(5, source, **settings)
    parts = [take(5, source, process_index=host, process_count=hosts, **settings) for host in range(hosts)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["video"] for part in parts])
        np.testing.assert_array_equal(joined, batch["video"])
        assert all_captions(part[step] for part in parts) == batch["caption"]
        assert len(parts[0][step]["caption"]) == len(batch["caption"]) // hosts


def test_cache_is_bounded_and_saves_decoding(source, monkeypatch):
    decoded = []

    def counting(frame, *args):
        decoded.append(frame)
        return video_io.frame_to_rgb(frame, *args)

    monkeypatch.setattr("lumiere_jax.data.clip_loader.frame_to_rgb", counting)
    clip_bytes = STORED_FRAMES * 8 * 8 * 3

    def frames_decoded(cache_bytes):
        batches = make_batches(
            source, **(SETTINGS | {"size": 8, "batch_size": 10, "num_threads": 1}), cache_bytes=cache_bytes
        )
        for _ in range(4):  # with two batches read ahead, the first epoch is behind us
            next(batches)
        decoded.clear()
        for _ in range(8):
            next(batches)
        return len(decoded)

    assert frames_decoded(10 * clip_bytes) == 0
    assert frames_decoded(4 * clip_bytes) > 4 * 6 * 4


def test_dropped_captions_are_empty_and_as_many_as_asked(source):
    captions = all_captions(take(50, source, frames=1, caption_dropout=0.25))
    # 200 draws: 50 expected, with a standard deviation of 6.1.
    assert 26 <= captions.count("") <= 74
    assert "" not in all_captions(take(10, source))
    assert set(all_captions(take(3, source, caption_dropout=1.0))) == {""}


def test_flips_mirror_as_many_as_asked_and_whole_clips(source):
    shown = []
    for batch in take(20, source, frames=4, flip_probability=0.25):
        # Red and green are constant over a frame: they still say which frames the pattern in blue should be of.
        numbers, times = records_and_times(batch)
        for row, number in enumerate(numbers):
            blue, expected = video_io.to_uint8(batch["video"][row])[..., 2], stored_clip(number)[times[row]][..., 2]
            shown.append((blue == expected[:, :, ::-1]).all())
            assert shown[-1] or (blue == expected).all()
    # 80 draws: 20 expected, with a standard deviation of 3.9.
    assert 5 <= sum(shown) <= 35


def test_flips_leave_clips_whose_caption_names_a_side(source):
    sided = [record | {"caption": "a circle moving left"} for record in source]
    for dropout in (0.0, 1.0):  # the picture of a dropped caption is the same picture
        plain = take(3, sided, caption_dropout=dropout)
        flipped = take(3, sided, caption_dropout=dropout, flip_probability=1.0)
        assert [digest(batch) for batch in plain] == [digest(batch) for batch in flipped]
    assert [digest(batch) for batch in take(3, source)] != [
        digest(batch) for batch in take(3, source, flip_probability=1.0)
    ]


@pytest.mark.parametrize(("size", "crop_from"), [(4, 8), ((3, 7), 8), (8, 8)])
def test_crops_are_parts_of_frames_at_random_places(source, size, crop_from):
    """The same place in all frames of a clip, every place at times; captions and frames are those without a crop."""
    whole = take(40, source, size=crop_from, caption_dropout=0.3)
    places = set()
    for batch, expected in zip(
        take(40, source, size=size, crop_from=crop_from, caption_dropout=0.3), whole, strict=True
    ):
        assert batch["caption"] == expected["caption"]
        for video, frames in zip(batch["video"], expected["video"], strict=True):
            height, width = video.shape[1:3]
            windows = np.lib.stride_tricks.sliding_window_view(frames, (height, width), axis=(1, 2))
            found = (np.moveaxis(windows, (3, -2, -1), (-1, -3, -2)) == video[:, None, None]).all((0, 3, 4, 5))
            assert found.any()
            places.add(tuple(np.argwhere(found)[0]))
    height, width = (size, size) if isinstance(size, int) else size
    assert (height, width) == video.shape[1:3]
    # 160 draws of up to 25 places
    assert places == {(top, left) for top in range(crop_from - height + 1) for left in range(crop_from - width + 1)}


def test_batches_of_single_frames_are_evenly_spread_and_come_first(source):
    settings = {"image_share": 0.25, "image_batch_size": 6}
    shapes = [batch["video"].shape[:2] for batch in take(12, source, **settings)]
    assert shapes == ([(6, 1)] + [(4, 4)] * 3) * 3
    assert [is_image_step(step, 0.25) for step in range(12)] == [shape == (6, 1) for shape in shapes]
    for share in (0.1, 0.3, 1 / 3, 0.99):
        assert sum(is_image_step(step, share) for step in range(10_000)) == pytest.approx(10_000 * share, abs=1)


def test_batches_of_single_frames_leave_the_clips_as_they_were(source):
    mixed = take(8, source, image_share=0.25, image_batch_size=6)
    clips = [digest(batch) for batch in mixed if batch["video"].shape[1] == 4]
    assert clips == [digest(batch) for batch in take(6, source)]
    numbers = records_and_times(mixed[0])[0].tolist() + records_and_times(mixed[4])[0].tolist()
    assert sorted(numbers[:10]) == list(range(10))  # an epoch of their own
    assert numbers[:4] != records_and_times(mixed[1])[0].tolist()  # in another order than the clips'


def test_frames_that_are_stored_one_by_one(source):
    def png(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        return file.getvalue()

    pictures = [
        {"frames": [png(image) for image in stored_clip(number)], "caption": f"clip {number}", "fps": STORED_FPS}
        for number in range(10)
    ]
    for settings in ({}, {"cache_bytes": 10**8}, {"frames": 1}):
        expected = [digest(batch) for batch in take(4, source, **settings)]
        assert [digest(batch) for batch in take(4, pictures, **settings)] == expected


def test_only_frames_that_are_shown_are_decoded_once_the_cache_is_full(source, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "lumiere_jax.data.clip_loader.frame_to_rgb",
        lambda frame, *args: decoded.append(frame) or video_io.frame_to_rgb(frame, *args),
    )
    clip_bytes = STORED_FRAMES * 16 * 16 * 3
    batches = make_batches(source[:4], **SETTINGS, num_threads=1, cache_bytes=clip_bytes * 3 // 2)
    for _ in range(4):
        next(batches)
    decoded.clear()
    for _ in range(4):
        next(batches)
    assert len(decoded) == 4 * 3 * 4  # one clip is kept, three are decoded: 4 frames each, not 12


def test_prefetch_makes_one_item_ahead_and_no_more():
    made, asked = [], threading.Semaphore(0)

    def place(item):
        made.append(item)
        asked.release()
        return -item

    def wait_for(count):
        for _ in range(count):
            assert asked.acquire(timeout=30)

    items = prefetch(iter(range(5)), place)
    assert made == []
    assert next(items) == 0
    wait_for(2)
    assert made == [0, 1]  # item 1 was made without being asked for
    assert next(items) == -1
    wait_for(1)
    assert made == [0, 1, 2]
    items.close()
    assert made == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert list(prefetch(iter(range(4)), lambda item: item)) == [0, 1, 2, 3]


def test_prefetch_passes_errors_on_where_they_belong():
    def place(item):
        if item == 2:
            raise ValueError("item 2")
        return item

    items = prefetch(iter(range(5)), place)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(items)


def test_captions_are_encoded_after_the_dropout(source):
    def lengths(captions):
        return {"tokens": np.array([len(caption) for caption in captions])}

    for batch in take(5, source, caption_dropout=0.5, encode_caption=lengths):
        np.testing.assert_array_equal(batch["tokens"], [len(caption) for caption in batch["caption"]])


def test_size_is_the_area_average_of_the_center(source):
    for size in [8, (8, 4)]:
        batch = take(1, source, size=size)[0]
        numbers, times = records_and_times(batch)
        for row, number in enumerate(numbers):
            expected = center_crop_resize(stored_clip(number)[times[row]], size)
            np.testing.assert_array_equal(video_io.to_uint8(batch["video"][row]), expected)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, ValueError, "batch_size=6 must be .* process_count=4"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, ValueError, "process_index=2 must be 0 to 1"),
        ({"caption_dropout": 1.5}, ValueError, "caption_dropout must be 0 to 1, got 1.5"),
        ({"flip_probability": -0.1}, ValueError, "flip_probability must be 0 to 1, got -0.1"),
        ({"image_share": 1.0}, ValueError, "image_share must be at least 0 and below 1, got 1.0"),
        ({"image_share": 0.5}, ValueError, "image_batch_size=0 must be a positive"),
        (
            {"image_share": 0.5, "image_batch_size": 3, "process_count": 2},
            ValueError,
            "image_batch_size=3 must be .* process_count=2",
        ),
        ({"start_step": -1}, ValueError, "start_step >= 0"),
        ({"num_threads": 0}, ValueError, "num_threads >= 1"),
        ({"size": 32}, video_io.VideoError, "16x16, smaller than the 32x32"),
        ({"crop_from": 32}, video_io.VideoError, "16x16, smaller than the 32x32"),
        ({"crop_from": 12}, ValueError, "crop_from=12 is smaller than the crops, size=16"),
        ({"frames": 8}, video_io.VideoError, r"record 0: too short, .* 1\.375 s .* 1\.750 s"),
        ({"frames": 0}, ValueError, "frames >= 1"),
    ],
)
def test_bad_settings_fail_before_the_first_batch(source, settings, error, message):
    with pytest.raises(error, match=message):
        make_batches(source, **(SETTINGS | settings))


def test_bad_sources(source):
    with pytest.raises(ValueError, match="the data set is empty"):
        make_batches([], **SETTINGS)
    with pytest.raises(ValueError, match=r"lack the fields \['caption', 'fps'\]"):
        make_batches([{"clip": b""}], **SETTINGS)
    with pytest.raises(ValueError, match=r"lack the fields \['clip'\]"):
        make_batches([{"caption": "", "fps": 8.0}], **SETTINGS)
    broken = [*source[:3], source[3] | {"clip": source[3]["clip"][:1000], "source": "bad.mp4"}]
    with pytest.raises(video_io.VideoError, match=r"record 3 \(bad\.mp4\)"):
        take(4, broken)
