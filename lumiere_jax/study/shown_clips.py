"""The clips as raters see them: what both methods made, encoded alike, and damaged ones for attention checks.

Evaluation's clips are lossless RGB, which browsers do not play; and two methods' clips must not differ in anything but
what is in them. So each is decoded and encoded again, once, into files named `00000_a`, `00000_b`, `00000_damaged`.
The server never tells these names.
"""

import pathlib
from collections.abc import Collection, Sequence

import numpy as np
import tqdm
from jaxtyping import Float

from lumiere_jax.data.video_io import open_video, to_uint8, write_mp4
from lumiere_jax.evaluation.clip_files import read_clip
from lumiere_jax.evaluation.damages import jittered, shuffled
from lumiere_jax.study.pairs import Pair

Video = Float[np.ndarray, "frames height width 3"]

# Smaller clips are shown in larger pixels: browsers blur small ones, and 4:2:0 mixes the colours of neighbours.
_SMALLEST = 256


def clip_names(pair: int, is_check: bool) -> tuple[str, str]:
    """The two clips of a trial: of methods A and B, or of a check the whole and the damaged one.

    Checks take the clips of A and B in turn, so that neither is seen more often.
    """
    a, b, damaged_clip = (f"{pair:05d}_{kind}" for kind in ("a", "b", "damaged"))
    return ((a, b)[pair % 2], damaged_clip) if is_check else (a, b)


def prepare_clips(
    pairs: Sequence[Pair],
    checked: Collection[int],
    directory: pathlib.Path,
    *,
    seed: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Encodes all clips that are not there yet.

    Args:
      pairs: of the study.
      checked: the pairs for attention checks.
      directory: where the encoded clips go.
      seed: of the damage.
      frames, fps, size: to which both clips of a pair are brought, as in `read_clip`; None: as they are.

    Raises:
      ValueError: a clip cannot be read, or the two of a pair differ in frames, rate or size.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(tqdm.tqdm(pairs, unit="pair", desc="encoding clips", disable=None)):
        names = [*clip_names(number, False), *(clip_names(number, True)[1:] if number in checked else ())]
        files = [directory / f"{name}.mp4" for name in names]
        if all(file.exists() for file in files):
            continue
        rate, clips = _read(pair, frames, fps, size)
        if number in checked:
            clips.append(damaged(clips[number % 2], np.random.default_rng([seed, number])))
        for file, clip in zip(files, clips, strict=True):
            write_mp4(file, _enlarged(clip), rate)


def _read(pair: Pair, frames: int | None, fps: float | None, size: tuple[int, int] | None) -> tuple[float, list[Video]]:
    rates = [fps or _rate(file) for file in (pair.a, pair.b)]
    clips = [read_clip(file, frames=frames, fps=fps, size=size) for file in (pair.a, pair.b)]
    if clips[0].shape != clips[1].shape or abs(rates[0] - rates[1]) > 1e-3:
        told = (
            f"{file} has {clip.shape[0]} frames of {clip.shape[1]}x{clip.shape[2]} at {rate:g} fps"
            for file, clip, rate in zip((pair.a, pair.b), clips, rates, strict=True)
        )
        raise ValueError(
            f"{' and '.join(told)}, by which people would tell the methods: give --frames, --fps and --size, to which "
            "both are brought"
        )
    return rates[0], clips


def _rate(file: pathlib.Path) -> float:
    with open_video(file) as video:
        if video.fps is None:
            raise ValueError(f"{file} does not tell its frames per second: give --fps")
        return video.fps


def damaged(video: Video, rng: np.random.Generator) -> Video:
    """What nobody prefers, also of a clip that stands still (frames in disorder, moved) or is of one colour (noise)."""
    noise = rng.normal(scale=0.4, size=video.shape).astype(np.float32)
    return np.clip(jittered(shuffled(video, rng), rng) + noise, -1, 1)


def _enlarged(video: Video) -> np.ndarray:
    factor = -(-_SMALLEST // min(video.shape[1:3]))
    return to_uint8(video).repeat(factor, axis=1).repeat(factor, axis=2)
