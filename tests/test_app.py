"""The page: each tab makes a clip in a real browser; what forms lack; what is not served."""

import contextlib
import dataclasses
import gc
import io
import json
import urllib.error
import urllib.parse
import urllib.request
import warnings

import numpy as np
import pytest
from browser import driven_browser
from flax import nnx
from marked_clips import said_in
from PIL import Image
from random_runs import random_run

from lumiere_jax import app, app_tasks
from lumiere_jax.app_tasks import Choices, Models
from lumiere_jax.data.video_io import decode_video, to_uint8, write_mp4
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.stylized_generation import spatial_layers_hash
from lumiere_jax.pipelines.video_editing import image_model_of
from lumiere_jax.provenance.metadata import COMPOSITE

# Gradio's own warnings would be errors here.
pytestmark = pytest.mark.filterwarnings("ignore")

CHOICES = Choices("a red circle", steps=2, guidance=2.0)


@pytest.fixture(scope="module")
def models():
    base = random_run()
    image = image_model_of(base)
    config = image.config.copy_and_resolve_references()
    config.style = {"base": "", "zoom": 1.5, "base_unet": spatial_layers_hash(base)}
    unet = nnx.merge(*nnx.split(image.model.unet))
    unet.conv_in.bias = nnx.Param(unet.conv_in.bias[...] + 1.0)
    style = dataclasses.replace(image, config=config, model=TextToVideo(image.model.text_encoder, unet))
    return Models(base, styles={"ink": style}, super_resolution=[random_run(super_resolution=True)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory, draw = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    blocks = draw.integers(0, 255, (8, 3, 3, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    Image.fromarray(blocks[0]).save(directory / "image.png")
    write_mp4(directory / "video.mp4", blocks, 8, lossless=True)
    return directory


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    pytest.importorskip("gradio", reason="needs Gradio")
    page = app.launch(models, tmp_path_factory.mktemp("clips"))
    yield page.local_url.rstrip("/")
    page.close()
    # What the server leaves open is closed here, and is no other test's error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del page
        gc.collect()


@pytest.fixture(scope="module")
def browser():
    with driven_browser() as opened:
        yield opened


def fetched(address):
    with urllib.request.urlopen(address) as response:
        return response.read()


def painted(height=48, width=48):
    """As the brush gives it: the left half is painted over."""
    stroke = np.zeros((height, width, 4), np.uint8)
    stroke[:, : width // 2, 3] = 255
    return {"layers": [stroke]}


# ---------------------------------------------------------------- What the tabs make, without the page


def test_known_pixels_are_in_the_clip_at_both_sizes(models, files, tmp_path):
    choices = dataclasses.replace(CHOICES, enlarge=True)
    job = app_tasks.image_to_video(models, choices, str(files / "image.png"), None)
    assert job.task.given.mask.shape == (4, 32, 32, 1)
    made = app_tasks.make(models, choices, job, tmp_path)
    assert json.loads(made["json"].read_text())["task"] == "image_to_video"
    assert said_in(made["sheet"])[2] == said_in(made["mp4"])[2] == COMPOSITE
    sheet = np.asarray(Image.open(made["sheet"]))
    assert sheet.shape == (2 * 16 + 2, 4 * 16 + 3 * 2, 3)
    np.testing.assert_array_equal(sheet[:16, :16], sheet[18:, :16])  # the given frame, and below it the made one
    shown = app_tasks.make(models, CHOICES, dataclasses.replace(job, task=job.task), tmp_path / "small")
    assert shown["mp4"].name == "000_a_red_circle.mp4"
    assert made["mp4"].name == "000_a_red_circle_high_resolution.mp4"


def test_painted_parts_are_made(models, files):
    job = app_tasks.cinemagraph(models, CHOICES, str(files / "image.png"), painted())
    mask = job.task.given.mask[..., 0]
    assert mask[0].all()
    np.testing.assert_array_equal(mask[1:], np.broadcast_to(np.arange(16) >= 8, (3, 16, 16)))
    image = np.asarray(Image.open(files / "image.png")).reshape(16, 3, 16, 3, 3).mean((1, 3))
    np.testing.assert_allclose(job.task.given.video[2, :, 8:], image[:, 8:] / 127.5 - 1, atol=1e-5)
    assert job.task.zero_shot
    assert job.task.paste_known


def test_inpaint_and_outpaint(models, files):
    video = str(files / "video.mp4")
    hole = app_tasks.inpaint(models, CHOICES, video, painted()).task.given
    np.testing.assert_array_equal(hole.mask[..., 0], np.broadcast_to(np.arange(16) >= 8, (4, 16, 16)))
    border = app_tasks.outpaint(models, CHOICES, video, 0.5, 0.5, 0, 1).task.given
    assert border.mask.shape == (4, 16, 16, 1)
    np.testing.assert_array_equal(np.argwhere(border.mask[0, ..., 0]).min(0), [4, 0])
    np.testing.assert_array_equal(np.argwhere(border.mask[0, ..., 0]).max(0), [11, 7])


def test_a_learned_conditional_model_is_not_led_by_replacement(models, files):
    conditional = random_run(conditional=True)
    both = Models(models.base, conditional)
    job = app_tasks.cinemagraph(both, CHOICES, str(files / "image.png"), painted())
    assert (job.run, job.task.zero_shot) == (conditional, False)
    assert app_tasks.text_to_video(both, CHOICES).run is models.base


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda models, _: Choices("  "), "The prompt is empty"),
        (lambda models, _: Choices("a", steps=101), "steps=101: give a number from 1 to 100"),
        (lambda models, _: Choices("a", seed=-1), "seed=-1: give a number from 0"),
        (lambda models, _: Choices("a", guidance=float("nan")), "guidance=nan: give a number from 0 to 20"),
        (lambda models, _: Choices("a", seed=None), "seed=None: give a number"),
        (lambda models, _: app_tasks.image_to_video(models, CHOICES, None, None), "No image: give the first one"),
        (lambda models, _: app_tasks.inpaint(models, CHOICES, None, painted()), "No video: give one"),
        (
            lambda models, files: app_tasks.inpaint(models, CHOICES, str(files / "video.mp4"), None),
            "Nothing is painted",
        ),
        (lambda models, _: app_tasks.cinemagraph(models, CHOICES, None, painted()), "No image: give one"),
        (
            lambda models, files: app_tasks.cinemagraph(models, CHOICES, str(files / "image.png"), {}),
            "Nothing is painted",
        ),
        (lambda models, _: app_tasks.stylize(models, CHOICES, "oil", 0.5), "style 'oil': choose one of .'ink'."),
        (lambda models, _: app_tasks.stylize(models, CHOICES, "ink", 2), "alpha=2: give a share of the style"),
        (lambda models, files: app_tasks.edit(models, CHOICES, str(files / "video.mp4"), 0, False), "strength=0"),
        (lambda models, files: app_tasks.outpaint(models, CHOICES, str(files / "video.mp4"), 2, 0, 0, 0), "'top': 2"),
        (lambda models, files: app_tasks.edit(models, CHOICES, str(files / "image.png"), 0.5, False), "gives 1 frames"),
        (lambda models, _: Models(models.super_resolution[0]), "is no Space-Time U-Net's run"),
        (lambda models, _: Models(models.base, models.base), "is no conditional model"),
        (lambda models, _: Models(models.base, styles={"a": models.base}), "is no style but"),
        (lambda models, _: Models(models.base, super_resolution=[models.base]), "is no super-resolution run"),
    ],
)
def test_what_cannot_be_made(models, files, make, message):
    with pytest.raises(ValueError, match=message):
        make(models, files)


# ---------------------------------------------------------------- The page, in a browser


@pytest.mark.parametrize("tab", ["Text", "Image to video", "Inpaint", "Outpaint", "Cinemagraph", "Stylize", "Edit"])
def test_each_tab_makes_a_clip(address, browser, files, tmp_path, tab):
    name = "text_to_video" if tab == "Text" else tab.lower().replace(" ", "_")
    page = browser.new_page(viewport={"width": 1600, "height": 1600})
    page.goto(address)
    page.fill("#prompt textarea", "a red circle")
    page.fill("#seed input", "7")
    page.get_by_role("tab", name=tab, exact=True).click()
    if tab in ("Image to video", "Cinemagraph"):
        where = "#image_still" if tab == "Cinemagraph" else "#image_first"
        page.set_input_files(f"{where} input[type=file]", files / "image.png")
        page.wait_for_selector(f"{where} img")
    if tab in ("Inpaint", "Outpaint", "Edit"):
        page.set_input_files(f"#video_{name} input[type=file]", files / "video.mp4")
        page.wait_for_selector(f"#video_{name} video")
    if tab in ("Inpaint", "Cinemagraph"):
        _paint(page, f"#paint_{name}")
    page.click(f"#make_{name}")
    page.wait_for_selector("#files a", timeout=60_000)
    assert page.inner_text("#status").startswith("Seed 7, 4 frames: a red circle")
    page.wait_for_function("document.querySelector('#clip video').videoWidth > 0")
    for part in ("sheet", "xt"):
        page.wait_for_function(f"document.querySelector('#{part} img').naturalWidth > 0")
    links = {
        link.rpartition(".")[2]: link for link in page.locator("#files a").evaluate_all("all => all.map(a => a.href)")
    }
    assert set(links) == {"mp4", "gif", "json"}
    made = json.loads(fetched(links["json"]))
    assert (made["seed"], made["prompt"], made.get("task", "text_to_video")) == (7, "a red circle", name)
    (tmp_path / "clip.mp4").write_bytes(fetched(links["mp4"]))
    assert len(decode_video(tmp_path / "clip.mp4")[0]) == 4
    if tab in ("Image to video", "Inpaint", "Cinemagraph", "Edit"):
        sheet = page.locator("#sheet img").get_attribute("src")
        shown = np.asarray(Image.open(io.BytesIO(fetched(sheet))).convert("RGB")).astype(float)
        of_image = tab in ("Image to video", "Cinemagraph")
        image = np.asarray(Image.open(files / "image.png")) if of_image else decode_video(files / "video.mp4")[0][0]
        expected = image.reshape(16, 3, 16, 3, 3).mean((1, 3))
        near = np.abs(shown[:16, :16] - expected).mean(-1) < 8
        assert near.mean() > (0.05 if tab == "Inpaint" else 0.99)  # the brush is wide
    page.close()


def _paint(page, editor):
    """One stroke with the brush, down the left of the image."""
    canvas = page.locator(f"{editor} canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the image comes onto the canvas
    brush = page.locator(f"{editor} button[title*=Brush], {editor} button[aria-label*=Brush]").first
    if brush.count():
        brush.click()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.45
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 8):
        page.mouse.move(x + 3 * step, y + 3 * step)
    page.mouse.up()
    page.wait_for_timeout(1000)


def test_what_is_wrong_is_told_on_the_page(address, browser):
    page = browser.new_page()
    page.goto(address)
    page.fill("#prompt textarea", " ")
    page.click("#make_text_to_video")
    page.get_by_text("The prompt is empty").wait_for(timeout=30_000)
    page.close()


def test_only_its_own_files_are_served(address, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for path in ("/etc/passwd", f"{tmp_path}/secret.txt", "setup.py", "../../etc/passwd", "lumiere_jax/app.py"):
        with pytest.raises(urllib.error.HTTPError) as error:
            fetched(f"{address}/gradio_api/file={urllib.parse.quote(path)}")
        error.value.close()
        assert error.value.code in (403, 404)


def test_files_of_the_machine_cannot_be_named_as_uploads(address, tmp_path):
    """By its interface, past the page's own upload."""
    Image.new("RGB", (16, 16)).save(tmp_path / "private.png")
    image = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    data = json.dumps({"data": ["a red circle", 0, 2, 2.0, False, image, None]}).encode()
    request = urllib.request.Request(
        f"{address}/gradio_api/call/image_to_video", data, {"Content-Type": "application/json"}
    )
    with contextlib.suppress(urllib.error.HTTPError):  # refused at once is as good
        event = json.loads(fetched(request))["event_id"]
        told = fetched(f"{address}/gradio_api/call/image_to_video/{event}").decode()
        assert "event: error" in told
        assert "event: complete" not in told


def test_it_answers_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


def test_the_predictions_come_while_sampling_goes_on(models, tmp_path):
    seen = []
    app_tasks.make(models, CHOICES, app_tasks.text_to_video(models, CHOICES), tmp_path, seen.append)
    assert [frame.shape for frame in seen] == [(1, 16, 16, 3)] * 2
    third = np.asarray(Image.open(tmp_path / "000_a_red_circle_sheet.png"))[:, 36:52]
    np.testing.assert_array_equal(to_uint8(np.asarray(seen[-1][0])), third)
