"""A run's curves as SVG that a web page holds inline: it takes the page's font and its colours, light or dark."""

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lumiere_jax.train_history import Record, curve

# Colours that matplotlib writes and the page's style replaces: text and axes, grid, then one for each line.
_INK, _GRID, *_LINES = "#010101", "#020202", "#030301", "#030302", "#030303", "#030304"
_VARIABLES = {_INK: "currentColor", _GRID: "var(--grid)"} | {
    colour: f"var(--line-{number})" for number, colour in enumerate(_LINES)
}
_POINTS = 400  # of a line; longer ones are drawn as means over equal parts
_SMOOTH_FROM = 40  # points, from which on a noisy line is drawn thin, with a running mean over a twentieth of it
_NOT_DRAWN = {"step", "time"} | {
    f"train/{name}" for name in ("steps_per_second", "smoothed_loss", "is_finite", "is_spike")
}
_LOG_RATIO = 30  # of largest to smallest value, from which on the axis is logarithmic


# What `validation_step` returns beside the loss, to be compared with it.
COMPARED = {
    "image_model_loss": "the image model, frame by frame",
    "teacher_loss": "the teacher, with as few steps",
    "text_alone_loss": "where nothing of the clip is given",
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """What one picture shows."""

    title: str
    note: str
    names: Mapping[str, str]  # label to name in the history
    is_noisy: bool = False
    is_share: bool = False  # values of 0 to 1, shown in percent
    from_zero: bool = False  # a linear axis from zero on
    spread: str = ""  # prefix of names: all of them as a range and their median, in place of `names`


CHARTS = (
    Chart(
        "Validation loss",
        "Held-out clips, always the same noise at the same levels: the number that falls.",
        {
            "model": "validation/loss",
            **{label: f"validation/{name}" for name, label in COMPARED.items()},
        },
    ),
    Chart("Training loss", "Other clips, noise and levels at every step.", {"loss": "train/loss"}, is_noisy=True),
    Chart("Gradient norm", "Before clipping.", {"norm": "train/gradient_norm"}, is_noisy=True),
    Chart("Learning rate", "", {"rate": "train/learning_rate"}, from_zero=True),
    Chart(
        "Gate norms",
        "Norms of the inflation blocks' projections, which start at zero.",
        {},
        spread="gate_norms/",
        from_zero=True,
    ),
    Chart(
        "Throughput",
        "Training alone, without validation, checkpoints and previews.",
        {"clips/s": "train/clips_per_second", "images/s": "train/images_per_second"},
        is_noisy=True,
        from_zero=True,
    ),
    Chart(
        "Use of time",
        "Waiting: the devices idle because no batch is ready.",
        {"waiting for data": "train/data_wait_share", "model FLOP utilisation": "train/model_flop_utilisation"},
        is_share=True,
    ),
    Chart(
        "Guards",
        "Since the run began: spikes of the loss, and updates that were not made.",
        {"spikes": "train/spikes", "left out": "train/skipped"},
        from_zero=True,
    ),
)


def charts_of(records: Sequence[Record]) -> list[Chart]:
    """The charts for which there are values; what was measured beside them has a chart of its own."""
    names = dict.fromkeys(name for record in records for name in record)
    known = {name for chart in CHARTS for name in chart.names.values()} | _NOT_DRAWN
    spreads = tuple(chart.spread for chart in CHARTS if chart.spread)
    others = [
        Chart(name.replace("/", ": ").replace("_", " ").capitalize(), "", {"value": name}, is_noisy=True)
        for name in names
        if name not in known and not name.startswith(spreads)
    ]
    return [chart for chart in (*CHARTS, *others) if lines_of(chart, records)]


def lines_of(chart: Chart, records: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label to steps and values, of the lines of a chart that have any; of a spread median, lowest and highest."""
    if not chart.spread:
        lines = {label: curve(records, name) for label, name in chart.names.items()}
        return {label: (np.array(x), np.array(y, float)) for label, (x, y) in lines.items() if x}
    spreads = [
        (record["step"], [value for name, value in record.items() if name.startswith(chart.spread)])
        for record in records
    ]
    spreads = [(step, values) for step, values in spreads if values]
    if not spreads:
        return {}
    steps = np.array([step for step, _ in spreads])
    of = {"median": np.median, "lowest": np.min, "highest": np.max}
    return {label: (steps, np.array([reduce(values) for _, values in spreads])) for label, reduce in of.items()}


def draw(chart: Chart, records: Sequence[Record]) -> str:
    """An `<svg>` element."""
    import matplotlib  # not before there is something to draw
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": chart.title,  # ids that no other chart of the page has
        "font.size": 9,
        **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}color": _INK for part in ("label", "edge")},
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.7, 2.2))
        axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.985, "bottom": 0.12, "top": 0.96})
        _plot(axes, chart, records)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(file.getvalue())


def _plot(axes, chart: Chart, records: Sequence[Record]) -> None:
    import matplotlib.ticker

    lines = {label: _shortened(*line) for label, line in lines_of(chart, records).items()}
    if chart.spread:
        (x, low), (_, high) = lines.pop("lowest"), lines.pop("highest")
        axes.fill_between(x, low, high, color=_LINES[0], alpha=0.2, linewidth=0)
    for colour, (x, y) in zip(_LINES, lines.values(), strict=False):
        is_smoothed = chart.is_noisy and len(x) >= _SMOOTH_FROM
        if is_smoothed:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
            y = _running_mean(y, len(x) // 20)
        marker = "o" if np.isfinite(y).sum() < _SMOOTH_FROM / 2 else None
        axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=3)
    values = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()])
    if chart.is_share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    elif chart.from_zero:
        axes.set_ylim(bottom=0)
    elif len(values) and values.min() > 0 and values.max() > _LOG_RATIO * values.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    axes.grid(color=_GRID, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0)
    axes.set_axisbelow(True)


def _shortened(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= _POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _POINTS)
    # A part with a value that is not finite is a gap: it shall be seen.
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Centred, over what there is at the ends, without what is not finite."""
    window, finite = np.ones(2 * (width // 2) + 1), np.isfinite(y)
    total = np.convolve(np.where(finite, y, 0.0), window, "same")
    count = np.convolve(finite.astype(float), window, "same")
    return np.where(finite, total / np.maximum(count, 1.0), math.nan)


def _for_page(svg: str) -> str:
    """Without what belongs to a file of its own, without ids that nothing refers to, in the page's font and colours."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|font-family: [^;]*;", "", svg, flags=re.DOTALL)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    svg = re.sub(r"<svg [^>]*>", f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">', svg, count=1)
    referred = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", svg)
    return re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], svg)
