"""Records to batches, through Grain. The position in the data is the training step.

A record is a dict with `clip` (bytes of an encoded video), `caption` and `fps`, as the data sets of this
package yield them. The batch of step s is a function of the seed and s alone: resuming at step s gives the same
batches bit for bit, and on any number of hosts the hosts' parts join to the same global batch.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import av
import grain
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from lumiere_jax.data.clip_sampling import (
    Frame,
    center_crop_resize,
    sample_by_time,
    sample_times,
    too_short,
)
from lumiere_jax.data.video_io import VideoError, frame_to_rgb, open_video, to_float

Record = Mapping[str, Any]
EncodeCaption = Callable[[list[str]], dict[str, np.ndarray]]


def make_batches(
    source: Sequence[Record],
    *,
    batch_size: int,
    frames: int,
    fps: float | int,
    size: int | tuple[int, int],
    seed: int,
    start_step: int = 0,
    shuffle: bool = True,
    caption_dropout: float | int = 0.0,
    encode_caption: EncodeCaption | None = None,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
    cache_bytes: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches from step `start_step` on.

    Each example is a clip of `frames` frames at `fps` from a random position in its record's video, chosen by
    time stamp; `frames=1` gives images. An epoch is each record once, in an order that changes per epoch.

    Args:
        source: random access to records, e.g. `builder.as_data_source(split="train")`.
        batch_size: clips in the global batch, over all hosts.
        frames: frames per clip.
        fps: frames per second of the clips; without meaning for images.
        size: side of the square frames, or (height, width); larger stored frames are cropped at the center and
            scaled down, see `center_crop_resize`.
        seed: of the order, the positions and the dropped captions; 0 to 2^32 - 1.
        start_step: first step.
        shuffle: False keeps the order of the source, epoch after epoch.
        caption_dropout: probability that a caption becomes `""`, for classifier-free guidance.
        encode_caption: what else to add for this host's captions, e.g. token ids.
        num_threads: threads that decode ahead, at most two batches.
        process_index: this host's number.
        process_count: number of hosts; each gets its contiguous part of the global batch, in order.
        cache_bytes: memory for decoded clips (uint8, already at `size`). Clips are kept until it is full and
            never dropped; those that do not fit are decoded each time. The batches are the same either way.

    Returns:
        Iterator of dicts: `video` float32 in [-1, 1] `[batch, frames, height, width, 3]`, `caption` list of
        str, and what `encode_caption` returns.

    Raises:
        ValueError: arguments out of range, an empty source, or a first record that lacks a field.
        VideoError: a clip that is undecodable, too short or smaller than `size`. The first record's is found
            here, others when their batch is asked for.
    """
    _check_arguments(source, batch_size, start_step, caption_dropout, num_threads, process_index, process_count)
    loader = _ClipLoader(frames, fps, size, cache_bytes)

    def to_example(indexed_record: tuple[int, Record], rng: np.random.Generator) -> dict[str, Any]:
        index, record = indexed_record
        # Drawn first, so that whether a caption is dropped does not depend on the clip's length.
        drop = rng.random() < caption_dropout
        caption = "" if drop else _as_text(record["caption"])
        return {"video": loader.load(index % len(source), record, rng), "caption": caption}

    to_example((0, source[0]), np.random.default_rng(0))  # bad settings fail here, not in a thread

    examples = grain.MapDataset.source(source).seed(seed).map_with_index(lambda index, record: (index, record))
    if shuffle:
        examples = examples.shuffle()
    # The randomness belongs to the position in the global stream; hosts choose their positions after it.
    examples = examples.repeat().random_map(to_example)

    local = batch_size // process_count
    positions = grain.MapDataset.range(start_step * local, sys.maxsize)

    def to_global(position: int) -> int:
        step, row = divmod(position, local)
        return step * batch_size + process_index * local + row

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * local)
    stream = positions.map(lambda position: examples[to_global(position)]).to_iter_dataset(options)
    batches = stream.batch(local, batch_fn=list)
    return (_to_batch(batch, encode_caption) for batch in batches)


def _to_batch(examples: Sequence[dict[str, Any]], encode_caption: EncodeCaption | None) -> dict[str, Any]:
    captions = [example["caption"] for example in examples]
    batch = {"video": to_float(np.stack([example["video"] for example in examples])), "caption": captions}
    return batch | (encode_caption(captions) if encode_caption else {})


class _ClipLoader:
    """Records to uint8 clips; keeps decoded ones up to a number of bytes."""

    def __init__(self, frames: int, fps: float | int, size: int | tuple[int, int], cache_bytes: int):
        self._offsets = sample_times(frames, fps)
        self._size = size
        self._cache: dict[int, tuple[float | None, list[tuple[float, np.ndarray]]]] = {}
        self._free_bytes = cache_bytes
        self._lock = threading.Lock()

    def load(self, index: int, record: Record, rng: np.random.Generator) -> UInt8[np.ndarray, "frames height width 3"]:
        """A clip from a random position in the record's video."""
        name = f"record {index} ({_as_text(record['source'])})" if "source" in record else f"record {index}"
        fps = float(record["fps"])
        if index in self._cache:
            duration, images = self._cache[index]
            return np.stack(self._choose(images, duration, fps, rng, name))
        reformatter = VideoReformatter()
        with open_video(_as_bytes(record["clip"]), name=name) as video:
            if self._free_bytes <= 0:
                chosen = self._choose(video.frames, video.duration, fps, rng, name)
                return np.stack([self._to_image(frame, reformatter, name) for frame in chosen])
            images = [(time, self._to_image(frame, reformatter, name)) for time, frame in video.frames]
            self._keep(index, video.duration, images)
            return np.stack(self._choose(images, video.duration, fps, rng, name))

    def _choose(
        self,
        timed_frames: Iterable[tuple[float, Frame]],
        duration: float | int | None,
        fps: float | int,
        rng: np.random.Generator,
        name: str,
    ) -> list[Frame]:
        """The frames of a clip that starts on a random one of the stored frames."""
        if duration is None:
            raise VideoError(f"{name}: its header gives no duration")
        last_frame = round(duration * fps) - 1
        # The last sample may lie up to half a frame behind the last frame, as in sample_by_time.
        last_start = int(np.floor(last_frame + 0.5 - self._offsets[-1] * fps + 1e-6))
        if last_start < 0:
            raise too_short(name, last_frame / fps, float(self._offsets[-1]))
        times = int(rng.integers(last_start, endpoint=True)) / fps + self._offsets
        chosen = list(sample_by_time(timed_frames, times))
        if len(chosen) < len(times):
            raise VideoError(f"{name}: has fewer frames than its duration and fps={fps} say")
        return chosen

    def _keep(self, index: int, duration: float | int | None, images: list[tuple[float, np.ndarray]]) -> None:
        size = sum(image.nbytes for _, image in images)
        with self._lock:
            if index not in self._cache and size <= self._free_bytes:
                self._free_bytes -= size
                self._cache[index] = (duration, images)

    def _to_image(
        self, frame: av.VideoFrame, reformatter: VideoReformatter, name: str
    ) -> UInt8[np.ndarray, "height width 3"]:
        return center_crop_resize(frame_to_rgb(frame, reformatter)[None], self._size, name)[0]


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _as_bytes(value: bytes | np.ndarray) -> bytes:
    return value if isinstance(value, bytes) else value.item()


def _check_arguments(
    source: Sequence[Record],
    batch_size: int,
    start_step: int,
    caption_dropout: float | int,
    num_threads: int,
    process_index: int,
    process_count: int,
) -> None:
    if not len(source):
        raise ValueError("the data set is empty")
    missing = {"clip", "caption", "fps"} - set(source[0])
    if missing:
        raise ValueError(f"records lack the fields {sorted(missing)}; they have {sorted(source[0])}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} must be a positive multiple of process_count={process_count}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be 0 to {process_count - 1}")
    if not 0 <= caption_dropout <= 1:
        raise ValueError(f"caption_dropout must be 0 to 1, got {caption_dropout}")
    if start_step < 0 or num_threads < 1:
        raise ValueError(f"needs start_step >= 0, num_threads >= 1; got {start_step}, {num_threads}")
