"""Super-resolves 80 frames to 1024x1024 with a narrow network, and prints the most memory that it took, in bytes.

Its process is its own (`test_full_size.py`), for the memory to be its own, too.
"""

import pathlib
import sys

import numpy as np
from random_runs import random_super_resolution_4x

from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.super_resolution import prepare
from lumiere_jax.sample import write_frames

platform.configure()
ready = prepare(random_super_resolution_4x(), (80, 256, 256))
print(ready.line())
video = np.random.default_rng(0).uniform(-1, 1, (1, 80, 256, 256, 3)).astype(np.float32)
frames = ready.frames(video, ["a red circle"])
write_frames(frames, ["a red circle"], 0, "", pathlib.Path(sys.argv[1]), ready.cut.clip, 16.0, {})
# Not getrusage's: that is the parent's, where the process that started this one was larger.
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 2**10)
