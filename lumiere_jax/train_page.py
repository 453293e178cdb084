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
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_collections
import numpy as np

from lumiere_jax.checkpoints.run_directory import RunDirectory
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
    # The title tells, among the browser's tabs, how far the run is.
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_percent(status)} {html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    if status.state == "running":
        head.append(f'<meta http-equiv="refresh" content="{_RELOAD_SECONDS}">')
    body = [
        _header(title, status),
        _previews(run_dir, config, status),
        _curves(records),
        _latest_values(records),
        _facts(run_dir, config),
        f"<script>{_SCRIPT}</script>",
    ]
    lines = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", *body, "</body>", "</html>"]
    return "\n".join(lines) + "\n"


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
    return _details("All values, as last measured", _table(rows)) if rows else ""


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
        parts.append(_details("Config", _table(_flat(json.loads(config.to_json_best_effort())))))
        parts.append(_details("Versions", _table(run_dir.read_versions())))
    overview = run_dir.path / "parameters.txt"
    if overview.exists():
        text = html.escape(overview.read_text(encoding="utf-8"))
        parts.append(_details("Parameters", f'<pre tabindex="0">{text}</pre>'))
    return "\n".join([*parts, "</section>"])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return fields


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def _table(rows: Mapping[str, Any]) -> str:
    cells = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>\n{cells}\n</table>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --quiet: #5c6470; --page: #f6f7f9; --card: #fff; --edge: #dfe3e8;
  --grid: #e6e9ee; --accent: #2257c9; --good: #1a7f45; --bad: #b3261e;
  --line-0: #2257c9; --line-1: #c2560c; --line-2: #1a7f45; --line-3: #8b3fb8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --quiet: #9aa3af; --page: #14161a; --card: #1d2026;
  --edge: #31363f; --grid: #30353d; --accent: #7fa8ff; --good: #5cc98a; --bad: #ff8a80;
  --line-0: #7fa8ff; --line-1: #f2a05c; --line-2: #5cc98a; --line-3: #cf9bf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem) 4rem; max-width: 84rem; color: var(--ink);
  background: var(--page); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.25rem 0 .5rem; font-size: 1.2rem; }
h3 { margin: 0; font-size: 1rem; }
p { margin: .25rem 0; }
a { color: var(--accent); }
.quiet { color: var(--quiet); font-size: .875rem; }
.state { display: inline-block; padding: 0 .6rem; margin-right: .25rem; border-radius: 1rem; color: var(--page);
  background: var(--accent); font-weight: 600; }
.finished { background: var(--good); }
.stopped { background: var(--bad); }
.message { padding: .6rem .9rem; border-left: .25rem solid var(--bad); background: var(--card); white-space: pre-wrap; }
progress { width: 100%; height: .5rem; accent-color: var(--accent); }
figure { margin: 0; min-width: 0; padding: .9rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: .6rem; }
.clips, .charts { display: grid; gap: 1rem; }
.clips { grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
video { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
  background: #000; border-radius: .3rem; }
figcaption small { color: var(--quiet); }
.clips figcaption { margin-top: .5rem; line-height: 1.35; }
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
details { margin: .5rem 0; padding: .6rem .9rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: .6rem; }
summary { cursor: pointer; font-weight: 600; }
table { width: 100%; margin-top: .5rem; border-collapse: collapse; font-size: .875rem; }
th, td { padding: .2rem .5rem .2rem 0; border-top: 1px solid var(--edge); text-align: left; vertical-align: top; }
th { width: 50%; font-weight: 400; color: var(--quiet); }
pre { max-height: 30rem; overflow: auto; font-size: .75rem; line-height: 1.35; overflow-wrap: normal; }
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
