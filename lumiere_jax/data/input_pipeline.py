"""Records to batches, through Grain. The position in the data is the training step.

A record is a dict with `clip` (bytes of an encoded video) or `frames` (bytes of one picture each), `caption` and `fps`.
The batch of step s is a function of the seed and s alone: resuming at step s gives the same batches bit for bit, and on
any number of hosts the hosts' parts join to the same global batch.
"""

import concurrent.futures
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import grain
import numpy as np

from lumiere_jax.data.clip_loader import ClipLoader, Record, as_text
from lumiere_jax.data.clip_sampling import random_crop
from lumiere_jax.data.horizontal_flip import may_flip
from lumiere_jax.data.mixture import Mixture
from lumiere_jax.data.video_io import to_float

EncodeCaption = Callable[[list[str]], dict[str, np.ndarray]]
Item = TypeVar("Item")
Placed = TypeVar("Placed")

# Keeps the seeds of the streams apart: the 32-bit golden ratio, whose multiples are all different.
_SEED_STRIDE = 0x9E3779B9


def make_batches(
    source: Sequence[Record] | Mixture,
    *,
    batch_size: int,
    frames: int,
    fps: float | int,
    size: int | tuple[int, int],
    crop_from: int = 0,
    seed: int,
    start_step: int = 0,
    shuffle: bool = True,
    caption_dropout: float | int = 0.0,
    flip_probability: float | int = 0.0,
    image_share: float | int = 0.0,
    image_batch_size: int = 0,
    encode_caption: EncodeCaption | None = None,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
    cache_bytes: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches from step `start_step` on.

    Each example is a clip of `frames` frames at `fps` from a random position in its record's video, chosen by
    time stamp; `frames=1` gives images. An epoch is each record once, in an order that changes per epoch; the data
    sets of a mixture have their epochs each to itself.

    Args:
        source: random access to records, e.g. `builder.as_data_source(split="train")`, or a mixture of several.
        batch_size: clips in the global batch, over all hosts.
        frames: frames per clip.
        fps: frames per second of the clips; without meaning for images.
        size: side of the square frames, or (height, width); larger stored frames are cropped at the center and
            scaled down, see `center_crop_resize`.
        crop_from: if not 0, frames are brought to squares of this size, and a clip is a random part of `size` out of
            them, the same part in all of its frames.
        seed: of the order, the positions, the dropped captions, the flips and the crops; 0 to 2^32 - 1.
        start_step: first step.
        shuffle: False keeps the order of the source, epoch after epoch.
        caption_dropout: probability that a caption becomes `""`, for classifier-free guidance.
        flip_probability: probability that a clip is mirrored left to right, where its caption allows it (`may_flip`).
        image_share: share of the batches that are of single frames, evenly spread, the first batch among them; below 1.
        image_batch_size: frames in such a batch, over all hosts.
        encode_caption: what else to add for this host's captions, e.g. token ids.
        num_threads: threads that decode ahead, at most two batches; as many again for batches of single frames.
        process_index: this host's number.
        process_count: number of hosts; each gets its contiguous part of the global batch, in order.
        cache_bytes: memory for decoded clips (uint8, already at `size`, or `crop_from`). Clips are kept until it is
            full and never dropped; those that do not fit are decoded each time. The batches are the same either way.

    Returns:
        Iterator of dicts: `video` float32 in [-1, 1] `[batch, frames, height, width, 3]`, `caption` list of
        str, and what `encode_caption` returns.

    Raises:
        ValueError: arguments out of range, an empty source, or a first record that lacks a field.
        VideoError: a clip that is undecodable, too short or smaller than `size`, or `crop_from`. The first records' are
            found here, others when their batch is asked for.
    """
    sources = source.sources if isinstance(source, Mixture) else (source,)
    weights = source.weights if isinstance(source, Mixture) else (1,)
    for records in sources:
        _check_records(records)
    _check_arguments(start_step, caption_dropout, flip_probability, image_share, num_threads)
    _check_hosts("batch_size", batch_size, process_index, process_count)
    _check_crop(crop_from, size)
    loader = ClipLoader(fps, crop_from or size, cache_bytes)

    def stream(frames: int, batch_size: int, first_batch: int, number: int) -> Iterator[dict[str, Any]]:
        """Batches of one length of clip, from the one that has the number `first_batch` among them."""

        def to_example(indexed_record: tuple[int, int, Record], rng: np.random.Generator) -> dict[str, Any]:
            part, index, record = indexed_record
            # Drawn first, so that whether a caption is dropped does not depend on the clip's length.
            drop = rng.random() < caption_dropout
            caption = as_text(record["caption"])
            video = loader.load((part, index), record, frames, rng)
            # A dropped caption forbids too: the picture with its writing is the same.
            if flip_probability and rng.random() < flip_probability and may_flip(caption):
                video = video[:, :, ::-1]
            if crop_from:  # drawn last: what else is drawn of a clip does not depend on it
                video = random_crop(video, size, rng)
            return {"video": video, "caption": "" if drop else caption}

        for part, records in enumerate(sources):  # bad settings fail here, not in a thread
            to_example((part, 0, records[0]), np.random.default_rng(0))
        seeds = [(seed + _SEED_STRIDE * (number * len(sources) + part)) % 2**32 for part in range(len(sources))]
        parts = [_endless(part, records, seeds[part], shuffle) for part, records in enumerate(sources)]
        mixed = grain.MapDataset.mix(parts, weights).seed(seeds[0]) if len(parts) > 1 else parts[0]
        # The randomness belongs to the position in the global stream; hosts choose their positions after it.
        examples = mixed.random_map(to_example)
        local = batch_size // process_count
        positions = grain.MapDataset.range(first_batch * local, sys.maxsize)

        def to_global(position: int) -> int:
            batch, row = divmod(position, local)
            return batch * batch_size + process_index * local + row

        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * local)
        elements = positions.map(lambda position: examples[to_global(position)]).to_iter_dataset(options)
        return (_to_batch(batch, encode_caption) for batch in elements.batch(local, batch_fn=list))

    share = Fraction(image_share).limit_denominator(10**6)
    if not share:
        return stream(frames, batch_size, start_step, 0)
    _check_hosts("image_batch_size", image_batch_size, process_index, process_count)
    before = _image_batches_before(start_step, share)
    images, clips = stream(1, image_batch_size, before, 1), stream(frames, batch_size, start_step - before, 0)
    return (next(images if is_image_step(step, share) else clips) for step in itertools.count(start_step))


def is_image_step(step: int, image_share: Fraction | float) -> bool:
    """Whether the batch of `step` is of single frames: every `1 / image_share`-th is, from step 0 on."""
    share = Fraction(image_share).limit_denominator(10**6)
    return _image_batches_before(step + 1, share) > _image_batches_before(step, share)


def _image_batches_before(step: int, share: Fraction) -> int:
    return math.ceil(step * share)  # exact: a resumed run counts as an undisturbed one


def prefetch(items: Iterator[Item], place: Callable[[Item], Placed]) -> Iterator[Placed]:
    """Yields `place(item)` of each item, the next one being made in a thread while the last one is in use.

    Double buffering: one placed item more than is in use exists at a time. What `items` or `place` raises, is raised
    where its item is asked for. Close the iterator (`contextlib.closing`) to end the thread.
    """
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        end = object()

        def fetch() -> Any:
            item = next(items, end)
            return end if item is end else place(item)

        ahead = thread.submit(fetch)
        while (placed := ahead.result()) is not end:
            ahead = thread.submit(fetch)
            yield placed


def _endless(part: int, records: Sequence[Record], seed: int, shuffle: bool) -> grain.MapDataset:
    """Part, index and record, epoch after epoch."""
    indexed = grain.MapDataset.source(records).seed(seed)
    indexed = indexed.map_with_index(lambda index, record: (part, index % len(records), record))
    return (indexed.shuffle() if shuffle else indexed).repeat()


def _to_batch(examples: Sequence[dict[str, Any]], encode_caption: EncodeCaption | None) -> dict[str, Any]:
    captions = [example["caption"] for example in examples]
    # Clip by clip: of the whole batch there is one array in float, and no intermediate result.
    video = np.empty((len(examples), *examples[0]["video"].shape), np.float32)
    for row, example in enumerate(examples):
        video[row] = to_float(example["video"])
    batch = {"video": video, "caption": captions}
    return batch | (encode_caption(captions) if encode_caption else {})


def _check_records(records: Sequence[Record]) -> None:
    if not len(records):
        raise ValueError("the data set is empty")
    fields = set(records[0])
    missing = {"caption", "fps"} - fields | (set() if "frames" in fields else {"clip"} - fields)
    if missing:
        raise ValueError(f"records lack the fields {sorted(missing)}; they have {sorted(fields)}")


def _check_arguments(
    start_step: int,
    caption_dropout: float | int,
    flip_probability: float | int,
    image_share: float | int,
    num_threads: int,
) -> None:
    for name, value in (("caption_dropout", caption_dropout), ("flip_probability", flip_probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be 0 to 1, got {value}")
    if not 0 <= image_share < 1:
        raise ValueError(f"image_share must be at least 0 and below 1, got {image_share}; images alone are frames=1")
    if start_step < 0 or num_threads < 1:
        raise ValueError(f"needs start_step >= 0, num_threads >= 1; got {start_step}, {num_threads}")


def _check_crop(crop_from: int, size: int | tuple[int, int]) -> None:
    largest = size if isinstance(size, int) else max(size)
    if crop_from and not crop_from >= largest:
        raise ValueError(f"crop_from={crop_from} is smaller than the crops, size={size}: no crops are crop_from=0")


def _check_hosts(name: str, batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"{name}={batch_size} must be a positive multiple of process_count={process_count}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be 0 to {process_count - 1}")
