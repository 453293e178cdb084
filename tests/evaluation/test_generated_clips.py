import json

import numpy as np
import pytest
from marked_clips import said_in
from random_runs import random_run

from lumiere_jax.evaluation.clip_files import read_clip
from lumiere_jax.evaluation.generated_clips import generate_clips
from lumiere_jax.provenance.metadata import GENERATED

PROMPTS = ["a red circle", "a blue star", "a green square", "a cyan box", "a small ring"]


@pytest.fixture(scope="module")
def run():
    return random_run()


@pytest.fixture(scope="module")
def super_resolution():
    return random_run(super_resolution=True)


def generated(run, super_resolution, prompts, directory, seed=3):
    return generate_clips(run, [super_resolution], prompts, directory, seed=seed, batch_size=2)


@pytest.fixture(scope="module")
def at_once(run, super_resolution, tmp_path_factory):
    return generated(run, super_resolution, PROMPTS, tmp_path_factory.mktemp("at_once"))


def same(files, others):
    for kind, shape in {"base": (4, 16, 16, 3), "large": (4, 32, 32, 3)}.items():
        for one, other in zip(files[kind], others[kind], strict=True):
            clip = read_clip(one)
            assert clip.shape == shape
            np.testing.assert_allclose(clip, read_clip(other), atol=1.01 / 127.5)  # one level: rounding


def test_goes_on_where_it_stopped(run, super_resolution, at_once, tmp_path):
    files = generated(run, super_resolution, PROMPTS[:3], tmp_path)
    before = files["base"][0].stat().st_mtime_ns
    files["large"][2].unlink()  # as if it had been stopped between the two
    files = generated(run, super_resolution, PROMPTS, tmp_path)
    assert files["base"][0].stat().st_mtime_ns == before
    same(files, at_once)
    assert (tmp_path / "prompts.txt").read_text().splitlines() == PROMPTS
    fewer = generated(run, super_resolution, PROMPTS[:2], tmp_path)
    assert len(fewer["base"]) == 2
    assert (tmp_path / "prompts.txt").read_text().splitlines() == PROMPTS
    assert not np.allclose(read_clip(files["base"][0]), read_clip(files["base"][1]), atol=0.1)


def test_they_say_that_they_are_generated(at_once):
    """And have no watermark: what is measured is what the model made."""
    for kind in ("base", "large"):
        title, facts, source = said_in(at_once[kind][1])
        assert (title, facts["prompt"], facts["seed"], source) == ("a blue star", "a blue star", 3, GENERATED)
        assert "watermark" not in facts


def test_clips_of_something_else_are_refused(run, super_resolution, at_once):
    directory = at_once["base"][0].parent.parent
    with pytest.raises(ValueError, match="clips of other seed"):
        generated(run, super_resolution, PROMPTS, directory, seed=4)
    with pytest.raises(ValueError, match="clips of other prompts"):
        generated(run, super_resolution, ["another", *PROMPTS[1:]], directory)
    with pytest.raises(ValueError, match="clips of other models"):
        generate_clips(run, [], PROMPTS, directory, seed=3)
    with pytest.raises(ValueError, match="clips of other guidance_weight"):
        generate_clips(run, [super_resolution], PROMPTS, directory, seed=3, guidance_weight=1.5)
    assert json.loads((directory / "generation.json").read_text())["seed"] == 3
