"""Raw videos of every kind that users bring, written with PyAV."""

import pathlib
import struct
from fractions import Fraction

import av
import numpy as np

from lumiere_jax.data import video_io


def brightening(frames, height=20, width=30, first=0):
    """A clip of even gray frames, brighter by 4 per frame."""
    return np.full((frames, height, width, 3), 1, np.uint8) * np.uint8(
        first + 4 * np.arange(frames)[:, None, None, None]
    )


def scenes(*lengths, height=48, width=64):
    """Hard cuts between scenes of textures that move, each of so many frames."""
    rng = np.random.default_rng(0)
    shots = []
    for number, frames in enumerate(lengths):
        base = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        texture = (np.kron(base, np.ones((8, 8, 1))) * 0.5 + (30, 90, 125)[number % 3]).astype(np.uint8)
        shots.append(np.stack([np.roll(texture, shift, axis=1) for shift in range(frames)]))
    return np.concatenate(shots)


def write_avi(path, video, fps):
    """MPEG-4 with B-frames, which AVI stores without presentation times."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        stream.codec_context.max_b_frames = 2
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_at_times(path, video, times, pix_fmt="yuv420p"):
    """H.264 whose frames lie at these times, in seconds to the millisecond."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "2"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(video, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_rotated(path, video, fps):
    """As phones write portrait video: the frames lie on their side, the header says to turn them clockwise."""
    data = bytearray(video_io.encode_mp4(np.ascontiguousarray(np.rot90(video, axes=(1, 2))), fps, crf=2))
    matrix = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, video.shape[2] << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = clockwise
    pathlib.Path(path).write_bytes(data)


def write_audio_only(path):
    """An mp4 without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, 8000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
