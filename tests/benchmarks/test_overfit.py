"""The check of the overfit recipe: what it accepts and refuses, and that record, picture and recipe belong together."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from benchmarks import overfit, overfit_faults
from benchmarks.overfit import Band
from configs import stunet, text_to_image
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.data import moving_shapes
from lumiere_jax.data.clip_loader import ClipLoader
from lumiere_jax.data.open_dataset import open_dataset
from lumiere_jax.train_history import History


@pytest.fixture(scope="module")
def recorded():
    return overfit.read_recorded()


def _verdicts(stage, losses, recorded):
    return [one.verdict for one in overfit.compare(stage, losses, overfit.bands(recorded)[stage])]


def _last(recorded, stage):
    return overfit.bands(recorded)[stage].steps[-1]


# What is committed ------------------------------------------------------------------------------------------


def test_band_is_of_the_recipe_as_it_is(recorded):
    config = overfit.recipe()
    overfit.check_fields("image_model", config.image_model, recorded)
    overfit.check_fields("stunet", config, recorded)


@pytest.mark.parametrize("field", ["training.learning_rate", "temporal.conv_kernel", "training.steps"])
def test_a_changed_recipe_needs_a_new_record(recorded, field):
    config = overfit.recipe()
    section, name = field.split(".")
    config[section][name] *= 2
    with pytest.raises(ValueError, match=rf"record anew(.|\n)*{field}: "):
        overfit.check_fields("stunet", config, recorded)


def test_where_and_how_a_run_runs_is_free(recorded):
    config = overfit.recipe(seed=5, data_dir="elsewhere")
    config.mesh.data, config.compute_dtype, config.training.log_every = 1, "bfloat16", 1
    overfit.check_fields("stunet", config, recorded)


def test_picture_is_of_this_band(recorded):
    with Image.open(overfit.PICTURES / "overfit_band.png") as picture:
        assert picture.info["Description"] == overfit.fingerprint(recorded), "python -m benchmarks.overfit --record"


def test_preview_prompts_are_the_captions():
    fields = moving_shapes.BUILDER_CONFIGS["eight_clips"]
    scenes = [
        moving_shapes.scene(fields.seed, i, duration=fields.duration, two_object_probability=0.0) for i in range(8)
    ]
    captions = [moving_shapes.caption(one, np.random.default_rng((one.seed, one.index, 2))) for one in scenes]
    assert list(text_to_image.EIGHT_CLIPS) == captions
    assert stunet.get_config("overfit").sampling.preview_prompts == text_to_image.EIGHT_CLIPS


def test_losses_are_measured_on_the_clips_that_are_learned(tmp_path):
    config = overfit.recipe(data_dir=str(tmp_path))
    train_set, validation_set = open_dataset(config.dataset)
    assert [each["clip"] for each in train_set] == [each["clip"] for each in validation_set]
    assert len(train_set) == 8


# The comparison ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", overfit.STAGES)
def test_each_recorded_seed_is_inside_the_band_of_the_others(recorded, stage):
    runs = recorded["losses"][stage]
    assert len(runs) >= 3
    for seed, losses in runs.items():
        band = overfit.stage_band(stage, [other for name, other in runs.items() if name != seed])
        assert {one.verdict for one in overfit.compare(stage, losses, band)} == {"inside"}


@pytest.mark.parametrize(("stage", "at_the_latest"), [("image_model", 50), ("stunet", 350)])
def test_a_model_that_does_not_learn_is_found(recorded, stage, at_the_latest):
    band = overfit.bands(recorded)[stage]
    # Learning rate 0, everything frozen, an average that stays: the first loss for ever.
    still = dict.fromkeys(band.steps, recorded["losses"][stage]["0"][1])
    outside = overfit.first_outside(overfit.compare(stage, still, band))
    assert outside.verdict == "above"
    assert outside.step <= at_the_latest


@pytest.mark.parametrize("stage", overfit.STAGES)
def test_other_curves_are_refused(recorded, stage):
    sound = recorded["losses"][stage]["0"]
    last = _last(recorded, stage)
    # A curve that learns at first and then not any more; one that diverges; one that is too good.
    stuck = {step: max(loss, sound[50]) for step, loss in sound.items()}
    assert _verdicts(stage, stuck, recorded)[-1] == "above"
    assert _verdicts(stage, sound | {last: float("nan")}, recorded)[-1] == "above"
    assert _verdicts(stage, sound | {last: float("inf")}, recorded)[-1] == "above"
    assert _verdicts(stage, {step: loss / 10 for step, loss in sound.items()}, recorded)[-1] == "below"


def test_a_gap_in_the_measurements_is_said(recorded):
    losses = dict(recorded["losses"]["stunet"]["0"])
    del losses[250]
    with pytest.raises(ValueError, match=r"step 250: .*validate_every"):
        overfit.compare("stunet", losses, overfit.bands(recorded)["stunet"])
    assert overfit.compare("stunet", {}, overfit.bands(recorded)["stunet"]) == []


# Runs on disk -----------------------------------------------------------------------------------------------


def _write_run(workdir, recorded, reached):
    """What a run of seed 0 leaves on disk of its losses, up to `reached[stage]`."""
    config = overfit.recipe()
    configs = {"image_model": config.image_model, "stunet": config}
    for stage, directory in overfit.directories(workdir).items():
        if stage in reached:
            RunDirectory(directory).write_config(configs[stage], {})
            _write_losses(directory, recorded["losses"][stage]["0"], reached[stage])


def _write_losses(directory, losses, reached):
    history = History(directory, 0)
    for step, loss in losses.items():
        if step <= reached:
            history.append(step, {"train/loss": 9.0})
            history.append(step, {"validation/loss": 0.5 * loss, "validation/image_model_loss": 0.5})


def test_losses_are_read_as_they_were_written(tmp_path):
    losses = {1: 0.5, 50: 0.25, 100: float("nan")}
    _write_losses(tmp_path, losses, 100)
    found = overfit.validation_losses(tmp_path)
    assert list(found) == [1, 50, 100]
    np.testing.assert_allclose(list(found.values()), list(losses.values()))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "validation/lo')  # the run is writing
    assert list(overfit.validation_losses(tmp_path)) == [1, 50, 100]
    History(tmp_path, 100).append(150, {"validation/loss": 0.125})  # an image model: no loss of another
    assert overfit.validation_losses(tmp_path)[150] == 0.125
    assert overfit.validation_losses(tmp_path / "none") == {}


def test_check_of_a_finished_run(recorded, tmp_path):
    _write_run(tmp_path, recorded, {stage: _last(recorded, stage) for stage in overfit.STAGES})
    measurements, is_finished = overfit.check(tmp_path, recorded)
    assert is_finished
    assert overfit.first_outside(measurements) is None
    assert {one.stage for one in measurements} == set(overfit.STAGES)
    assert overfit.report(measurements).count("inside") == len(measurements)


@pytest.mark.parametrize("reached", [{"image_model": 50}, {"image_model": 10**6, "stunet": 250}])
def test_check_of_a_run_that_is_under_way(recorded, tmp_path, reached):
    _write_run(tmp_path, recorded, reached)
    measurements, is_finished = overfit.check(tmp_path, recorded)
    assert not is_finished
    assert overfit.first_outside(measurements) is None
    assert measurements[-1].step == list(reached.values())[-1]


def test_check_refuses_other_runs(recorded, tmp_path):
    with pytest.raises(ValueError, match=r"no run of configs/stunet\.py:overfit"):
        overfit.check(tmp_path, recorded)
    RunDirectory(tmp_path / "image_model").write_config(stunet.get_config("demo").image_model, {})
    with pytest.raises(ValueError, match=r"dataset\.path: 'eight_clips' in the record, 'one_object' here"):
        overfit.check(tmp_path, recorded)


def test_curves_are_drawn_over_the_band(recorded):
    curves = {stage: {"this run": recorded["losses"][stage]["0"]} for stage in overfit.STAGES}
    figure = overfit.draw(overfit.bands(recorded), curves)
    assert [axis.get_title() for axis in figure.axes] == ["image model", "stunet"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 1]


# Planted faults ---------------------------------------------------------------------------------------------


def test_a_fault_is_found_and_ends_the_training(tmp_path):
    config = stunet.get_config("test")
    config.dataset.data_dir = str(tmp_path / "data")
    config.image_model.training.preview_every = 0
    # Step 1 passes, step 2 cannot.
    band = Band((1, 2, 4), (0.0, 0.0, 0.0), (9.0, 0.0, 9.0))
    frozen = overfit_faults.FAULTS["nothing is trained (learning rate 0)"]
    measured = overfit_faults.find(frozen, {"image_model": band}, config, tmp_path / "run")
    assert [(one.step, one.verdict) for one in measured] == [(1, "inside"), (2, "above")]
    assert measured[0].loss == pytest.approx(measured[1].loss, rel=1e-6)  # learning rate 0: nothing moved
    assert overfit_faults.describe(measured).startswith("above, image model, step 2")
    assert overfit_faults.describe(measured[:1]).startswith("not found")


def test_faults_of_the_data_are_planted_and_removed(tmp_path):
    source = moving_shapes.prepare(tmp_path, "eight_clips").as_data_source("train")

    def clip():
        return ClipLoader(4.0, 16, 0).load((0, 0), source[0], 8, np.random.default_rng(0))

    sound = clip()
    for name, expected in (
        ("red and blue swapped", sound[..., ::-1]),
        ("every frame is the clip's first", np.stack([sound[0]] * 8)),
    ):
        with overfit_faults.FAULTS[name].patches():
            np.testing.assert_array_equal(clip(), expected)
    with overfit_faults.FAULTS["frames in random order"].patches():
        shuffled = clip()
    assert (shuffled != sound).any()
    assert sorted(frame.tobytes() for frame in shuffled) == sorted(frame.tobytes() for frame in sound)
    np.testing.assert_array_equal(clip(), sound)


def test_faults_of_configs_name_fields_that_are_there():
    for name, fault in overfit_faults.FAULTS.items():
        config = overfit.recipe()
        changed = config if fault.stage == "stunet" else config.image_model
        before = overfit.recipe_fields(changed)
        fault.config(changed)
        after = overfit.recipe_fields(changed)
        assert before.keys() == after.keys()
        is_sound = name.startswith("none")
        assert (before != after) + (fault.patches is not contextlib.nullcontext) == (0 if is_sound else 1)
