"""A run's page in a real browser, from a file, on a made-up run."""

import re

import ml_collections
import numpy as np
import pytest
from browser import needs_browser, open_page

from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.pipelines.results import write_preview
from lumiere_jax.train_curves import CHARTS, charts_of, draw, lines_of
from lumiere_jax.train_page import Status, write_page

PROMPTS = ("a red circle moving left", '<script>console.error("injected")</script> & "quotes"')


def history(steps=60):
    """Records as a run of 20 steps each writes them, of an inflated model with seven blocks."""
    rng = np.random.default_rng(0)
    records = []
    for step in range(20, 20 * steps + 1, 20):
        noise = rng.normal(size=3)
        values = {
            "loss": 0.2 + 30 / (50 + step) + 0.02 * noise[0],
            "gradient_norm": float(np.exp(noise[1])),
            "learning_rate": 1e-3 * step / 1200,
            "clips_per_second": 3.2 + 0.05 * noise[2],
            "steps_per_second": 1.6,
            "data_wait_share": 0.04,
            "model_flop_utilisation": 0.41,
            "spikes": 0.0,
            "is_finite": 1.0,
            "new_thing": 1.0,
        }
        times = {"step": step, "time": 1.7e9 + step}
        records.append(times | {f"train/{name}": value for name, value in values.items()})
        if step % 100 == 0:
            gates = {f"gate_norms/unet/down/{block}": block * step / 1e4 for block in range(7)}
            losses = {"validation/loss": 0.2 + 60 / (90 + step), "validation/image_model_loss": 0.72}
            records.append(times | losses | gates)
    return records


def config():
    fields = {"name": "stunet:demo", "clip": {"fps": 8.0}, "training": {"steps": 1200, "preview_every": 400}}
    return ml_collections.ConfigDict(fields | {"temporal": {"strides": (2, 2, 1)}})


def preview(directory, step):
    time, y, x = np.meshgrid(np.arange(8), np.arange(32), np.arange(32), indexing="ij")
    ball = (x - 4 * time) ** 2 + (y - 16) ** 2 < 36
    clip = np.where(ball[..., None], np.array([0.9, -0.6, -0.6]), np.array([0.1, 0.2, 0.5])).astype(np.float32)
    run = object.__new__(Run)  # without a model: the clips are there already
    vars(run).update(step=step, config=config())
    write_preview(directory / "previews", run, PROMPTS, np.stack([clip, clip[::-1]]))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's directory with a space and a percent sign in its name, which links must survive."""
    directory = tmp_path_factory.mktemp("a run 100%")
    RunDirectory(directory).write_config(config(), {"jax": "0.10.2", "git": "1234"})
    (directory / "parameters.txt").write_text("| trained/unet/conv_in/kernel | (3, 3, 3, 16) |" + " " * 200 + "|\n")
    for step in (400, 800, 1200):
        preview(directory, step)
    write_page(directory, Status("stopped", "KeyError: '<b>'", 1000, 1200, None), history(50))
    return directory


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_page_in_a_browser(workdir, width):
    seen = open_page(workdir / "index.html", width)
    assert seen["console"] == []
    assert seen["content"] <= seen["width"]  # no sideways scrolling
    sources = [source for source, _ in seen["media"]]
    assert all(pixels > 0 for _, pixels in seen["media"]), seen["media"]
    assert [source.split("/")[1] for source in sources] == ["step_000800", "step_000800", "step_000400"]
    assert [source.endswith(".mp4") for source in sources] == [True, True, False]
    assert seen["title"] == "83% stunet:demo"
    for text in (*PROMPTS, "KeyError: '<b>'", "step 1,000 of 1,200", "Validation loss", "temporal.strides", "0.10.2"):
        assert text in seen["text"]


def test_page_needs_nothing_from_elsewhere(workdir):
    page = (workdir / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    files = [link for link in links if not link.startswith("#")]
    assert {"config.json", "parameters.txt"} < set(files)
    assert not [link for link in files if not (workdir / link).exists()]
    assert "url(http" not in page
    assert not list(workdir.glob("*.partial"))


def test_previews_of_steps_that_were_taken_back_are_not_shown(workdir):
    assert (workdir / "previews" / "step_001200").exists()
    assert "step_001200" not in (workdir / "index.html").read_text()


def test_page_of_a_run_that_has_just_started(tmp_path):
    write_page(tmp_path, Status("running", "", 0, 10, None), [])
    page = (tmp_path / "index.html").read_text()
    assert "Nothing is measured yet" in page
    assert "None are made" in page
    RunDirectory(tmp_path).write_config(config(), {})
    write_page(tmp_path, Status("running", "", 0, 10, 7200.0), [])
    page = (tmp_path / "index.html").read_text()
    assert "The first ones come at step 10." in page
    assert "step 0 of 10 · 2 h 0 min left" in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(29.0, "less than a minute"), (3569.0, "59 min"), (3571.0, "1 h 0 min"), (200_000.0, "2.3 days")],
)
def test_time_left(tmp_path, seconds, said):
    write_page(tmp_path, Status("running", "", 1, 10, seconds), [])
    assert f"{said} left" in (tmp_path / "index.html").read_text()


# ------------------------------------------------------------------------------------ curves


def test_every_value_has_a_chart():
    assert [chart.title for chart in charts_of(history())] == [*(chart.title for chart in CHARTS), "Train: new thing"]
    assert charts_of([]) == []
    assert [chart.title for chart in charts_of([{"step": 1, "time": 0.0, "train/loss": 1.0}])] == ["Training loss"]


def test_gates_are_a_median_within_a_range():
    (chart,) = [chart for chart in CHARTS if chart.spread]
    lines = lines_of(chart, history(10))
    np.testing.assert_array_equal(lines["median"][0], [100, 200])
    np.testing.assert_allclose(
        [lines[label][1] for label in ("lowest", "median", "highest")], [[0, 0], [0.03, 0.06], [0.06, 0.12]]
    )


def points(svg):
    """Of each line of the chart, the y of its points, as they lie on the page (down is larger)."""
    paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: var\(--line', svg)
    return [[float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)] for path in paths]


def test_a_line_goes_where_its_values_go():
    loss = next(chart for chart in CHARTS if chart.title == "Validation loss")
    (falling,) = points(draw(loss, [{"step": step, "validation/loss": 1.0 / step} for step in (1, 2, 4)]))
    assert falling == sorted(falling)
    ratio = (falling[1] - falling[0]) / (falling[2] - falling[1])
    assert ratio == pytest.approx(0.5 / 0.25, rel=1e-3)


def test_large_ratios_are_drawn_on_a_logarithmic_axis():
    norm = next(chart for chart in CHARTS if chart.title == "Gradient norm")
    (line,) = points(draw(norm, [{"step": step, "train/gradient_norm": 10.0**-step} for step in range(4)]))
    assert np.diff(line) == pytest.approx(np.full(3, np.diff(line).mean()), rel=1e-3)


def test_long_noisy_lines_are_drawn_short_and_smooth():
    loss = next(chart for chart in CHARTS if chart.title == "Training loss")
    values = np.where(np.arange(5000) % 2, 1.0, 3.0)
    thin, smooth = points(
        draw(loss, [{"step": step, "train/loss": value} for step, value in enumerate(values.tolist())])
    )
    assert max(len(thin), len(smooth)) <= 400
    assert np.ptp(smooth) < np.ptp(thin) / 5


def test_what_is_not_finite_is_a_gap():
    loss = next(chart for chart in CHARTS if chart.title == "Training loss")
    values = [1.0, 2.0, float("nan"), 3.0, 1.0]
    svg = draw(loss, [{"step": step, "train/loss": value} for step, value in enumerate(values)])
    (path,) = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: var\(--line', svg)
    assert path.count("M") == 2
    nothing = [{"step": 1, "train/loss": float("nan")}]
    assert draw(loss, nothing).startswith("<svg")


def test_charts_of_a_page_share_no_id():
    charts = [draw(chart, history()) for chart in charts_of(history())]
    ids = [set(re.findall(r' id="([^"]*)"', chart)) for chart in charts]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for chart, own in zip(charts, ids, strict=True):
        assert set(re.findall(r"#([\w-]+)", chart)) <= own
