import numpy as np
import pytest

from lumiere_jax.data.horizontal_flip import may_flip
from lumiere_jax.data.shapes_captions import caption
from lumiere_jax.data.shapes_sampling import scene


@pytest.mark.parametrize(
    "text",
    [
        "a red circle moving left",
        "a LEFT turn",
        "the rightmost car leaves",
        "a leftwards swipe",
        "a star spinning clockwise",
        "a star spinning counter-clockwise",
        "turning anticlockwise",
        "a kitchen clock",
        "a ship sails north-west",
        "western sky",
        "two white handwritten digits moving",
        "a person writing on a board",
        "a neon sign",
        "the letters fall",
        "a screen that says hello",
    ],
)
def test_sides_turns_and_writing_forbid_it(text):
    assert not may_flip(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog runs along a beach",
        "a bright cleft in the rock",
        "a circle moving up",
        "a fleet of ships",
        "a typist",
    ],
)
def test_other_captions_allow_it(text):
    assert may_flip(text)


def test_moving_shapes_that_turn_or_move_sideways_stay_as_they_are():
    for index in range(200):
        one = scene(0, index, duration=2.0, two_object_probability=0.0, held_out=False)
        text = caption(one, np.random.default_rng(index))
        if any(word in text for word in ("left", "right", "clockwise")):
            assert not may_flip(text), text
