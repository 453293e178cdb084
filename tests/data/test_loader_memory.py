"""A loader's memory is bounded by its cache and a few batches, whatever the size of the data set."""

import re
import subprocess
import sys

from configs import text_to_image

# The peak is read in a process of its own; getrusage's would begin with what the parent process had.
SCRIPT = """
import itertools, re, sys
import numpy as np
from lumiere_jax.data.input_pipeline import make_batches, prefetch
from lumiere_jax.data.video_io import encode_mp4

clip = encode_mp4(np.full((80, 128, 128, 3), 100, np.uint8), 16)
source = [{"clip": clip, "caption": "a grey wall", "fps": 16.0}] * 320  # 1.2 GB when decoded
batches = make_batches(
    source, batch_size=8, frames=80, fps=16, size=128, seed=0, cache_bytes=int(sys.argv[1])
)
for batch in itertools.islice(prefetch(batches, lambda batch: batch), 40):
    assert batch["video"].shape == (8, 80, 128, 128, 3)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_of_loader(cache_bytes):
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(cache_bytes)], check=False, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    return int(re.fullmatch(r"(\d+)\n", process.stdout)[1]) * 1024


def test_eight_clips_of_80_frames_at_128_pixels_stay_under_two_gigabytes():
    assert peak_of_loader(text_to_image.get_config().dataset.cache_bytes) < 2e9
