"""The comparison of one pass and cascade: from training to the picture, and that it is a fair one."""

import dataclasses

import numpy as np
import pytest

from benchmarks import one_pass_vs_cascade as benchmark
from benchmarks.shapes_features import train_features
from configs import stunet
from lumiere_jax.evaluation.network_measures import NetworkMeasures
from lumiere_jax.evaluation.result_table import table
from lumiere_jax.train import train


def test_both_are_trained_with_the_same_flops():
    configs, costs = benchmark.plan(dataclasses.replace(benchmark.WHOLE, variant="test"), "image_model")
    one, *stages = (row["training teraflops"] for row in costs.values())
    assert sum(stages) == pytest.approx(one, rel=0.01)
    assert stages[0] == pytest.approx(stages[1], rel=0.01)
    assert [config.training.steps for config in configs.values()] == [row["steps"] for row in costs.values()]
    assert [config.clip.frames for config in configs.values()] == [5, 2, 5]
    assert {config.init_from for config in configs.values()} == {"image_model"}


def clips_that_jump(at):
    """A background that gets lighter evenly, but for jumps before these frames."""
    level = np.cumsum([0.0] + [0.3 if frame in at else 0.05 for frame in range(1, 13)])
    return np.broadcast_to(level[:, None, None, None] - 0.9, (13, 16, 16, 3))


@pytest.mark.parametrize(("at", "ratio"), [((), 1.0), ((4, 5, 8, 9), 36.0), ((3, 6, 7, 10), 7 / 72)])
def test_jumps_at_keyframes_are_seen(at, ratio):
    """Of ten inner pairs four are at keyframes; the others are six, of which four jump in the last case."""
    clip = clips_that_jump(at)
    expected = ratio if len(at) == 0 or 4 in at else 0.05**2 / ((4 * 0.3**2 + 2 * 0.05**2) / 6)
    assert benchmark.keyframe_ratio([lambda: clip]) == pytest.approx(expected)


def test_clips_are_made_once(tmp_path):
    made = []

    def sample(prompts, first):
        made.append((first, len(prompts)))
        return np.zeros((len(prompts), 4, 16, 16, 3), np.float32)

    files = benchmark.clip_files(tmp_path, sample, ["a"] * 10, 8.0)
    assert made == [(0, 8), (8, 2)]
    files[9].unlink()
    benchmark.clip_files(tmp_path, sample, ["a"] * 10, 8.0)
    assert made == [(0, 8), (8, 2), (8, 2)]


def test_features_learn_what_is_in_clips():
    """After few steps colours are told, of which there are six, from the features alone."""
    accuracy = train_features(frames=5, fps=8.0, size=32, steps=150).accuracy
    assert accuracy["colour"] > 0.4


@pytest.mark.slow
def test_from_training_to_the_picture(data_dir, tmp_path, monkeypatch):
    get_config = stunet.get_config

    def in_data_dir(variant="demo"):
        config = get_config(variant)
        config.dataset.data_dir = str(data_dir)
        return config

    monkeypatch.setattr(stunet, "get_config", in_data_dir)
    monkeypatch.setattr(benchmark, "PERIODIC", ("translating",))  # of four prompts
    train(in_data_dir("test").image_model, tmp_path / "image_model")
    found = benchmark.compare(benchmark.QUICK, str(tmp_path / "image_model"), NetworkMeasures(), tmp_path)
    assert list(found["all prompts"]) == ["rendered", benchmark.ONE_PASS, benchmark.CASCADE]
    assert found["all prompts"]["rendered"]["distribution"]["Fréchet distance"]["mean"] < 1e-3
    assert found["all prompts"][benchmark.CASCADE]["distribution"]["Fréchet distance"]["mean"] > 1e-3
    assert found["protocol"]["clips"] == 4
    assert "trajectory error" in table(found["periodic motion"])
    assert (tmp_path / "slices.png").is_file()
