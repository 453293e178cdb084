"""Clips that a model makes to be measured: on disk, without loss, resumed where it stopped.

    DIRECTORY/generation.json    what makes them; another model, seed or prompt in the same place is refused
    DIRECTORY/prompts.txt        a line each
    DIRECTORY/base/00000.mp4     lossless RGB, which players may not show; without watermark: it would be measured
    DIRECTORY/large/00000.mp4    the same clips after super-resolution

A clip's noise depends on the seed and its number alone, so that one which was sampled after a restart, in another batch
or on another mesh is the same to rounding; and more clips can be added later.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data.video_io import to_uint8, write_mp4
from lumiere_jax.distributed import processes
from lumiere_jax.pipelines.results import description, library_versions
from lumiere_jax.pipelines.super_resolution import SuperResolution, prepare_chain
from lumiere_jax.pipelines.text_to_video import sample_in_batches
from lumiere_jax.provenance.metadata import file_metadata, provenance


def generate_clips(
    run: Run,
    super_resolution: Sequence[Run],
    prompts: Sequence[str],
    directory: str | os.PathLike[str],
    *,
    seed: int,
    batch_size: int | None = None,
    **choices: Any,
) -> dict[str, list[pathlib.Path]]:
    """Samples the clips that are not there yet; on several processes the first one writes.

    Args:
      run: a text-to-video run.
      super_resolution: super-resolution runs, each for the clips of the one before.
      prompts: one for each clip.
      directory: where the clips go, or lie.
      seed: of the noise.
      batch_size: clips that are sampled at once; None: see `sample_in_batches`.
      **choices: of `sample_videos`, for the base model.

    Returns:
      the files of the base clips, as "base", and of the largest, where there is super-resolution, as "large".

    Raises:
      ValueError: the directory holds clips of something else, or as `sample_in_batches` and `prepare_chain`.
      MemoryError: as `prepare_chain`.
    """
    directory = pathlib.Path(directory)
    models = [_facts_of(each) for each in (run, *super_resolution)]  # on all processes: each has a part of the arrays
    facts = {"models": models, "seed": seed, **choices, "versions": library_versions()}
    kinds = ("base", "large") if super_resolution else ("base",)
    files = {kind: [directory / kind / f"{number:05d}.mp4" for number in range(len(prompts))] for kind in kinds}
    if processes.is_first():
        _claim(directory, facts, prompts, files)
    there = processes.of_first(_complete(files))
    if there < len(prompts):
        batches = sample_in_batches(run, prompts, seed=seed, batch_size=batch_size, first=there, **choices)
        frames, size = choices.get("frames") or run.config.clip.frames, run.config.clip.size
        chain = prepare_chain(super_resolution, (frames, size, size), prompts, clips=len(prompts))
        with tqdm.tqdm(total=len(prompts), initial=there, unit="clip", disable=not processes.is_first()) as bar:
            for sampled in batches:
                clips = dict(zip(kinds, _at_all_sizes(sampled.videos, chain, prompts, there, seed), strict=True))
                if processes.is_first():
                    _write(clips, files, there, run.config.clip.fps, prompts, facts)
                there += len(sampled.videos)
                bar.update(len(sampled.videos))
    processes.wait_for_all("clips to be measured")
    return files


def _facts_of(run: Run) -> dict[str, Any]:
    return {name: value for name, value in description(run).items() if name != "path"}


def _claim(
    directory: pathlib.Path,
    facts: Mapping[str, Any],
    prompts: Sequence[str],
    files: Mapping[str, Sequence[pathlib.Path]],
) -> None:
    """Writes what the clips are made with, or finds it to be the same."""
    for kind in files:
        (directory / kind).mkdir(parents=True, exist_ok=True)
    made_with, texts = directory / "generation.json", directory / "prompts.txt"
    facts = json.loads(json.dumps(facts))
    if made_with.exists():
        found = json.loads(made_with.read_text(encoding="utf-8"))
        before = texts.read_text(encoding="utf-8").splitlines()
        differing = [name for name in sorted({*facts, *found}) if facts.get(name) != found.get(name)]
        if before[: len(prompts)] != list(prompts)[: len(before)]:
            differing.append("prompts")
        if differing:
            raise ValueError(
                f"{directory} holds clips of other {', '.join(differing)} (see generation.json there): give another "
                "output, or remove it"
            )
        prompts = max(before, list(prompts), key=len)
    texts.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    made_with.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _complete(files: Mapping[str, Sequence[pathlib.Path]]) -> int:
    """How many of the first clips are there at all sizes."""
    of_each_clip = list(zip(*files.values(), strict=True))
    missing = (number for number, clip in enumerate(of_each_clip) if not all(file.exists() for file in clip))
    return next(missing, len(of_each_clip))


def _at_all_sizes(
    base: Any, chain: Sequence[SuperResolution], prompts: Sequence[str], first: int, seed: int
) -> list[Any]:
    """The base clips and, where there is super-resolution, the largest ones."""
    videos = base
    for stage in chain:
        videos = stage.videos(videos, prompts[first : first + len(base)], seed=seed, first_number=first)
    return [base, videos] if chain else [base]


def _write(
    clips: Mapping[str, Any],
    files: Mapping[str, Sequence[pathlib.Path]],
    first: int,
    fps: float,
    prompts: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    for kind, videos in clips.items():
        for number, video in enumerate(videos, start=first):
            prompt = prompts[number]
            metadata = file_metadata(prompt, provenance({"prompt": prompt, "number": number, **facts}))
            write_mp4(files[kind][number], to_uint8(video), fps, lossless=True, metadata=metadata)
