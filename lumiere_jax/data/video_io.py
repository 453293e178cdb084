"""Video in and out: decode with PyAV, encode H.264, GIF and contact sheets.

Frames inside the library are float in [-1, 1], files hold uint8: `to_float` and `to_uint8` go between them.
"""

import contextlib
import dataclasses
import io
import operator
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from jaxtyping import Array, Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Frames between key frames in files we write, so that seeking and short cuts stay cheap. Not from the paper.
_GOP_SIZE = 16
# swscale's fast default darkens by half a level per conversion; with these flags the mean error is zero.
_CONVERSION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# A file that ends before this part of its promised duration counts as truncated.
_COMPLETE_FRACTION = 0.9

Frames = UInt8[np.ndarray, "frames height width 3"] | Float[np.ndarray | Array, "frames height width 3"]
"""A clip, uint8 in 0..255 or float in [-1, 1]."""


class VideoError(ValueError):
    """A video that cannot be used; the message names the file and the reason."""


# Values ----------------------------------------------------------------------------------------------------


def to_float(video: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Maps uint8 0..255 to float32 in [-1, 1]."""
    return video.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(
    video: UInt8[np.ndarray, "*shape"] | Float[np.ndarray | Array, "*shape"],
) -> UInt8[np.ndarray, "*shape"]:
    """Maps float in [-1, 1] to uint8 0..255, rounded, values outside clipped; uint8 is returned as it is.

    Raises:
        ValueError: values that are NaN or infinite, which no clipping makes right.
    """
    video = np.asarray(video)
    if video.dtype == np.uint8:
        return video
    video = video.astype(np.float32)
    if not np.isfinite(video).all():
        raise ValueError("video has NaN or infinite values: the model or the sampler diverged")
    return np.clip(np.rint((video + 1) * 127.5), 0, 255).astype(np.uint8)


# Decoding --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OpenVideo:
    """A video being read.

    Attributes:
        duration: seconds by the header, or None where it does not say.
        fps: frames per second by the header, on average, or None where it does not say.
        frames: `(time in seconds, frame)` in the order of display, the first at time 0. Decodes no more than
            is asked for, and raises VideoError where the file is corrupted, truncated (noticed at its end),
            or has time stamps that run backwards.
    """

    duration: float | None
    fps: float | None
    frames: Iterator[tuple[float, av.VideoFrame]]


@contextlib.contextmanager
def open_video(source: bytes | str | os.PathLike, *, name: str | None = None) -> Iterator[OpenVideo]:
    """Opens a path, or the bytes of a file; `name` is what errors call it, by default the path.

    Raises:
        FileNotFoundError: no such file.
        VideoError: not a video.
    """
    name = name or ("<video in memory>" if isinstance(source, bytes) else os.fspath(source))
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: has no video stream")
            duration = _promised_seconds(container)
            rate = container.streams.video[0].average_rate
            yield OpenVideo(
                duration=float(duration) if duration else None,
                fps=float(rate) if rate else None,
                frames=_timed_frames(container, name),
            )
    except FileNotFoundError:
        raise
    except av.FFmpegError as error:
        raise VideoError(f"{name}: cannot be decoded ({error.strerror})") from error


def _timed_frames(container: av.container.InputContainer, name: str) -> Iterator[tuple[float, av.VideoFrame]]:
    stream = container.streams.video[0]
    # AVI stores no presentation times: its pts are guesses that come out of order. Its decoding times differ
    # from them by a constant, as frames arrive here in the order of display.
    stamps = operator.attrgetter("dts" if container.format.name == "avi" else "pts")
    # Many decoders run side by side in the input pipeline: one thread each.
    stream.thread_count, stream.thread_type = 1, "NONE"
    period = 1 / (stream.average_rate or 25)
    first = last = None
    count = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise VideoError(f"{name}: frame {count} is corrupted")
            ticks = stamps(frame)
            # Only the frames that a decoder still holds at the end of a file come without a stamp.
            time = last + period if ticks is None and last is not None else (ticks or 0) * stream.time_base
            if last is not None and time <= last:
                raise VideoError(f"{name}: time stamp of frame {count} runs backwards")
            first = time if first is None else first
            last = time
            count += 1
            yield float(time - first), frame
    except av.FFmpegError as error:
        raise VideoError(f"{name}: {count} frames decode, then: {error.strerror}") from error
    if first is None:
        raise VideoError(f"{name}: has no frames")
    promised = _promised_seconds(container)
    if promised and last + period - first < _COMPLETE_FRACTION * promised:
        seconds = float(last + period - first)
        raise VideoError(f"{name}: truncated, ends after {seconds:.2f} of {float(promised):.2f} seconds")


def _promised_seconds(container: av.container.InputContainer) -> Fraction | None:
    """The duration in the header, where it speaks of the video (audio may well be longer)."""
    stream = container.streams.video[0]
    if stream.duration:
        return stream.duration * stream.time_base
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None


def frame_to_rgb(
    frame: av.VideoFrame, reformatter: VideoReformatter | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """One decoded frame as RGB, upright (phones store portrait video as rotated landscape).

    `reformatter`, shared between the frames of a clip, saves setting up the colour conversion for each.
    """
    if frame.format.name != "gbrp":  # what lossless RGB decodes to: no conversion needed
        frame = (reformatter or VideoReformatter()).reformat(
            frame, format="rgb24", interpolation=_CONVERSION, threads=1
        )
    image = frame.to_ndarray()
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90)) if frame.rotation else image


def decode_video(
    source: bytes | str | os.PathLike,
    start: float | int = 0.0,
    duration: float | int | None = None,
    *,
    name: str | None = None,
) -> tuple[UInt8[np.ndarray, "frames height width 3"], Float[np.ndarray, " frames"]]:
    """Decodes the frames with time stamps in [start, start + duration), by default all.

    Args:
        source: path, or the bytes of a file.
        start: seconds from the first frame.
        duration: seconds, or None for up to the end. What lies behind is not decoded.
        name: what errors call the video; default: its path.

    Returns:
        RGB frames, and their time stamps in seconds from the first frame of the file (float64).

    Raises:
        FileNotFoundError: no such file.
        VideoError: undecodable, truncated, or no frame in the range.
    """
    images, times = [], []
    reformatter = VideoReformatter()
    with open_video(source, name=name) as video:
        for time, frame in video.frames:
            if duration is not None and time >= start + duration:
                break
            if time >= start:
                images.append(frame_to_rgb(frame, reformatter))
                times.append(time)
    if not images:
        raise VideoError(f"{name or 'video'}: no frames from {start} s on for {duration} s")
    if len({image.shape for image in images}) > 1:
        raise VideoError(f"{name or 'video'}: the frame size changes within the clip")
    return np.stack(images), np.array(times, np.float64)


# Encoding --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_mp4(
    path: str | os.PathLike,
    fps: float | int,
    *,
    lossless: bool = False,
    crf: int = 16,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[Callable[[UInt8[np.ndarray, "height width 3"]], None]]:
    """A file that takes RGB frames one by one: H.264 in mp4, index first, so that browsers play it while loading.

    It has its name when the block ends; after an error there is none.

    Args:
        path: where to write.
        fps: frames per second.
        lossless: exact RGB (`libx264rgb`, qp 0). For data; browsers do not play it.
        crf: x264's constant rate factor, 0 (best) to 51, for lossy video: YUV 4:2:0, BT.709. Odd heights and
            widths, which 4:2:0 cannot hold, are padded to even by repeating the last row or column.
        metadata: tags that mp4 knows, such as `title` and `comment`; and `xmp`, a packet of XMP: it has its own box.

    Raises:
        ValueError: no frames, or fps or crf out of range.
    """
    _check_fps(fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be 0 to 51, got {crf}")
    rate = Fraction(fps).limit_denominator(65535)
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    # Not x264's macroblock tree: with AVX-512 what it writes differs from call to call, as it reads memory that
    # nobody set. Without it the bytes are the frames' alone; at the same crf they are more, by an eighth to a third.
    encoder, options = (
        ("libx264rgb", {"qp": "0", "preset": "ultrafast"})
        if lossless
        else ("libx264", {"crf": str(crf), "mbtree": "0"})
    )
    reformatter, count = VideoReformatter(), 0
    tags = dict(metadata or {})
    xmp = tags.pop("xmp", None)
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata.update(tags)
            stream = container.add_stream(encoder, rate=rate, options=options)

            def add(image: np.ndarray) -> None:
                nonlocal count
                image = image if lossless else _pad_to_even(image)
                if count == 0:
                    _configure(stream, image.shape, lossless)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                if not lossless:
                    frame = reformatter.reformat(
                        frame,
                        format="yuv420p",
                        dst_colorspace=Colorspace.ITU709,
                        dst_color_range=ColorRange.MPEG,
                        interpolation=_CONVERSION,
                        threads=1,
                    )
                frame.pts, frame.time_base = count, 1 / stream.codec_context.framerate
                container.mux(stream.encode(frame))
                count += 1

            yield add
            if not count:
                raise ValueError("video has no frames")
            container.mux(stream.encode())
        if xmp:
            with partial.open("ab") as file:
                file.write(_xmp_box(xmp))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _xmp_box(packet: str) -> bytes:
    """The box of MPEG-4 files for XMP (Adobe's XMP specification, part 3), which FFmpeg reads but does not write."""
    content = bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + packet.encode()
    return (8 + len(content)).to_bytes(4, "big") + b"uuid" + content


def _configure(stream: av.VideoStream, shape: tuple[int, ...], lossless: bool) -> None:
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "rgb24" if lossless else "yuv420p"
    stream.codec_context.gop_size = _GOP_SIZE
    stream.codec_context.thread_count = 1
    if not lossless:  # name the colours, so that players do not guess
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709.value
        context.color_range = ColorRange.MPEG.value


def encode_mp4(frames: UInt8[np.ndarray, "frames height width 3"], fps: float | int, **options: Any) -> bytes:
    """The bytes of a clip as mp4; options and errors as of `open_mp4`."""
    # The mp4 writer moves the index to the front by reading its own file again: it needs a real file.
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "clip.mp4")
        write_mp4(path, frames, fps, **options)
        return path.read_bytes()


def _pad_to_even(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else image


def _check_fps(fps: float | int) -> None:
    if not 0 < fps < 1000:
        raise ValueError(f"fps must be above 0 and below 1000, got {fps}")


def write_mp4(path: str | os.PathLike, video: Frames, fps: float | int, **options: Any) -> None:
    """Writes a clip as mp4, float in [-1, 1] or uint8; options and errors as of `open_mp4`."""
    with open_mp4(path, fps, **options) as add:
        for image in to_uint8(video):
            add(image)


def write_gif(
    path: str | os.PathLike, video: Frames, fps: float | int, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a clip as an endless GIF; of metadata it has the `comment`.

    GIF counts time in 1/100 s: each frame ends on the nearest hundredth, so that the length stays right.
    """
    _check_fps(fps)
    ends = np.rint(np.arange(len(video) + 1) * 100 / fps).astype(int) * 10
    first, *rest = [Image.fromarray(image) for image in to_uint8(video)]
    times = {"duration": np.diff(ends).tolist(), "loop": 0}
    comment = (metadata or {}).get("comment", "").encode()
    first.save(path, format="GIF", save_all=True, append_images=rest, comment=comment, **times)


def write_png(
    file: str | os.PathLike | io.BytesIO,
    image: UInt8[np.ndarray, "height width 3"],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG, to a path or into memory, with metadata as texts: `xmp`, others by name (Title, ...)."""
    texts = PngInfo()
    for name, text in (metadata or {}).items():
        texts.add_itxt("XML:com.adobe.xmp" if name == "xmp" else name.capitalize(), text)
    Image.fromarray(image).save(file, format="PNG", pnginfo=texts)


def write_contact_sheet(
    path: str | os.PathLike,
    video: Frames | Sequence[Frames],
    columns: int = 8,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG of evenly spaced frames, first and last included; several clips of one size give rows.

    Args:
        path: where to write.
        video: one clip `[frames, height, width, 3]`, a batch of clips, or a list of them.
        columns: frames per clip; clips with fewer frames show all of theirs.
        metadata: see `write_png`.

    Raises:
        ValueError: no clips, columns < 1, or clips of different sizes.
    """
    clips = [video] if getattr(video, "ndim", None) == 4 else list(video)
    if not clips or columns < 1:
        raise ValueError(f"needs at least one clip and one column, got {len(clips)} clips, columns={columns}")
    sizes = {clip.shape[1:3] for clip in clips}
    if len(sizes) > 1:
        raise ValueError(f"clips must have one height and width, got {sorted(sizes)}")
    (height, width), gap = sizes.pop(), 2
    columns = min(columns, max(len(clip) for clip in clips))
    sheet = np.full((len(clips) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row, clip in enumerate(clips):
        shown = np.rint(np.linspace(0, len(clip) - 1, min(columns, len(clip)))).astype(int)
        for column, image in enumerate(to_uint8(clip[shown])):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = image
    write_png(path, sheet, metadata)
