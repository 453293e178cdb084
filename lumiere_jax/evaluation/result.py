"""An evaluation's result: what was measured, by which protocol, of what; written, read, and compared."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lumiere_jax.data.video_io import to_uint8, write_contact_sheet
from lumiere_jax.distributed import processes
from lumiere_jax.evaluation.material import Material
from lumiere_jax.evaluation.measures import Row, measures_without_networks
from lumiere_jax.evaluation.network_measures import NetworkMeasures
from lumiere_jax.evaluation.protocol import Protocol, sha256_of_lines
from lumiere_jax.evaluation.report_page import Sample, write_report
from lumiere_jax.pipelines.results import library_versions
from lumiere_jax.provenance.metadata import file_metadata, provenance

_SHOWN, _SHOWN_SIZE = 16, 256  # clips in generated.png and report.html, and pixels of a side


def measured(
    rows: Sequence[Row],
    material: Material,
    protocol: Protocol,
    output: pathlib.Path,
    networks: NetworkMeasures | None,
    facts: Mapping[str, Any],
    *,
    report: bool = True,
) -> dict[str, Any]:
    """Measures rows of clips, and writes what is found, on the first process; the others get no results.

    Args:
      rows: of generated clips; networks measure the last one.
      material: what they are held against.
      protocol: how they were chosen.
      output: the directory for `evaluation.json`, `prompts.txt`, `generated.png` and `report.html`.
      networks: measures that need weights.
      facts: what made the clips, for the result.
      report: whether to write the page, too.

    Returns:
      what `evaluation.json` holds.
    """
    result: dict[str, Any] = {"protocol": dataclasses.asdict(protocol), **facts, "versions": library_versions()}
    if not processes.is_first():
        return result
    reference = [material.reference] if material.reference else []
    result["results"] = {row.name: measures_without_networks(row, material.scenes) for row in (*reference, *rows)}
    if networks and networks.facts():
        result["results"][rows[-1].name]["networks"] = networks.measure(rows[-1], material.reference, material.prompts)
    result = _plain(result)
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (output / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in material.prompts), encoding="utf-8")
    shown = [_reduced(to_uint8(read())) for read in rows[-1].repeats[0][:_SHOWN]]
    # Whoever made the clips of a folder, it was not this.
    made_with = _plain(facts) if facts else {"generator": "unknown"}
    metadata = file_metadata("generated clips", provenance(made_with))
    write_contact_sheet(output / "generated.png", shown, metadata=metadata)
    if not report:
        return result
    captions = [*material.prompts, *[""] * len(shown)]
    samples = [Sample(caption, clip, rows[-1].fps, metadata) for caption, clip in zip(captions, shown, strict=False)]
    write_report(output / "report.html", result, samples)
    return result


def _reduced(video: UInt8[np.ndarray, "frames height width 3"]) -> UInt8[np.ndarray, "frames height width 3"]:
    """At most 256 pixels of a side: sixteen clips of 1024x1024 pixels are gigabytes."""
    factor = -(-max(video.shape[1:3]) // _SHOWN_SIZE)
    return np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in video]) if factor > 1 else video


def protocol_of(
    material: Material,
    row: Row,
    seed: int | None,
    frames: int,
    fps: float | None,
    size: tuple[int, int],
    networks: NetworkMeasures | None,
) -> Protocol:
    """The protocol by which a row of generated clips is measured; `frames`, `fps` and `size` as of `Protocol`."""
    return Protocol(
        name=material.name,
        clips=len(row.repeats[0]),
        repeats=len(row.repeats),
        seed=seed,
        prompts=material.prompts_from,
        prompts_sha256=sha256_of_lines(material.prompts),
        frames=frames,
        fps=fps,
        size=size,
        reference=material.reference_from,
        reference_clips=len(material.reference.repeats[0]) if material.reference else 0,
        reference_fps=material.reference_fps,
        reference_sha256=material.reference_sha256,
        networks=networks.facts() if networks else {},
    )


def _plain(value: Any) -> Any:
    """As JSON has it: tuples as lists, and null for what is not known, for which NaN is no JSON."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(file: str | os.PathLike[str]) -> dict[str, Any]:
    """What `evaluate` wrote.

    Raises:
      ValueError: the file is no such result.
      OSError: it cannot be read.
    """
    text = pathlib.Path(file).read_text(encoding="utf-8")
    try:
        result = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no result of `evaluate`: {error}") from None
    if not isinstance(result, dict) or not {"protocol", "results"} <= result.keys():
        raise ValueError(f"{file} is no result of `evaluate`: it has no protocol and results. Name an evaluation.json")
    return result


def comparison(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows of several results side by side, each by the result's name and its own.

    Args:
      results: by name, as `read_result` gives them.

    Raises:
      ValueError: their protocols differ, with every field that does.
    """
    (first, reference), *others = results.items()
    for name, result in others:
        differing = _differences(reference["protocol"], result["protocol"])
        if differing:
            fields = "\n".join(f"  {field}: {one!r} / {other!r}" for field, (one, other) in differing.items())
            raise ValueError(f"{first} and {name} were measured by different protocols:\n{fields}")
    return {f"{name}: {row}": values for name, result in results.items() for row, values in result["results"].items()}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for field in [*one, *(field for field in other if field not in one)]:
        mine, theirs = one.get(field), other.get(field)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found |= _differences(mine, theirs, f"{prefix}{field}.")
        elif mine != theirs:
            found[prefix + field] = (mine, theirs)
    return found
