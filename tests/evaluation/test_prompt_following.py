"""The evaluator reads real clips right, degraded ones too, and is not fooled by wrong ones."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.ndimage

from lumiere_jax.data import shapes_rendering, shapes_scene
from lumiere_jax.data.moving_shapes import prompts, render
from lumiere_jax.evaluation import prompt_following
from lumiere_jax.evaluation.object_track import track_of
from lumiere_jax.evaluation.prompt_following import prompt_following_accuracy, read_attributes

GOALS = {"found": 1.0, "colour": 0.97, "shape": 0.95, "direction": 0.97, "motion": 0.95}


def _clips(count, size, frames, fps, seed=0):
    scenes = [scene for _, scene in prompts(count, seed)]
    clips = np.stack([render(scene, size, frames, fps) for scene in scenes])
    return clips.astype(np.float32) / 127.5 - 1, scenes


def _degrade(clips, blur, sigma):
    """A slight blur (in pixels) and noise, as generated clips have."""
    blurred = scipy.ndimage.gaussian_filter(clips, (0, 0, blur, blur, 0))
    return blurred + sigma * np.random.default_rng(0).standard_normal(clips.shape, dtype=np.float32)


@pytest.fixture(scope="module")
def small():
    return _clips(72, 32, 16, 8)


@pytest.fixture(scope="module")
def readings(small):
    return [read_attributes(clip, 8) for clip in small[0]]


@pytest.mark.parametrize("degraded", [False, True])
def test_reads_real_clips_at_32_pixels(small, degraded):
    clips, scenes = small
    result = prompt_following_accuracy(_degrade(clips, 0.6, 0.1) if degraded else clips, scenes, fps=8)
    for name, goal in GOALS.items():
        assert result[name]["accuracy"] >= goal, (name, result[name])
    assert result["shape"]["n"] == 72
    assert result["direction"]["n"] == sum(scene.objects[0].motion == "translating" for scene in scenes)


@pytest.mark.parametrize("degraded", [False, True])
def test_reads_real_clips_at_64_pixels(degraded):
    clips, scenes = _clips(24, 64, 32, 16, seed=1)
    result = prompt_following_accuracy(_degrade(clips, 1.0, 0.1) if degraded else clips, scenes, fps=16)
    assert {name: result[name]["accuracy"] for name in GOALS} == dict.fromkeys(GOALS, 1.0)


def test_large_frames_are_reduced():
    clips, scenes = _clips(4, 200, 16, 8)
    assert prompt_following_accuracy(clips, scenes, fps=8)["shape"]["accuracy"] == 1.0


def test_shuffled_labels_give_chance(small, readings):
    """Measured once, compared with the scenes of other clips: the accuracy that equal frequencies explain."""
    _, scenes = small
    for name in ("colour", "shape", "motion"):
        truth = np.array([getattr(scene.objects[0], name) for scene in scenes])
        read = np.array([getattr(one, name) for one in readings])
        chance = sum((truth == value).mean() * (read == value).mean() for value in set(truth))
        shifted = np.mean([(np.roll(truth, shift) == read).mean() for shift in range(1, len(truth))])
        assert abs(shifted - chance) < 0.02
        assert shifted < 0.35


def test_reversed_clips_move_the_other_way(small):
    clips, scenes = small
    opposite = {"left": "right", "up": "down", "up_left": "down_right", "up_right": "down_left"}
    opposite |= {value: key for key, value in opposite.items()}
    for clip, scene in zip(clips, scenes, strict=True):
        truth = scene.objects[0]
        if truth.motion == "translating":
            assert read_attributes(clip[::-1], 8).direction == opposite[truth.direction]
        if truth.motion == "growing":
            assert read_attributes(clip[::-1], 8).motion == "shrinking"


def test_frames_in_random_order_have_no_direction(small):
    clips, scenes = small
    order = np.random.default_rng(0).permutation(16)
    result = prompt_following_accuracy(clips[:32, order], scenes[:32], fps=8)
    assert result["direction"]["accuracy"] == 0
    assert result["direction"]["n"] > 5
    assert result["shape"]["accuracy"] == 1


def test_still_clip_has_no_motion(small):
    clips, scenes = small
    index = next(i for i, scene in enumerate(scenes) if scene.objects[0].motion == "translating")
    seen = read_attributes(np.repeat(clips[index][:1], 16, axis=0), 8)
    assert (seen.motion, seen.direction) == ("still", "none")
    assert seen.shape == scenes[index].objects[0].shape


@pytest.mark.parametrize("shape", shapes_scene.SHAPES)
def test_template_of_the_right_shape_size_and_angle_fits_best(shape):
    track = np.array([[0.45, 0.52, 0.27, math.radians(15)]], np.float32)
    matte = shapes_rendering.coverage(shape, track, 48)
    matte = scipy.ndimage.gaussian_filter(matte, (0, 0.9, 0.9))  # As blurry as the templates.
    seen = track_of(matte)
    np.testing.assert_allclose(seen[0, :2], track[0, :2], atol=1e-3)
    similarity = {each: prompt_following._similarity(each, matte, seen)[0] for each in shapes_scene.SHAPES}
    assert similarity[shape].max() > 0.999
    assert max(similarity[each].max() for each in similarity if each != shape) < 0.985
    assert similarity[shape].argmax() == (0 if shape == "circle" else 2)  # Steps of 7.5 degrees.


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_empty_and_noisy_clips_show_nothing(sigma):
    noise = sigma * np.random.default_rng(0).standard_normal((16, 32, 32, 3)).astype(np.float32)
    assert read_attributes(0.2 + noise, 8) is None
    _, scenes = _clips(1, 32, 1, 8)
    result = prompt_following_accuracy(noise[None], scenes, fps=8)
    assert all(result[name]["accuracy"] == 0 for name in ("found", "colour", "shape", "motion"))


def test_pale_object_before_a_tinted_background(small):
    clips, scenes = small
    for clip, scene in list(zip(clips, scenes, strict=True))[:16]:
        tinted = 0.6 * clip + [0.35, 0.0, -0.35]
        seen = read_attributes(tinted.astype(np.float32), 8)
        assert seen.colour == scene.objects[0].colour
        assert seen.motion == scene.objects[0].motion


def test_largest_object_is_read():
    one = prompts(1, seed=0)[0][1]
    large = dataclasses.replace(one.objects[0], shape="square", colour="red", motion="bouncing", radius=0.18, x=0.3)
    large = dataclasses.replace(large, y=0.8, amplitude=0.4, frequency=1.0, direction="none")
    small = dataclasses.replace(large, shape="circle", colour="blue", radius=0.08, x=0.8)
    video = render(dataclasses.replace(one, objects=(large, small)), 32, 16, 8).astype(np.float32) / 127.5 - 1
    seen = read_attributes(video, 8)
    assert (seen.shape, seen.colour, seen.motion) == ("square", "red", "bouncing")


def test_two_objects_are_each_read_by_their_colour():
    scenes = [scene for _, scene in prompts(32, 0, duration=5, two_objects=True)]
    clips = [render(scene, 64, 40, 8).astype(np.float32) / 127.5 - 1 for scene in scenes]
    read = prompt_following_accuracy(np.stack(clips), scenes, fps=8)
    assert read["found"]["accuracy"] == read["colour"]["accuracy"] == 1.0
    assert read["all attributes"]["accuracy"] > 0.8  # one may be half behind the other
    # Both must be right: with one of them left out, or in the other's colour, nothing is.
    alone = [dataclasses.replace(scene, objects=scene.objects[:1]) for scene in scenes]
    clips = [render(scene, 64, 40, 8).astype(np.float32) / 127.5 - 1 for scene in alone]
    assert prompt_following_accuracy(np.stack(clips), scenes, fps=8)["found"]["accuracy"] == 0.0
    swapped = [
        dataclasses.replace(scene, objects=(replaced(back, front), replaced(front, back)))
        for scene in scenes
        for back, front in [scene.objects]
        if back.shape != front.shape
    ]
    clips = [render(scene, 64, 40, 8).astype(np.float32) / 127.5 - 1 for scene in swapped]
    asked = [scene for scene in scenes if scene.objects[0].shape != scene.objects[1].shape]
    assert prompt_following_accuracy(np.stack(clips), asked, fps=8)["all attributes"]["accuracy"] == 0.0


def replaced(moving, other):
    """An object in another's colour."""
    return dataclasses.replace(moving, colour=other.colour)


def test_every_motion_and_direction_is_read(readings):
    assert {one.motion for one in readings} == set(shapes_scene.MOTIONS)
    assert {one.direction for one in readings} == {*shapes_scene.DIRECTIONS, "none"}
    assert {one.shape for one in readings} == set(shapes_scene.SHAPES)


def test_bad_input_is_refused(small):
    clips, scenes = small
    with pytest.raises(ValueError, match="2 videos but 1 scenes"):
        prompt_following_accuracy(clips[:2], scenes[:1], fps=8)
    with pytest.raises(ValueError, match="square"):
        read_attributes(clips[0][:, :, :16], 8)
    with pytest.raises(ValueError, match="NaN"):
        read_attributes(clips[0] * np.nan, 8)
