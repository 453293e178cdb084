import io

import av
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lumiere_jax.data import video_io


def moving_square(frames=20, height=48, width=64, color=(230, 40, 20)):
    """A square that moves right by one pixel per frame: each frame differs."""
    video = np.full((frames, height, width, 3), (20, 60, 110), np.uint8)
    for t in range(frames):
        video[t, 10:30, t : t + 20] = color
    return video


def write_b_frames(path, video, fps):
    """Any container, with B-frames: of these AVI stores the order of decoding only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "bf": "2", "b-adapt": "0"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def square_position(image):
    """Left edge of the square of `moving_square`, by its red channel."""
    return int(np.argmax(image[20, :, 0] > 120))


def test_values_map_both_ways_exactly():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(video_io.to_uint8(video_io.to_float(values)), values)
    assert video_io.to_float(values).dtype == np.float32
    np.testing.assert_allclose(video_io.to_float(values)[[0, 51, 255]], [-1, -0.6, 1], atol=1e-6)


def test_to_uint8_clips_rounds_and_refuses_nan():
    np.testing.assert_array_equal(video_io.to_uint8(np.array([-3.0, 0.0, 2.0])), [0, 128, 255])
    np.testing.assert_array_equal(video_io.to_uint8(jnp.array([1.0], jnp.bfloat16)), [255])
    with pytest.raises(ValueError, match="NaN"):
        video_io.to_uint8(np.array([0.0, np.nan]))


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_lossless_is_exact(size):
    video = np.random.default_rng(0).integers(0, 256, (20, *size, 3), dtype=np.uint8)
    decoded, times = video_io.decode_video(video_io.encode_mp4(video, 16, lossless=True))
    np.testing.assert_array_equal(decoded, video)
    np.testing.assert_allclose(times, np.arange(20) / 16, atol=1e-9)


def test_lossy_is_close_and_odd_sizes_are_padded_by_the_edge():
    time, y, x, channel = np.ogrid[:10, :35, :47, :3]
    video = (128 + 100 * np.sin(0.05 * x + 0.1 * y + 0.2 * time + 2 * channel)).astype(np.uint8)
    decoded, _ = video_io.decode_video(video_io.encode_mp4(video, 16, crf=1))
    assert decoded.shape == (10, 36, 48, 3)
    assert np.abs(decoded[:, :35, :47].astype(int) - video).mean() < 2.5
    assert np.abs(decoded[:, 35, :47].astype(int) - video[:, 34]).max() < 8


def test_bytes_are_the_frames_alone():
    """Not of what lay in the memory before: data that is prepared twice is the same data."""
    draw = np.random.default_rng(0)
    y, x = np.arange(128.0)[:, None, None], np.arange(240.0)[:, None]
    picture = 128 + 80 * np.sin(y / 9) + 60 * np.cos(x / 7)
    moving = np.stack([picture[t // 2 : t // 2 + 64, 2 * t : 2 * t + 64] for t in range(56)])
    clip = np.clip(moving + draw.normal(0, 4, (56, 64, 64, 3)), 0, 255).astype(np.uint8)
    written = set()
    for _ in range(8):
        for size in draw.integers(1000, 3_000_000, 60):
            np.full(size, draw.integers(255), np.uint8)
        written.add(video_io.encode_mp4(clip, 16))
    assert len(written) == 1


def test_colors_are_bt709_by_the_standard_and_by_the_tag():
    red = np.zeros((2, 32, 32, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    encoded = video_io.encode_mp4(red, 16, crf=1)
    with av.open(io.BytesIO(encoded)) as container:
        frame = next(container.decode(video=0))
    planes = frame.to_ndarray()  # rows of Y, then U and V
    luma, chroma_blue, chroma_red = planes[0, 0], planes[32, 0], planes[-1, -1]
    np.testing.assert_allclose([luma, chroma_blue, chroma_red], [63, 102, 240], atol=1)  # ITU-R BT.709
    assert (frame.colorspace, frame.color_range) == (1, 1)
    np.testing.assert_allclose(video_io.decode_video(encoded)[0][0, 16, 16], [255, 0, 0], atol=3)


def test_lossy_neither_darkens_nor_brightens():
    grays = np.arange(10, 250, 8, dtype=np.uint8)[:, None, None, None] * np.ones((16, 16, 3), np.uint8)
    decoded, _ = video_io.decode_video(video_io.encode_mp4(grays, 16, crf=1))
    assert np.mean(decoded.astype(float) - grays) == pytest.approx(0, abs=0.2)


def test_mp4_streams_and_holds_metadata_rate_and_key_frames():
    encoded = video_io.encode_mp4(moving_square(40), 29.97, metadata={"comment": "prompt: a square"})
    assert 0 < encoded.find(b"moov") < encoded.find(b"mdat")
    with av.open(io.BytesIO(encoded)) as container:
        assert container.metadata["comment"] == "prompt: a square"
        assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, abs=1e-3)
        keys = [frame.key_frame for frame in container.decode(video=0)]
    assert np.diff(np.flatnonzero([*keys, True])).max() <= 16


def test_time_range_takes_the_frames_inside():
    encoded = video_io.encode_mp4(moving_square(20), 10, lossless=True)
    frames, times = video_io.decode_video(encoded, start=0.5, duration=0.4)
    np.testing.assert_allclose(times, [0.5, 0.6, 0.7, 0.8])
    assert [square_position(frame) for frame in frames] == [5, 6, 7, 8]
    with pytest.raises(video_io.VideoError, match="no frames from 3"):
        video_io.decode_video(encoded, start=3)


def test_avi_comes_in_order_of_display(tmp_path):
    write_b_frames(tmp_path / "a.avi", moving_square(40)[::2], 10)
    frames, times = video_io.decode_video(tmp_path / "a.avi")
    np.testing.assert_allclose([square_position(frame) for frame in frames], np.arange(0, 40, 2), atol=1)
    np.testing.assert_allclose(times, np.arange(20) / 10, atol=1e-9)


def test_real_avi_has_unordered_stamps_but_ordered_times(fixtures):
    with av.open(str(fixtures / "videos" / "mm_test.avi")) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)
    _, times = video_io.decode_video(fixtures / "videos" / "mm_test.avi")
    np.testing.assert_allclose(times, np.arange(164) / 25, atol=1e-9)


@pytest.mark.parametrize("name", ["carphone_pristine.mp4", "mm_test.mp4", "unordered.mov"])
def test_real_videos_decode_whole(fixtures, name):
    path = fixtures / "videos" / name
    frames, times = video_io.decode_video(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert frames.shape == (stream.frames, stream.height, stream.width, 3)
        np.testing.assert_allclose(times, np.arange(len(frames)) / float(stream.average_rate), atol=1e-6)


def test_corrupted_file_is_named_with_its_reason(fixtures):
    with pytest.raises(video_io.VideoError, match=r"corrupted\.mp4: 28 frames decode, then: Invalid data"):
        video_io.decode_video(fixtures / "videos" / "corrupted.mp4")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv"])
def test_truncated_file_is_refused(tmp_path, kind, kept):
    path = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    if kind == "mp4":
        video_io.write_mp4(path, noise, 10)
    else:
        write_b_frames(path, noise, 10)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(video_io.VideoError, match=f"cut.{kind}"):
        video_io.decode_video(path)


def test_not_a_video_and_no_file(tmp_path):
    with pytest.raises(video_io.VideoError, match="clip 7: cannot be decoded"):
        video_io.decode_video(b"no video at all", name="clip 7")
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
        video_io.decode_video(tmp_path / "missing.mp4")


def test_bad_encoding_arguments():
    with pytest.raises(ValueError, match="no frames"):
        video_io.encode_mp4(np.zeros((0, 8, 8, 3), np.uint8), 16)
    with pytest.raises(ValueError, match="fps must be"):
        video_io.encode_mp4(moving_square(2), 0)
    with pytest.raises(ValueError, match="crf must be"):
        video_io.encode_mp4(moving_square(2), 16, crf=60)


def test_write_mp4_takes_floats(tmp_path):
    video = moving_square(4)
    video_io.write_mp4(tmp_path / "a.mp4", jnp.asarray(video_io.to_float(video)), 8, lossless=True)
    np.testing.assert_array_equal(video_io.decode_video(tmp_path / "a.mp4")[0], video)


def test_gif_lasts_as_long_as_the_clip(tmp_path):
    video_io.write_gif(tmp_path / "a.gif", video_io.to_float(moving_square(16)), 16)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 16
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            assert square_position(np.asarray(gif.convert("RGB"))) == index
    assert sum(durations) == 1000
    assert set(durations) == {60, 70}  # 62.5 ms is not a number of hundredths


def test_contact_sheet_shows_evenly_spaced_frames_of_each_clip(tmp_path):
    clips = [moving_square(21, 40, 60), moving_square(21, 40, 60)[::-1]]
    video_io.write_contact_sheet(tmp_path / "sheet.png", clips, columns=5)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 40 + 2, 5 * 60 + 4 * 2, 3)
    for row, clip in enumerate(clips):
        for column, frame in enumerate([0, 5, 10, 15, 20]):
            cell = sheet[row * 42 : row * 42 + 40, column * 62 : column * 62 + 60]
            np.testing.assert_array_equal(cell, clip[frame])
    assert (sheet[40:42] == 255).all()
    with pytest.raises(ValueError, match="one height and width"):
        video_io.write_contact_sheet(tmp_path / "b.png", [moving_square(4), moving_square(4, 32, 32)])
