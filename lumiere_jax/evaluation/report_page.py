"""An evaluation's web page: numbers with intervals, clips with their X-T slices, and the protocol, in one file.

Pictures and clips are inside of it, so that it can be sent to people as it is.
"""

import base64
import html
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from lumiere_jax.data.video_io import encode_mp4, write_png
from lumiere_jax.evaluation.result_table import cell
from lumiere_jax.evaluation.xt_slice import xt_slice
from lumiere_jax.html_page import details, facts, flat, page


class Sample(NamedTuple):
    """A clip to be shown, and metadata (see `provenance/metadata.py`) for its files inside of the page."""

    caption: str
    video: UInt8[np.ndarray, "frames height width 3"]
    fps: float
    metadata: Mapping[str, str]


def write_report(file: str | os.PathLike[str], result: Mapping[str, Any], samples: Sequence[Sample]) -> None:
    """Writes the page, whole or not at all.

    Args:
      file: where it goes.
      result: as `result.measured` returns it.
      samples: some of the clips.
    """
    file = pathlib.Path(file)
    models = result.get("models", [])
    title = " + ".join(model["name"] for model in models) or "Clips of a folder"
    body = [
        _header(title, result["protocol"]),
        *(_block(kind, result["results"]) for kind in _kinds(result["results"])),
        _samples(samples),
        "<section><h2>How this was measured</h2>",
        facts(flat(result["protocol"])),
        *(details(f"Model: {model['name']}", facts(model)) for model in models),
        details("Sampling", facts(flat(result.get("sampling", {})))),
        details("Versions", facts(result["versions"])),
        "</section>",
    ]
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(page(f"Evaluation: {title}", body, style=_STYLE), encoding="utf-8")
    partial.replace(file)


def _header(title: str, protocol: Mapping[str, Any]) -> str:
    clips = f"{protocol['clips']:,} clips" + (f" × {protocol['repeats']} repeats" if protocol["repeats"] > 1 else "")
    return f"""<header>
<h1>{html.escape(title)}</h1>
<p>Protocol <b>{html.escape(protocol["name"])}</b> · {clips} of {protocol["frames"]} frames</p>
<p class="quiet">A model made these clips. Its numbers cannot be compared with those of another protocol (below).</p>
</header>"""


def _kinds(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(kind for row in results.values() for kind in row))


def _block(kind: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    of_kind = {name: row[kind] for name, row in results.items() if kind in row}
    measures = dict.fromkeys(measure for row in of_kind.values() for measure in row)
    head = "".join(f'<th scope="col">{html.escape(measure)}</th>' for measure in measures)
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell(row[measure])) if measure in row else ''}</td>" for measure in measures)
        + "</tr>"
        for name, row in of_kind.items()
    )
    return f"""<section><h2>{html.escape(kind.capitalize())}</h2>
<p class="quiet">In brackets: 95 % intervals.</p>
<div class="wide" tabindex="0"><table class="numbers"><tr><th></th>{head}</tr>
{rows}</table></div></section>"""


def _samples(samples: Sequence[Sample]) -> str:
    figures = "\n".join(map(_figure, samples))
    return f"""<section><h2>Clips</h2>
<p class="quiet">The first ones, not chosen. Below each its X-T slice: the middle row of pixels, time downwards.</p>
<div class="clips">
{figures}
</div></section>"""


def _figure(sample: Sample) -> str:
    mp4 = base64.b64encode(encode_mp4(sample.video, sample.fps, metadata=sample.metadata)).decode()
    png = io.BytesIO()
    frames, height = sample.video.shape[:2]
    write_png(png, xt_slice(sample.video, scale=max(1, height // frames)), sample.metadata)
    caption = html.escape(sample.caption)
    return f"""<figure>
<video src="data:video/mp4;base64,{mp4}" autoplay loop muted playsinline controls aria-label="{caption}"></video>
<img src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}" alt="X-T slice of {caption}">
<figcaption>{caption}</figcaption>
</figure>"""


_STYLE = """
.numbers th, .numbers td { padding-right: 1.5rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
.numbers th[scope="col"] { color: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; }
.clips img { display: block; width: 100%; margin-top: .4rem; image-rendering: pixelated; border-radius: .3rem; }
"""
