"""The pairs of a study: for each prompt the clip of one method and that of another."""

import json
import os
import pathlib
from typing import NamedTuple

from lumiere_jax.evaluation.clip_files import find_clips


class Pair(NamedTuple):
    """Two methods' clips of one prompt."""

    prompt: str
    a: pathlib.Path
    b: pathlib.Path


def read_pairs(
    a: str | os.PathLike[str], b: str | os.PathLike[str], prompts_file: str | os.PathLike[str], pattern: str = "*.mp4"
) -> list[Pair]:
    """The first prompt with the first clip of each directory by name, and so on.

    Args:
      a, b: directories of clips, as `sample` or `evaluate` writes them.
      prompts_file: a prompt on each line; empty lines do not count.
      pattern: of the clips' names.

    Raises:
      ValueError: there are not as many clips of each method as prompts, or a clip's sidecar tells another prompt.
      OSError: there are no clips or no such file.
    """
    lines = pathlib.Path(prompts_file).read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    clips = {directory: find_clips(directory, pattern) for directory in (a, b)}
    if {len(files) for files in clips.values()} != {len(prompts)}:
        found = ", ".join(f"{directory} has {len(files)} clips" for directory, files in clips.items())
        raise ValueError(
            f"{prompts_file} has {len(prompts)} prompts, {found} named {pattern!r}: there must be as many of each"
        )
    for files in clips.values():
        for prompt, file in zip(prompts, files, strict=True):
            _check_sidecar(file, prompt)
    return [Pair(*pair) for pair in zip(prompts, clips[a], clips[b], strict=True)]


def _check_sidecar(clip: pathlib.Path, prompt: str) -> None:
    sidecar = clip.with_suffix(".json")
    if not sidecar.exists():
        return
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{sidecar} is no JSON: {error}") from None
    told = facts.get("prompt", prompt) if isinstance(facts, dict) else prompt
    if told != prompt:
        raise ValueError(f"{clip} was made for the prompt {told!r}, and the line of its place says {prompt!r}")
