"""What processes tell each other of what they were started with."""

import numpy as np
import pytest

from lumiere_jax.distributed.processes import digest


def started_with():
    return {"prompts": ["a star"], "given": (np.zeros((64, 64, 3), np.float32), None), "steps": 5}


def test_the_same_things_have_the_same_digest():
    assert digest(started_with()) == digest(started_with())


@pytest.mark.parametrize(
    "other",
    [
        {"prompts": ["a sta", "r"]},
        {"steps": 6},
        {"given": (np.zeros((64, 64, 3), np.float32), np.zeros(2))},
        {"given": (np.zeros((64, 3, 64), np.float32), None)},
        {"given": (np.zeros((64, 64, 3), np.int32), None)},
    ],
)
def test_other_things(other):
    assert digest(started_with()) != digest(started_with() | other)


def test_one_pixel_in_the_middle_of_an_image():
    """Where the repr of the array shows dots."""
    other = started_with()
    other["given"][0][30, 30] = 1e-3
    assert digest(started_with()) != digest(other)
