"""The embedded data set: what is drawn, what is said about it, and what TFDS stores."""

import dataclasses
import itertools
import math
import sys

import numpy as np
import pytest

from lumiere_jax.data import moving_shapes, shapes_captions, shapes_rendering, shapes_scene, video_io
from lumiere_jax.data.moving_shapes import MovingShapesConfig, Scene, caption, prepare, prompts, render, scene

SPLITS = ("train", "validation", "held_out")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"), "tiny")


def _scenes(count, **kwargs):
    return [scene(7, index, **kwargs) for index in range(count)]


# Scenes ----------------------------------------------------------------------------------------------------


def test_scene_is_determined_by_seed_and_index():
    first, second = scene(3, 5), scene(3, 5)
    assert first == second
    np.testing.assert_array_equal(render(first, 24, 8, 16), render(second, 24, 8, 16))
    others = {scene(3, 6), scene(4, 5), scene(3, 5, held_out=True)}
    assert len(others | {first}) == 4


def test_scene_survives_json():
    one = scene(0, 1, two_object_probability=1.0)
    assert Scene.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"seed": -1, "index": 0}, "seed"),
        ({"seed": 0, "index": 0, "duration": 0.0}, "duration"),
        ({"seed": 0, "index": 0, "two_object_probability": 1.5}, "two_object_probability"),
    ],
)
def test_scene_refuses_bad_values(kwargs, field):
    with pytest.raises(ValueError, match=field):
        scene(**kwargs)


def test_every_attribute_occurs_in_train_but_no_held_out_combination():
    train = [one for each in _scenes(2500, two_object_probability=0.02) for one in each.objects]
    held_out = [one for each in _scenes(400, held_out=True, two_object_probability=0.02) for one in each.objects]

    def combinations(objects):
        return {(one.shape, one.colour, one.motion) for one in objects}

    assert not combinations(train) & combinations(held_out)
    # 4 x 6 x 7 combinations, of which 1 in 7 is held out; a circle does not visibly spin.
    possible = set(itertools.product(shapes_scene.SHAPES, shapes_scene.COLOURS, shapes_scene.MOTIONS))
    possible -= {("circle", colour, "spinning") for colour in shapes_scene.COLOURS}
    assert combinations(held_out) == {each for each in possible if shapes_scene.is_held_out(*each)}
    assert combinations(train) == {each for each in possible if not shapes_scene.is_held_out(*each)}
    assert {one.direction for one in train} == {*shapes_scene.DIRECTIONS, "none"}
    assert {one.size for one in train} == set(shapes_scene.RADII)
    pairs = {pair for each in possible for pair in itertools.combinations(each, 2)}
    assert {pair for each in combinations(train) for pair in itertools.combinations(each, 2)} == pairs


@pytest.mark.parametrize("duration", [2.0, 5.0])
def test_objects_stay_in_the_frame_as_long_as_the_motion_lasts(duration):
    for one in _scenes(80, duration=duration, two_object_probability=0.3):
        # Drawn on a canvas 1.25 times as wide, no object reaches into the added margin.
        tracks = shapes_scene.trajectory(one, 21, 20 / duration)[: len(one.objects)]
        for moving, track in zip(one.objects, tracks, strict=True):
            wider = track * [0.8, 0.8, 0.8, 1] + [0.1, 0.1, 0, 0]
            covered = shapes_rendering.coverage(moving.shape, wider.astype(np.float32), 80)
            assert covered[:, 8:-8, 8:-8].sum() >= 0.9999 * covered.sum(), moving


def test_two_objects_differ_in_colour_and_never_hide_each_other():
    overlaps = 0
    for one in _scenes(60, two_object_probability=1.0):
        assert len({moving.colour for moving in one.objects}) == 2
        back, front = (
            shapes_rendering.coverage(moving.shape, track, 48)
            for moving, track in zip(one.objects, shapes_scene.trajectory(one, 16, 8), strict=True)
        )
        visible = (back * (1 - front)).sum(axis=(1, 2)) / back.sum(axis=(1, 2))
        assert visible.min() > 0.25
        overlaps += visible.min() < 0.95
    assert overlaps > 5  # Some do occlude.


def test_single_frames_tell_of_the_motion():
    """Without the order of the frames: where they lie, how large and at which angle the object is."""
    tracks = {}
    for one in _scenes(600, two_object_probability=0.0):
        track = shapes_scene.trajectory(one, 16, 8)[0]
        key = one.objects[0].direction if one.objects[0].direction != "none" else one.objects[0].motion
        tracks.setdefault(key, []).append(track)
    frames = {key: np.concatenate(each) for key, each in tracks.items()}
    for name, (unit_x, unit_y) in shapes_scene.DIRECTIONS.items():
        progress = (frames[name][:, 0] - 0.5) * unit_x + (frames[name][:, 1] - 0.5) * unit_y
        assert (progress > 0).mean() > 0.8, name
        assert progress.min() > -0.105, name
    assert frames["growing"][:, 2].max() > 1.5 * max(shapes_scene.RADII.values())
    assert frames["shrinking"][:, 2].min() < 0.6 * min(shapes_scene.RADII.values())
    for key, each in frames.items():
        assert (np.abs(each[:, 3]).max() > 1) == (key == "spinning")


# Rendering -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", shapes_scene.SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.3, 1.1])
def test_coverage_has_the_closed_form_area(shape, angle):
    radius, size = 0.18, 64
    shifts = np.random.default_rng(0).uniform(0.4, 0.6, (8, 2))
    track = np.concatenate([shifts, np.full((8, 1), radius), np.full((8, 1), angle)], axis=1).astype(np.float32)
    areas = shapes_rendering.coverage(shape, track, size).mean(axis=(1, 2))
    if shape == "circle":
        expected = math.pi * radius**2
    else:  # Shoelace formula over tips and notches.
        tips, tip_radius, notch_radius = shapes_scene.POLYGONS[shape]
        turn = np.arange(2 * tips) * np.pi / tips
        x, y = np.where(np.arange(2 * tips) % 2, notch_radius, tip_radius) * radius * (np.cos(turn), np.sin(turn))
        expected = 0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    np.testing.assert_allclose(areas, expected, rtol=0.006)


def test_coverage_matches_supersampling():
    """Brute force: the part of 16 x 16 points in each pixel that lie inside the star's polygon."""
    size, x, y, radius, angle = 32, 0.47, 0.55, 0.3, 0.4
    tips, tip_radius, notch_radius = shapes_scene.POLYGONS["star"]
    turn = angle - np.pi / 2 + np.arange(2 * tips) * np.pi / tips  # Upright: the first tip is at the top.
    reach = np.where(np.arange(2 * tips) % 2, notch_radius, tip_radius) * radius
    corners = np.stack([x + reach * np.cos(turn), y + reach * np.sin(turn)], axis=-1)
    points = np.stack(np.meshgrid(*[(np.arange(size * 16) + 0.5) / (size * 16)] * 2), axis=-1)
    inside = np.zeros(points.shape[:2], bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):  # Even-odd rule.
        crosses = (y0 > points[..., 1]) != (y1 > points[..., 1])
        inside ^= crosses & (points[..., 0] < x0 + (points[..., 1] - y0) * (x1 - x0) / (y1 - y0))
    expected = inside.reshape(size, 16, size, 16).mean(axis=(1, 3))
    covered = shapes_rendering.coverage("star", np.array([[x, y, radius, angle]], np.float32), size)[0]
    assert np.abs(covered - expected).max() < 0.3  # At a tip: inside one pixel the edge is not straight.
    assert np.abs(covered - expected).mean() < 0.005
    assert ((covered > 0.05) & (covered < 0.95)).sum() > 20  # There are soft edges.


def test_trajectory_is_the_centroid_of_the_rendered_pixels():
    pixels = (np.arange(64) + 0.5) / 64
    for one in _scenes(60, two_object_probability=0.0):
        frames = render(one, 64, 16, 8).astype(np.float64)
        background = np.rint(shapes_rendering.background(one.background, 64))
        colour = np.array(shapes_scene.COLOURS[one.objects[0].colour])
        # In the colour channel that stands out most, each row mixes background and object.
        channel = np.abs(colour - background).min(axis=(0, 1)).argmax()
        background, colour = background[..., channel], colour[channel]
        mass = (frames[..., channel] - background) / (colour - background)
        total = mass.sum(axis=(1, 2))
        x, y = (mass.sum(axis=1) @ pixels) / total, (mass.sum(axis=2) @ pixels) / total
        truth = shapes_scene.trajectory(one, 16, 8)[0]
        np.testing.assert_allclose(np.stack([x, y], -1), truth[:, :2], atol=0.002, err_msg=str(one))


def test_scene_is_the_same_at_any_resolution_and_frame_rate():
    one = scene(0, 2)
    large = render(one, 96, 32, 16).astype(float)
    small = render(one, 32, 16, 8).astype(float)
    reduced = large[::2].reshape(16, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    assert np.abs(reduced - small).mean() < 0.5
    assert np.abs(reduced - small).max() < 50


def test_the_later_object_is_in_front():
    front = dataclasses.replace(scene(0, 0).objects[0], colour="red")
    back = dataclasses.replace(front, colour="blue")
    frame = render(Scene((back, front), "black", 2.0, 0, 0), 32, 1, 16)[0]
    assert frame[..., 0].max() == 230
    assert frame[frame[..., 0] == 230][:, 2].max() == 40


def test_render_refuses_frames_beyond_the_motion():
    with pytest.raises(ValueError, match=r"duration=2\.0"):
        render(scene(0, 0), 32, 34, 16)
    with pytest.raises(ValueError, match="size=0"):
        render(scene(0, 0), 0, 8, 16)


# Captions --------------------------------------------------------------------------------------------------


def test_caption_says_what_is_seen():
    rng = np.random.default_rng(0)
    for one in _scenes(300, two_object_probability=0.3):
        text = caption(one, rng)
        parts = text.split(" while ") if " while " in text else text.split(" and a ")
        assert len(parts) == len(one.objects), text
        for moving, part in zip(one.objects, parts, strict=True):
            words = part.split(" on a ")[0].split()
            assert moving.colour in words
            assert [other for other in shapes_scene.COLOURS if other in words] == [moving.colour]
            assert any(word in words for word in shapes_captions.SHAPE_WORDS[moving.shape])
            # Nothing said of size or motion belongs to another size or motion.
            for size, choices in shapes_captions.SIZE_WORDS.items():
                assert size == moving.size or not any(word and word in words for word in choices), text
            verbs = {verb.split()[0] for forms in shapes_captions.MOTION_WORDS[moving.motion] for verb in forms}
            assert verbs & set(words), text
            if moving.motion == "translating":
                said = {name for name in ("left", "right", "up", "down") if name in part.replace("upper", "up")}
                said |= {"down"} if "lower" in part else set()
                assert said == set(moving.direction.split("_")), text


def test_captions_vary():
    one = scene(0, 4)
    assert len({caption(one, np.random.default_rng(seed)) for seed in range(40)}) > 10


def test_prompts_have_one_object_and_their_own_scenes():
    seen = prompts(50, seed=0)
    assert seen == prompts(60, seed=0)[:50]
    assert all(len(one.objects) == 1 for _, one in seen)
    for text, one in seen:
        assert one.objects[0].colour in text
        assert not moving_shapes.is_held_out(one.objects[0].shape, one.objects[0].colour, one.objects[0].motion)
    for _, one in prompts(50, seed=0, held_out=True):
        assert moving_shapes.is_held_out(one.objects[0].shape, one.objects[0].colour, one.objects[0].motion)
    train = {dataclasses.replace(one, seed=0, index=0) for one in _scenes(200)}
    assert not train & {dataclasses.replace(one, seed=0, index=0) for _, one in prompts(50, seed=7)}


# TFDS ------------------------------------------------------------------------------------------------------


def test_examples_are_stored_exactly(tiny):
    for split, count in zip(SPLITS, (16, 8, 8), strict=True):
        source = tiny.as_data_source(split)
        assert len(source) == count
        for example in source:
            one = Scene.from_json(example["attributes"].decode())
            frames, times = video_io.decode_video(example["clip"])
            np.testing.assert_array_equal(frames, render(one, 32, 16, 16))
            np.testing.assert_allclose(times, np.arange(16) / 16, atol=1e-6)
            np.testing.assert_array_equal(example["trajectory"], shapes_scene.trajectory(one, 16, 16))
            assert example["fps"] == 16
            assert one.objects[0].colour in example["caption"].decode()
            for moving in one.objects:
                held_out = shapes_scene.is_held_out(moving.shape, moving.colour, moving.motion)
                assert held_out == (split == "held_out")


def test_splits_share_no_scene(tiny):
    attributes = [example["attributes"] for split in SPLITS for example in tiny.as_data_source(split)]
    assert len(set(attributes)) == 32


class _NoTensorFlow:
    """An import hook that fails the test where TensorFlow is installed and something imports it."""

    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "tensorflow"


def test_prepare_generates_once_without_tensorflow_and_says_so(tmp_path, capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_NoTensorFlow(), *sys.meta_path])
    config = MovingShapesConfig(size=16, frames=2, train=2, validation=1, held_out=1, two_object_probability=1.0)
    assert len(prepare(tmp_path, config).as_data_source("train")) == 2
    first = capfd.readouterr()
    assert f"Generating moving_shapes/{config.name} (4 clips)" in first.err
    assert first.out == ""
    assert len(first.err.splitlines()) == 2
    prepare(tmp_path, config)
    assert capfd.readouterr() == ("", "")


def test_configs_of_different_values_have_different_names():
    names = {MovingShapesConfig(**fields).name for fields in ({}, {"seed": 1}, {"fps": 8.0}, {"held_out": 9})}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("frames", 0), ("train", 0), ("validation", -1), ("held_out", -1), ("fps", 0)],
)
def test_config_refuses_bad_values(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        MovingShapesConfig(**{field: value})


def test_a_split_without_clips_does_not_exist(tmp_path):
    assert list(prepare(tmp_path, "eight_clips").info.splits) == ["train"]


def test_prepare_refuses_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"no config 'large'.*demo"):
        prepare(tmp_path, "large")
