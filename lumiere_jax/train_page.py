"""A run's web page, `index.html` in its directory: how far it is, its curves, its latest previews, what it is made of.

It needs no server and no network: it opens from the file, links to the run's other files beside it, and follows a
running training by loading itself again.
"""

import dataclasses
import datetime
import html
import json
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Literal

import ml_collections
import numpy as np

from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.html_page import details, facts, flat, page
from lumiere_jax.train_curves import Chart, charts_of, draw, lines_of
from lumiere_jax.train_history import Record

_RELOAD_SECONDS = 60
_EARLIER_PREVIEWS = 8  # shown as sheets, beside the newest one's clips


@dataclasses.dataclass(frozen=True)
class Status:
    """How a run stands."""

    state: Literal["running", "finished", "stopped"]
    message: str  # why it stopped; may be empty
    step: int  # updates done
    last_step: int  # updates to do in all
    seconds_left: float | None  # None: not known, or not running


def write_page(directory: str | os.PathLike[str], status: Status, records: Sequence[Record]) -> None:
    """Writes `index.html`, whole or not at all, from what is in the run's directory.

    Args:
      directory: of the run. `config.json`, `parameters.txt` and `previews/` are shown where they are there.
      status: how the run stands.
      records: of its history.
    """
    run_dir = RunDirectory(directory)
    partial = run_dir.path / "index.html.partial"
    partial.write_text(_page(run_dir, status, records), encoding="utf-8")
    partial.replace(run_dir.path / "index.html")


def _page(run_dir: RunDirectory, status: Status, records: Sequence[Record]) -> str:
    config = run_dir.read_config()
    title = config.name if config else run_dir.path.resolve().name
    body = [
        _header(title, status),
        _previews(run_dir, config, status),
        _curves(records),
        _latest_values(records),
        _facts(run_dir, config),
        f"<script>{_SCRIPT}</script>",
    ]
    # The title tells, among the browser's tabs, how far the run is.
    reload_seconds = _RELOAD_SECONDS if status.state == "running" else None
    return page(f"{_percent(status)} {title}", body, style=_STYLE, reload_seconds=reload_seconds)


# ---------------------------------------------------------------------------------------------------- how it stands


def _header(title: str, status: Status) -> str:
    said = {
        "running": f"{_duration(status.seconds_left)} left" if status.seconds_left is not None else "has just started",
        "finished": "all steps are done",
        "stopped": "the same command goes on from the newest checkpoint",
    }[status.state]
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    message = f'<p class="message" role="alert">{html.escape(status.message)}</p>' if status.message else ""
    return f"""<header>
<h1>{html.escape(title)}</h1>
<p><span class="state {status.state}">{status.state}</span> step {status.step:,} of {status.last_step:,} · {said}</p>
<progress value="{status.step}" max="{status.last_step}" aria-label="steps done">{_percent(status)}</progress>
{message}
<p class="quiet">written <time datetime="{now.isoformat()}">{now:%Y-%m-%d %H:%M:%S} UTC</time></p>
</header>"""


def _percent(status: Status) -> str:
    return f"{100 * status.step // status.last_step}%"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2880 else f"{minutes / 1440:.1f} days"


# ---------------------------------------------------------------------------------------------------- previews


def _previews(run_dir: RunDirectory, config: ml_collections.ConfigDict | None, status: Status) -> str:
    # Later ones are of an earlier start, which got further than the checkpoint that this one went on from.
    steps = {int(path.name.removeprefix("step_")): path for path in run_dir.previews.glob("step_*")}
    steps = {
        step: steps[step] for step in sorted(steps) if step <= status.step and (steps[step] / "sheet.png").exists()
    }
    if not steps:
        every = config.training.preview_every if config else 0
        first = f"The first ones come at step {min(every, status.last_step):,}." if every else "None are made."
        return f'<section><h2>Previews</h2><p class="quiet">{first}</p></section>'
    newest = max(steps)
    clips = [_clip(run_dir.path, sidecar) for sidecar in sorted(steps[newest].glob("*.json"))]
    earlier = [step for step in steps if step != newest]
    shown = earlier[-_EARLIER_PREVIEWS:]
    sheets = "\n".join(_sheet(run_dir.path, step, steps[step]) for step in reversed(shown))
    more = f'<p class="quiet">The last {len(shown)} of {len(earlier)}.</p>' if len(shown) < len(earlier) else ""
    before = f"<details><summary>Earlier previews</summary>{more}{sheets}</details>" if shown else ""
    return "\n".join(
        [
            f"<section><h2>Previews at step {newest:,}</h2>",
            '<p class="quiet">Generated by this model from these prompts, with the averaged parameters.</p>',
            '<div class="clips">',
            *clips,
            "</div>",
            before,
            "</section>",
        ]
    )


def _clip(root: pathlib.Path, sidecar: pathlib.Path) -> str:
    prompt = html.escape(json.loads(sidecar.read_text())["prompt"]) or "(empty prompt)"
    files = {
        kind: _link(root, sidecar.with_name(sidecar.stem + end))
        for kind, end in {"mp4": ".mp4", "gif": ".gif", "sheet": "_sheet.png", "X-T": "_xt.png"}.items()
    }
    links = " · ".join(f'<a href="{file}">{kind}</a>' for kind, file in files.items())
    return f"""<figure>
<video src="{files["mp4"]}" autoplay loop muted playsinline controls aria-label="{prompt}"></video>
<figcaption>{prompt}<br><small>{links}</small></figcaption>
</figure>"""


def _sheet(root: pathlib.Path, step: int, directory: pathlib.Path) -> str:
    file = _link(root, directory / "sheet.png")
    picture = f'<img src="{file}" loading="lazy" alt="Frames of the previews at step {step:,}, a prompt in each row">'
    return f'<figure class="sheet"><figcaption>step {step:,}</figcaption><a href="{file}">{picture}</a></figure>'


def _link(root: pathlib.Path, file: pathlib.Path) -> str:
    return urllib.parse.quote(file.relative_to(root).as_posix())


# ---------------------------------------------------------------------------------------------------- curves


def _curves(records: Sequence[Record]) -> str:
    charts = charts_of(records)
    if not charts:
        return '<section><h2>Curves</h2><p class="quiet">Nothing is measured yet.</p></section>'
    figures = "\n".join(_chart(chart, records) for chart in charts)
    return f'<section><h2>Curves</h2><div class="charts">\n{figures}\n</div></section>'


def _chart(chart: Chart, records: Sequence[Record]) -> str:
    lines = lines_of(chart, records)
    latest = {label: _number(y[-1], chart.is_share) for label, (_, y) in lines.items()}
    said = ", ".join(f"{label} {value}" for label, value in latest.items())
    if chart.spread:
        legend = _key("line-0", "median", latest["median"])
        legend += _key("range", "range", f"{latest['lowest']} to {latest['highest']}")
    else:
        legend = "".join(_key(f"line-{number}", *item) for number, item in enumerate(latest.items()))
    title = html.escape(chart.title)
    return f"""<figure class="chart" role="group" aria-label="{title} over steps; at last {html.escape(said)}">
<figcaption><h3>{title}</h3><p class="quiet">{html.escape(chart.note)}</p><p>{legend}</p></figcaption>
{draw(chart, records)}
</figure>"""


def _key(mark: str, label: str, value: str) -> str:
    return f'<span class="key"><span class="{mark}"></span>{html.escape(label)} <b>{value}</b></span>'


def _latest_values(records: Sequence[Record]) -> str:
    latest = {name: (value, record["step"]) for record in records for name, value in record.items()}
    rows = {
        name: f"{_number(value)} at step {step:,}"
        for name, (value, step) in latest.items()
        if name not in ("step", "time")
    }
    return details("All values, as last measured", facts(rows)) if rows else ""


def _number(value: float, is_share: bool = False) -> str:
    if not np.isfinite(value):
        return "not finite"
    return f"{value:.1%}" if is_share else f"{value:.4g}"


# ---------------------------------------------------------------------------------------------------- what it is


def _facts(run_dir: RunDirectory, config: ml_collections.ConfigDict | None) -> str:
    parts = ["<section><h2>This run</h2>"]
    files = {
        "config.json": "config",
        "parameters.txt": "parameters",
        "metrics.jsonl": "measured values",
        "image_model/index.html": "the image model that was trained first",
    }
    links = [f'<a href="{file}">{what}</a>' for file, what in files.items() if (run_dir.path / file).exists()]
    parts.append(f"<p>{' · '.join(links)}</p>")
    if config:
        parts.append(details("Config", facts(flat(json.loads(config.to_json_best_effort())))))
        parts.append(details("Versions", facts(run_dir.read_versions())))
    overview = run_dir.path / "parameters.txt"
    if overview.exists():
        text = html.escape(overview.read_text(encoding="utf-8"))
        parts.append(details("Parameters", f'<pre tabindex="0">{text}</pre>'))
    return "\n".join([*parts, "</section>"])


_STYLE = """
.state { display: inline-block; padding: 0 .6rem; margin-right: .25rem; border-radius: 1rem; color: var(--page);
  background: var(--accent); font-weight: 600; }
.finished { background: var(--good); }
.stopped { background: var(--bad); }
.message { padding: .6rem .9rem; border-left: .25rem solid var(--bad); background: var(--card); white-space: pre-wrap; }
progress { width: 100%; height: .5rem; accent-color: var(--accent); }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.sheet { margin: .5rem 0; }
.sheet img { display: block; max-width: 100%; width: 60rem; height: auto; image-rendering: pixelated; }
.chart { display: flex; flex-direction: column; justify-content: space-between; }
.chart svg { width: 100%; height: auto; margin-top: .4rem; color: var(--quiet); font-family: inherit; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
.key { display: inline-block; margin-right: 1rem; font-size: .875rem; }
.key > span { display: inline-block; width: 1.1rem; height: .2rem; margin-right: .4rem; vertical-align: middle;
  border-radius: .1rem; background: var(--line-0); }
.key > .line-1 { background: var(--line-1); }
.key > .line-2 { background: var(--line-2); }
.key > .line-3 { background: var(--line-3); }
.key > .range { height: .7rem; opacity: .3; }
"""

# What the page cannot know when it is written: how long ago that was. A run that was killed says "running" still. And
# who asked for less motion gets clips that wait to be played.
_SCRIPT = """
const written = document.querySelector("time");
const minutes = Math.floor((Date.now() - Date.parse(written.dateTime)) / 60000);
if (minutes >= 1) written.append(` (${minutes} min ago)`);
if (matchMedia("(prefers-reduced-motion: reduce)").matches)
  for (const video of document.querySelectorAll("video")) { video.autoplay = false; video.pause(); }
"""
