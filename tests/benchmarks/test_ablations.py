"""The ablation benchmarks at the size of the `test` variant: what they compare is what they say."""

import csv
import dataclasses

import numpy as np
import pytest
from flax import nnx

from benchmarks import initialization, short_training, temporal_hierarchy
from configs import stunet
from lumiere_jax.models import parameter_partition

STEPS = 4


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = stunet.get_config("test")
    config.dataset.data_dir = str(tmp_path_factory.mktemp("data"))
    config.image_model.training.preview_every = 0
    config.sampling.threshold = "static"
    return short_training.prepare("moving_shapes", config, tmp_path_factory.mktemp("image_model"))


@pytest.fixture(scope="module")
def curves(data):
    return initialization.train_all(data, steps=STEPS, seeds=2)


def test_trainings_differ_in_the_resamplers_alone(data):
    models = {init: short_training.inflated(data, 3, resampler_init=init) for init in initialization.INITIALISATIONS}
    parts = {init: nnx.to_flat_state(nnx.state(model)) for init, model in models.items()}
    for init in ("he", "tent"):
        differ = {
            path
            for (path, new), (_, old) in zip(parts[init], parts["identity"], strict=True)
            if (new[...] != old[...]).any()
        }
        assert {path[-3:] for path in differ} == {("resize", "conv", "kernel")}
    # Of one structure, so they share a compiled program.
    assert len({nnx.graphdef(model) for model in models.values()}) == 1


def test_curves(curves):
    for runs in curves.values():
        assert [curve.steps[0] for curve in runs] == [0, 0]
        assert [curve.steps[-1] for curve in runs] == [STEPS, STEPS]
        for curve in runs:
            assert np.isfinite(curve.losses).all()
            assert curve.losses[0] != curve.losses[-1]
    # Frozen image model, fixed validation noise: one number for all. He's kernels are drawn, the others are not.
    assert len({curve.image_model_loss for runs in curves.values() for curve in runs}) == 1
    first = {init: [curve.losses[0] for curve in runs] for init, runs in curves.items()}
    assert first["identity"][0] == first["identity"][1]
    assert first["tent"][0] == first["tent"][1]
    assert first["he"][0] != first["he"][1]


def test_untrained_samples_and_summary(data, curves, tmp_path):
    clips = initialization.untrained_samples(data)
    # The strides of this variant leave every second frame, so every fourth too; others come from their left neighbour.
    expected, identity, he, tent = clips.values()
    np.testing.assert_allclose(identity[::2], expected[::2], atol=1e-4)
    assert np.abs(identity[1::2] - expected[1::2]).max() > 0.01
    for other in (he, tent):
        assert np.abs(other[::2] - expected[::2]).max() > 0.01
    facts = initialization.summary(data, curves, clips)
    errors = facts["untrained_difference_to_image_model"]["identity (the paper's)"]
    assert errors["every 4th frame"] < 1e-4 < errors["between"]
    assert facts["loss"]["he"]["highest"][0] == max(curve.losses[0] for curve in curves["he"])
    assert "identity below he" in initialization.report("moving_shapes", facts)
    initialization.write_losses(tmp_path / "losses.csv", {"moving_shapes": curves})
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(curve.steps) for runs in curves.values() for curve in runs)
    for name, figure in (
        ("curves.png", initialization.draw_curves({"moving_shapes": curves})),
        ("untrained.png", initialization.draw_samples(clips)),
    ):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_verdict_needs_every_seed(data, curves):
    clips = {"image": np.zeros((5, 2, 2, 3), np.float32), "new": np.ones((5, 2, 2, 3), np.float32)}
    low, high = (dataclasses.replace(curves["he"][0], losses=(value,), steps=(0,)) for value in (1.0, 2.0))
    for identity, expected in (([low, low], [0]), ([low, high], [])):
        facts = initialization.summary(data, {"identity": identity, "he": [high, high], "tent": [low, high]}, clips)
        assert facts["identity_is_below_at_steps"] == {"he": expected, "tent": []}


def test_variants_of_the_hierarchy(data):
    # The strides of a U-Net with one resize.
    variants = {
        label: fields | ({"strides": (1,)} if "strides" in fields else {})
        for label, fields in temporal_hierarchy.VARIANTS.items()
    }
    batch = short_training.training_batches(data, 0, 1)[0]
    settings = short_training.step_settings(data.config, 2)
    flops, parameters = {}, {}
    for label, fields in variants.items():
        model = short_training.inflated(data, 0, **fields)
        flops[label] = short_training.flops_per_step(model, batch, settings)
        parameters[label] = parameter_partition.count(parameter_partition.split(model)[1])
    base, no_stride, attention, both = variants
    assert flops[no_stride] > flops[base]
    assert flops[both] > flops[attention]
    assert parameters[no_stride] == parameters[base]
    assert parameters[both] == parameters[attention] != parameters[base]
