"""The tasks of the sampling command: flags and files to conditions, and one of them whole."""

import itertools
import json
import types

import numpy as np
import pytest
from PIL import Image
from random_runs import random_run, write_run
from small_runs import command

from lumiere_jax import sample_tasks
from lumiere_jax.data.video_io import decode_video, to_uint8, write_mp4
from lumiere_jax.diffusion.condition import keyframes
from lumiere_jax.pipelines.super_resolution import super_resolve
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.provenance.metadata import COMPOSITE, SOURCE_TYPE
from lumiere_jax.sample import sample


class Flags(types.SimpleNamespace):
    """Parsed flags, as far as `sample_tasks` reads them."""

    def __init__(self, task, **given):
        names = ("image", "video", "mask", "border", "strength", "width", "style")
        unset = dict.fromkeys(names) | {
            "alpha": ["0", "1"],
            "int8": False,
            "keyframe": [],
            "frame_by_frame": False,
            "zero_shot": False,
            "resample": 1,
            "paste_known": False,
        }
        super().__init__(task=task, unset=unset, **unset | given)

    def __getitem__(self, name):
        return types.SimpleNamespace(value=getattr(self, name), default=self.unset[name])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images, a mask and a video of 24x48 pixels and 16 frames at 8 per second."""
    directory, draw = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    blocks = draw.integers(0, 255, (18, 3, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    for name, image in (("first", blocks[0]), ("last", blocks[1])):
        Image.fromarray(image).save(directory / f"{name}.png")
    mask = np.zeros((24, 48), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save(directory / "mask.png")
    write_mp4(directory / "video.mp4", blocks[2:], 8, lossless=True)
    return directory


@pytest.fixture(scope="module")
def run():
    return random_run(conditional=True)


def read(monkeypatch, run, task, frames=4, height=12, factor=1, **given):
    monkeypatch.setattr(sample_tasks, "FLAGS", Flags(task, **given))
    sample_tasks.check_task_flags()
    return sample_tasks.read_task(run, frames=frames, height=height, factor=factor)


def test_image_to_video(monkeypatch, run, files):
    first, last = files / "first.png", files / "last.png"
    task = read(monkeypatch, run, "image_to_video", image=first, keyframe=[f"3:{last}"], zero_shot=True, resample=3)
    assert (task.given.mask.shape, task.size) == ((4, 12, 24, 1), (12, 24))
    assert task.given.mask[:, 0, 0, 0].tolist() == [1, 0, 0, 1]
    small = np.asarray(Image.open(last)).reshape(12, 2, 24, 2, 3).mean((1, 3))
    np.testing.assert_allclose(task.given.video[3], small / 127.5 - 1, atol=1e-5)
    assert task.choices() == {"given": task.given, "zero_shot": True, "resample": 3}


def test_inpaint_and_cinemagraph(monkeypatch, run, files):
    inpaint = read(monkeypatch, run, "inpaint", video=files / "video.mp4", mask=files / "mask.png")
    cinemagraph = read(monkeypatch, run, "cinemagraph", image=files / "first.png", mask=files / "mask.png")
    left = np.broadcast_to(np.arange(24) < 12, (4, 12, 24))
    np.testing.assert_array_equal(inpaint.given.mask[..., 0], left)
    np.testing.assert_array_equal(cinemagraph.given.mask[1:, ..., 0], left[1:])
    assert cinemagraph.given.mask[0].all()
    frames, _ = decode_video(files / "video.mp4")
    small = frames[:4].reshape(4, 12, 2, 24, 2, 3).mean((2, 4))
    np.testing.assert_allclose(inpaint.given.video, small / 127.5 - 1, atol=1e-5)


def test_outpaint(monkeypatch, run, files):
    border = ["0.25", "0", "0.1", ".3"]
    task = read(monkeypatch, run, "outpaint", video=files / "video.mp4", border=border, height=16)
    assert task.size == (16, 40)  # 12x24 inside: 3/4 of the height, 6/10 of the width
    inside = np.zeros((16, 40))
    inside[4:, 4:28] = 1
    np.testing.assert_array_equal(task.given.mask[2, ..., 0], inside)


def test_edit(monkeypatch, run, files):
    task = read(monkeypatch, run, "edit", video=files / "video.mp4", strength=0.4, frame_by_frame=True)
    assert (task.original.shape, task.size) == ((4, 12, 24, 3), (12, 24))
    assert task.choices() == {"original": task.original, "start": 0.4}
    assert task.facts() == {
        "task": "edit",
        "video": files / "video.mp4",
        "strength": 0.4,
        "frame_by_frame": True,
        SOURCE_TYPE: COMPOSITE,
    }


def test_what_is_given_is_read_at_the_size_of_the_largest_clips(monkeypatch, run, files):
    task = read(monkeypatch, run, "image_to_video", image=files / "first.png", factor=2)
    image = np.asarray(Image.open(files / "first.png")) / 127.5 - 1
    np.testing.assert_allclose(task.given.video[0], image, atol=1e-6)
    assert task.size == task.choices()["given"].mask.shape[1:3] == (12, 24)
    small = image.reshape(12, 2, 24, 2, 3).mean((1, 3))
    np.testing.assert_allclose(task.given_at((12, 24)).video[0], small, atol=1e-5)
    assert task.given_at((24, 48)) is task.given
    border = ["0.25", "0", "0.1", ".3"]
    task = read(monkeypatch, run, "outpaint", video=files / "video.mp4", border=border, height=16, factor=4)
    inside = np.zeros((16, 40))
    inside[4:, 4:28] = 1
    np.testing.assert_array_equal(task.given.mask[2, ..., 0], inside.repeat(4, 0).repeat(4, 1))
    task = read(monkeypatch, run, "inpaint", video=files / "video.mp4", mask=files / "mask.png", height=6, factor=4)
    hole = np.arange(48) >= 24
    np.testing.assert_array_equal(task.given.mask[0, ..., 0], np.broadcast_to(~hole, (24, 48)))


def test_stylize(monkeypatch, run):
    task = read(monkeypatch, run, "stylize", style="a style", alpha=["0.5", "1"], width=24)
    assert (task.alphas, task.size, task.choices()) == ((0.5, 1.0), None, {})
    assert task.facts() == {"task": "stylize", "style": "a style"}  # generated as a whole
    assert read(monkeypatch, run, "stylize", style="a style").alphas == (0.0, 1.0)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("stylize", {}, "--task=stylize needs --style"),
        ("stylize", {"style": "a", "alpha": ["0.5", "2"]}, "--alpha=0.5,2: give different shares from 0 to 1"),
        ("stylize", {"style": "a", "alpha": ["1", "1.0"]}, "--alpha=1,1.0: give different shares"),
        ("stylize", {"style": "a", "alpha": ["half"]}, "--alpha=half: give different shares"),
        ("stylize", {"style": "a", "int8": True}, "--int8 does not go with --task=stylize"),
        ("edit", {"video": "a.mp4", "strength": 0.5, "style": "a"}, "--style says nothing to --task=edit"),
        ("inpaint", {"video": "a.mp4"}, "--task=inpaint needs --mask"),
        ("outpaint", {}, "--task=outpaint needs --border and --video"),
        ("image_to_video", {"zero_shot": True}, "--task=image_to_video needs --image, or --keyframe"),
        ("text_to_video", {"image": "a.png"}, "--image says nothing to --task=text_to_video"),
        ("edit", {"video": "a.mp4", "strength": 0.5, "mask": "b.png"}, "--mask says nothing to --task=edit"),
        ("edit", {"video": "a.mp4", "strength": 0.5, "width": 8}, "--width=8: --task=edit takes it from the files"),
        ("edit", {"video": "a.mp4", "strength": 1.5}, "--strength=1.5: give a share above 0, and at most 1"),
        ("edit", {"video": "a.mp4", "strength": 0.0}, "--strength=0.0: give a share above 0"),
        ("image_to_video", {"keyframe": ["last.png"]}, "--keyframe=last.png: give INDEX:FILE"),
        ("image_to_video", {"image": "first.png", "keyframe": ["0:last.png"]}, "frame 0 is given already"),
        ("outpaint", {"video": "video.mp4", "border": ["1", "2"]}, "--border=1,2: give four shares"),
        ("outpaint", {"video": "video.mp4", "border": [".5", ".5", "0", "0"]}, "give shares from 0, less than 1"),
        ("inpaint", {"video": "video.mp4", "mask": "gone.png"}, "gone.png"),
    ],
)
def test_flags_that_do_not_fit(monkeypatch, run, files, task, given, message):
    monkeypatch.chdir(files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(monkeypatch, run, task, **given)


def test_the_command(run, files, tmp_path):
    """A cinemagraph, exact outside of its region; and what is said to a model that has not learned conditions."""
    write_run(run, tmp_path / "run")
    options = ["--task=cinemagraph", f"--image={files / 'first.png'}", f"--mask={files / 'mask.png'}", "--paste_known"]
    options += ["--prompt=a red circle", f"--output={tmp_path / 'clips'}", "--height=16", "--frames=4"]
    process = command("sample", f"--checkpoint={tmp_path / 'run'}", *options)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    (sheet,) = (tmp_path / "clips").glob("*_sheet.png")
    frames = np.asarray(Image.open(sheet))
    assert frames.shape[0] == 16
    left = to_uint8(sample_tasks.image_for(files / "first.png", (16, 32)))[:, :16]
    columns = range(0, frames.shape[1], frames.shape[1] // 4 + 1)
    for column in columns:
        np.testing.assert_array_equal(frames[:, column : column + 16], left)
    moving = [frames[:, column + 16 : column + 32].astype(int) for column in columns]
    assert all(np.abs(now - before).mean() > 1 for before, now in itertools.pairwise(moving))
    made = json.loads(next((tmp_path / "clips").glob("*.json")).read_text())
    assert (made["task"], made["image"], made["paste_known"]) == ("cinemagraph", str(files / "first.png"), True)


def test_what_is_given_is_enlarged_as_it_is(run, tmp_path):
    """And not as the base model came near to it, which is what its own files show."""
    image = np.random.default_rng(0).uniform(-1, 1, (32, 32, 3)).astype(np.float32)
    task = sample_tasks.Task("image_to_video", keyframes({0: image}, 4), factor=2)
    large, prompts = random_run(super_resolution=True), ["a red circle"]
    base = sample(run, [large], prompts, tmp_path, seed=0, frames=4, size=(16, 16), task=task)
    np.testing.assert_array_equal(base, sample_videos(run, prompts, given=task.given_at((16, 16))))
    assert np.abs(base[0, 0] - task.given_at((16, 16)).video[0]).max() > 0.1
    pasted = task.given_at((16, 16)).paste(base)
    expected = to_uint8(super_resolve(large, pasted, prompts, given=task.given)[0])
    (sheet,) = tmp_path.glob("*_high_resolution_sheet.png")
    shown = np.asarray(Image.open(sheet))
    for frame in range(4):
        np.testing.assert_array_equal(shown[:, 34 * frame : 34 * frame + 32], expected[frame])
    np.testing.assert_array_equal(expected[0], to_uint8(image))
