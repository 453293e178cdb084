"""What an evaluation's numbers depend on beside the model. Two results are compared only where all of it is the same.

Published distances of videos differ by more than the models do, as each group chose its own clips, frame rate, size and
weights. So the protocol is part of the result (result.py), and results of different ones are not compared.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How clips were chosen and measured.

    Attributes:
      name: moving_shapes, ucf101_zero_shot or folder.
      clips: generated ones, of each repeat.
      repeats: how often all were generated: with `seed`, `seed + 1`, ...
      seed: of the noise, and of prompts that are drawn; None for clips that were there.
      prompts: where they are from.
      prompts_sha256: of all of them, in their order; empty where there are none.
      frames: that are measured of each clip: the central ones.
      fps: at which generated clips are seen; None: each at its own.
      size: (height, width) that networks are given before they resize.
      reference: the real clips: where from.
      reference_clips: how many.
      reference_fps: at which they are seen; None: each at its own.
      reference_sha256: of the names and sizes of their files.
      networks: by measure: the network, the SHA-256 of its weights, and the choices that go with it.
    """

    name: str
    clips: int
    repeats: int
    seed: int | None
    prompts: str
    prompts_sha256: str
    frames: int
    fps: float | None
    size: tuple[int, int]
    reference: str
    reference_clips: int
    reference_fps: float | None
    reference_sha256: str
    networks: Mapping[str, Mapping[str, Any]]


def sha256_of_lines(lines: Sequence[str]) -> str:
    """SHA-256 (hex) of lines, each with its end; "" of none."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() if lines else ""


def sha256_of_files(files: Sequence[pathlib.Path], root: pathlib.Path) -> str:
    """SHA-256 (hex) of the files' names below `root` and their sizes: what tells one collection of videos from another.

    Their bytes are not read: UCF101's are 7 GB.
    """
    return sha256_of_lines([f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in files])
