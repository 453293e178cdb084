"""Measures of motion: their values where they are known, and that they rank damaged clips below whole ones."""

import dataclasses

import numpy as np
import pytest

from lumiere_jax.data.moving_shapes import prompts, render
from lumiere_jax.data.video_io import to_float
from lumiere_jax.evaluation.damages import DAMAGES
from lumiere_jax.evaluation.motion import (
    adjacent_frame_error,
    identity_persistence,
    jerk,
    motion_measures,
    period,
    trajectory_error,
)
from lumiere_jax.evaluation.object_track import SeenObject, seen_object

SIZE, FRAMES, FPS = 32, 32, 16


@pytest.fixture(scope="module")
def clips():
    """Clips with their scenes, of which the objects change their place."""
    scenes = [scene for _, scene in prompts(60, 0, duration=FRAMES / FPS)]
    moving = [
        scene for scene in scenes if scene.objects[0].motion in ("translating", "circling", "swinging", "bouncing")
    ]
    return [(to_float(render(scene, SIZE, FRAMES, FPS)), scene) for scene in moving[:16]]


def measured(measure, clips, damage=None):
    draw = np.random.default_rng(0)
    return np.array([measure(damage(video, draw) if damage else video, scene) for video, scene in clips])


# What each measure finds worse, of the damages. Those that are left out it cannot tell, by what it measures.
FOUND = {
    "jerk": ({"shuffled", "jittered", "halves swapped"}, lambda video, scene: jerk(seen_object(video)), +1),
    "trajectory error": (
        {"shuffled", "jittered", "frozen", "halves swapped"},
        lambda video, scene: trajectory_error(seen_object(video), scene, FPS),
        +1,
    ),
    "trajectory error, anywhere": (
        {"shuffled", "jittered", "frozen", "halves swapped"},
        lambda video, scene: trajectory_error(seen_object(video), scene, FPS, anywhere=True),
        +1,
    ),
    "adjacent frame error": ({"frozen"}, lambda video, scene: adjacent_frame_error(video), -1),
    "identity persistence": ({"recoloured"}, lambda video, scene: identity_persistence(seen_object(video)), -1),
}


@pytest.mark.parametrize("name", FOUND)
def test_damaged_clips_are_ranked_below_whole_ones(clips, name):
    damages, measure, worse = FOUND[name]
    whole = measured(measure, clips)
    for damage in damages:
        found = measured(measure, clips, DAMAGES[damage])
        assert ((found - whole) * worse > 0).mean() >= 0.9, (damage, whole, found)
        assert worse * np.median(found) > worse * 1.5**worse * np.median(whole), (damage, whole, found)


def test_where_whole_clips_are(clips):
    """Within a pixel of their scene, and the same object all the time."""
    assert measured(FOUND["trajectory error"][1], clips).max() < 0.03
    assert measured(FOUND["identity persistence"][1], clips).min() == 1.0


def test_jerk_of_a_known_track():
    """x = t^3 / 6 has third difference 1, everywhere."""
    times = np.arange(8.0)
    track = np.stack([times**3 / 6, 5 - times**2, np.ones(8)], axis=-1)

    def found():
        return jerk(SeenObject(np.zeros((8, 16, 16)), track, "red", ["red"] * 8))

    assert found() == pytest.approx(1.0)
    track[3] = np.nan
    assert found() == pytest.approx(1.0)
    track[::2] = np.nan
    assert np.isnan(found())


def test_trajectory_errors_that_are_known(clips):
    video, scene = next((video, scene) for video, scene in clips if scene.objects[0].motion == "translating")
    (one,) = scene.objects
    elsewhere = dataclasses.replace(scene, objects=(dataclasses.replace(one, x=one.x + 0.3, y=one.y - 0.4),))
    assert trajectory_error(seen_object(video), elsewhere, FPS) == pytest.approx(0.5, abs=0.02)
    assert trajectory_error(seen_object(video), elsewhere, FPS, anywhere=True) < 0.03
    half_gone = video.copy()
    half_gone[::2] = 0.0
    assert trajectory_error(seen_object(half_gone), scene, FPS) == pytest.approx(np.sqrt(0.5), abs=0.02)
    assert identity_persistence(seen_object(half_gone)) == 0.5
    with pytest.raises(ValueError, match="two objects"):
        trajectory_error(seen_object(video), dataclasses.replace(scene, objects=(one, one)), FPS)


def test_objects_that_jump_in_size_are_others(clips):
    scene = next(scene for _, scene in clips if scene.objects[0].motion == "translating")
    (one,) = scene.objects
    small = dataclasses.replace(scene, objects=(dataclasses.replace(one, radius=one.radius / 2),))
    video = to_float(render(scene, SIZE, FRAMES, FPS))
    video[10:20] = to_float(render(small, SIZE, FRAMES, FPS))[10:20]
    assert identity_persistence(seen_object(video)) == pytest.approx(1 - 2 / FRAMES)  # at both jumps


def test_another_object_that_takes_over_counts():
    """Though the clip's own is still seen beside it."""
    video = np.zeros((16, SIZE, SIZE, 3), np.float32)
    video[:, 12:20, 4:12] = to_float(np.array([230, 40, 40], np.uint8))  # red
    video[12:, 12:22, 16:26] = to_float(np.array([40, 75, 230], np.uint8))  # blue, and larger
    assert identity_persistence(seen_object(video)) == 0.75


def test_period():
    times = np.arange(48) / 16
    phases = np.linspace(0, 2 * np.pi, 16 * 16 * 3, endpoint=False).reshape(1, 16, 16, 3)
    video = np.sin(2 * np.pi * times[:, None, None, None] / 0.75 + phases)
    found = period(video, 16)
    assert found.seconds == pytest.approx(0.75)
    assert found.strength == pytest.approx(1.0)
    # Seven frames and a half: after 15 the clip is exactly itself, but after 7 or 8 nearly so, and sooner.
    between = np.sin(2 * np.pi * times[:, None, None, None] * 16 / 7.5 + phases)
    assert period(between, 16).seconds == pytest.approx(7.5 / 16, abs=0.51 / 16)
    noise = np.random.default_rng(0).standard_normal((48, 16, 16, 3))
    assert period(noise, 16).strength < 0.1
    assert period(video + noise, 16).seconds == pytest.approx(0.75)
    assert 0.2 < period(video + noise, 16).strength < 0.6
    assert period(np.zeros((8, 16, 16, 3)), 16).strength == 0.0
    with pytest.raises(ValueError, match=r"longest=2\.0: a clip of 48 frames tells periods of 3 to 24"):
        period(video, 16, longest=2.0)


def test_periods_of_scenes_that_come_back():
    """A circle that goes around is back after 1 / frequency."""
    scenes = [scene for _, scene in prompts(200, 1, duration=5.0)]
    for scene in [scene for scene in scenes if scene.objects[0].motion == "circling"][:4]:
        seconds = 1 / abs(scene.objects[0].frequency)
        if seconds <= 2.4:
            found = period(to_float(render(scene, SIZE, 80, 16)), 16)
            assert found.seconds % seconds == pytest.approx(0, abs=0.07) or -found.seconds % seconds < 0.07
            assert found.strength > 0.6


def test_means_and_intervals(clips):
    videos, scenes = zip(*clips, strict=True)
    found = motion_measures(np.stack(videos), scenes, FPS)
    errors = np.array([adjacent_frame_error(video) for video in videos])
    assert found["adjacent frame error"]["mean"] == pytest.approx(errors.mean())
    half = 1.96 * errors.std(ddof=1) / np.sqrt(len(errors))
    assert found["adjacent frame error"]["high"] == pytest.approx(errors.mean() + half, rel=1e-3)
    assert found["identity persistence"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": len(clips)}
    black = motion_measures(np.zeros((2, FRAMES, SIZE, SIZE, 3), np.float32), scenes[:2], FPS)
    assert (black["jerk"]["n"], black["trajectory error"]["mean"], black["identity persistence"]["mean"]) == (0, 1, 0)
    with pytest.raises(ValueError, match="scenes: pass one"):
        motion_measures(np.stack(videos), scenes[:2], FPS)
