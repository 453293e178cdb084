"""One process of a run on several hosts: answers with a hash of each *global* batch, put together on the devices.

`test_batches.py` starts several of this file: `one_of_several_loaders.py FIRST_STEP STEPS`.
"""

import hashlib
import itertools
import sys
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils
from processes import answer

from lumiere_jax.data.input_pipeline import make_batches, prefetch
from lumiere_jax.data.mixture import Mixture
from lumiere_jax.data.video_io import encode_mp4
from lumiere_jax.distributed.mesh import initialize, make_mesh
from lumiere_jax.distributed.partitioning import shard_batch


def records(name: str, count: int) -> list[dict]:
    rng = np.random.default_rng(count)
    clips = [rng.integers(0, 256, (6, 8, 8, 3), np.uint8) for _ in range(count)]
    return [
        {"clip": encode_mp4(clip, 8, lossless=True), "caption": f"{name} {number}", "fps": 8.0}
        for number, clip in enumerate(clips)
    ]


def batches(first_step: int, **hosts: int) -> Iterator[dict[str, np.ndarray]]:
    """A mixture with everything that draws at random or counts; captions as character codes."""

    def codes(captions: list[str]) -> dict[str, np.ndarray]:
        return {"text": np.array([[*caption.ljust(8).encode()] for caption in captions], np.int32)}

    for batch in make_batches(
        Mixture((records("a", 7), records("b", 3)), (0.7, 0.3)),
        batch_size=4,
        frames=3,
        fps=8,
        size=8,
        seed=5,
        start_step=first_step,
        caption_dropout=0.3,
        flip_probability=0.5,
        image_share=0.25,
        image_batch_size=8,
        encode_caption=codes,
        **hosts,
    ):
        yield {"video": batch["video"], "text": batch["text"]}


def digest(batch: dict[str, np.ndarray]) -> str:
    video, text = np.asarray(batch["video"]), np.asarray(batch["text"])
    return f"batch {video.shape} {hashlib.sha256(video.tobytes() + text.tobytes()).hexdigest()}"


def main(first_step: int, steps: int) -> None:
    initialize()
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    placed = prefetch(batches(first_step, **hosts), partial(shard_batch, make_mesh()))
    for batch in itertools.islice(placed, steps):
        answer(digest(multihost_utils.process_allgather(batch, tiled=True)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
