"""The model that ships: small files, whole, of this project's configs, and it shows what is asked for."""

import pathlib
import re

import pytest
from safetensors import safe_open

from configs import conditional, ssr, stunet
from lumiere_jax import load_run, sample_videos
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.evaluation.prompt_following import read_attributes

SHAPES = pathlib.Path(__file__).parent.parent / "pretrained/lumiere_shapes"
MODELS = {
    "base": stunet.get_config("shapes"),
    "conditional": conditional.get_config("shapes"),
    "super_resolution": ssr.get_config("demo"),
}


def test_files_are_small():
    sizes = [file.stat().st_size for file in SHAPES.rglob("*") if file.is_file()]
    assert max(sizes) < 16 * 2**20
    assert sum(sizes) < 40e6


@pytest.mark.parametrize("name", MODELS)
def test_each_model_says_what_it_is(name):
    directory, config = SHAPES / name, MODELS[name]
    assert sorted(file.name for file in directory.iterdir()) == [
        "config.json",
        "tokenizer.model",
        "weights.safetensors",
    ]
    with safe_open(directory / "weights.safetensors", "np") as file:
        metadata, dtypes = file.metadata(), {file.get_slice(array).get_dtype() for array in file.keys()}  # noqa: SIM118
    assert metadata["license"] == "Apache-2.0"
    assert int(metadata["step"]) > 0
    assert dtypes == {"BF16"}
    # The config is today's, so that it can be trained further, and holds no path of the machine that it was trained on.
    published = RunDirectory(directory).read_config()
    for section in ("temporal", "clip", "diffusion"):
        assert published[section].to_dict() == config[section].to_dict()
    trained = config.image_model.unet.to_dict()
    assert {field: published.unet[field] for field in trained} == trained
    assert not re.search(r'"/\w+/', (directory / "config.json").read_text())


def test_it_shows_the_colours_that_are_asked_for():
    colours = ("blue", "green", "yellow")
    run = load_run(SHAPES / "base")
    videos = sample_videos(
        run, [f"a large {colour} square spinning on a white background" for colour in colours], steps=8
    )
    assert videos.shape == (3, 40, 32, 32, 3)
    seen = [read_attributes(video, run.config.clip.fps) for video in videos]
    assert [each.colour for each in seen if each] == list(colours)
