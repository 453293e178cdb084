"""Training end to end on the `test` variants: both stages, bad input.

What stops a run and how it continues: test_resume.py, distributed/test_training_processes.py. Sampling from what was
trained: test_trained_runs.py.
"""

import json
import os
import re
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from small_runs import at_step, command, small_config, state_of

from configs import conditional, distill, stunet, text_to_image
from lumiere_jax import train, train_setup, train_step
from lumiere_jax.checkpoints.checkpointing import CheckpointError, load_tree, tree_hash
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.temporal_weights import export_temporal, load_temporal
from lumiere_jax.checkpoints.trained_run import build_unet, load_run
from lumiere_jax.data import video_io
from lumiere_jax.diffusion.condition import image_to_video
from lumiere_jax.distributed.preemption import Preempted
from lumiere_jax.models import parameter_partition
from lumiere_jax.pipelines.conditional_generation import complete_videos
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.train_base import start_from_base
from lumiere_jax.train_config import check_same_run
from lumiere_jax.train_distillation import make_teacher
from lumiere_jax.train_setup import make_objective


def test_image_model_is_trained_first_and_said_so(base):
    _, printed = base
    assert "training it first" in printed
    assert printed.index("text_to_image:test") < printed.index("stunet:test")


def test_losses_with_and_without_temporal_layers_are_printed(base):
    _, printed = base
    assert "step 4: validation loss" in printed
    assert "the image model, frame by frame:" in printed


def test_frozen_parameters_are_bitwise_the_image_models(base):
    workdir, _ = base
    image = load_run(workdir / "image_model")
    expected = nnx.to_pure_dict(nnx.state(image.model.unet))
    assert tree_hash(load_tree(workdir / "backbone")) == tree_hash(expected)
    trained = load_run(workdir).model.unet
    temporal_only = jax.tree.leaves(nnx.state(trained))
    assert len(temporal_only) > len(jax.tree.leaves(expected))
    np.testing.assert_array_equal(trained.conv_in.kernel[...], image.model.unet.conv_in.kernel[...])


def test_distillation(base, data_dir, tmp_path, monkeypatch, capsys):
    """It starts as its teacher, goes on after a stop without it, and is sampled without guidance."""
    config = small_config(distill, data_dir)
    with pytest.raises(ValueError, match=r"distillation\.teacher is empty: give the --workdir"):
        train.train(config, tmp_path / "student")
    config.distillation.update({"teacher": str(base[0]), "steps": 2})
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="is saved at step 2 of 4"):
        train.train(config, tmp_path / "student")
    config.distillation.teacher = "gone"
    train.train(config, tmp_path / "student")
    printed = capsys.readouterr().out
    assert "continuing from step 2" in printed
    first, last = (
        re.search(rf"step {step}: validation loss (\S+) . the teacher, .* steps: (\S+)", printed) for step in (1, 4)
    )
    assert first[2] == last[2]
    assert float(last[1]) != float(last[2])
    temporal = parameter_partition.split(load_run(base[0]).model.unet)[1]
    assert tree_hash(load_tree(tmp_path / "student" / "base")) == tree_hash(temporal)
    student = load_run(tmp_path / "student")
    untrained = {"unet": jax.tree.map(np.zeros_like, temporal)}
    start = start_from_base(student.config, RunDirectory(student.path), student.mesh, untrained)
    teacher = make_teacher(student.config, student.mesh, start, lambda _: {"text": np.zeros((1, 4))})
    assert tree_hash(start["unet"]) == tree_hash(teacher.parameters["unet"]) == tree_hash(temporal)
    settings = sampling_settings(student.config)
    assert (settings.sampler, settings.steps, settings.guidance_weight) == ("ddim", 2, 1.0)
    taught = make_objective(student.config)
    assert (taught.student_steps, taught.teacher.sampler) == (2, "ddim")
    assert taught.teacher.guidance_weight == sampling_settings(load_run(base[0]).config).guidance_weight > 1
    assert np.isfinite(sample_videos(student, ["a red circle"])).all()

    config.distillation.update({"teacher": str(tmp_path / "student"), "steps": 1})
    config.training.steps = 1
    train.train(config, tmp_path / "second")
    second = load_run(tmp_path / "second").config
    assert second.distillation.sampling == student.config.sampling  # not as the teacher's teacher is sampled
    assert make_objective(second).teacher.guidance_weight == 1.0

    config.distillation.update({"teacher": str(tmp_path / "student"), "steps": 2})
    with pytest.raises(ValueError, match="needs 2 steps itself, its student half of them: set 1"):
        train.train(config, tmp_path / "next")
    config.distillation.teacher = str(base[0] / "image_model")
    with pytest.raises(ValueError, match="is no Space-Time U-Net's run: text_to_image:test"):
        train.train(config, tmp_path / "next")


def test_conditional_model(base, data_dir, tmp_path, capsys):
    """It starts as its base, learns to see what is given, and is sampled with it and without."""
    config = small_config(conditional, data_dir)
    with pytest.raises(
        ValueError, match=r"conditioning\.base is empty: give the --workdir of the training to start from"
    ):
        train.train(config, tmp_path / "run")
    config.conditioning.base = str(base[0])
    train.train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    losses = {
        step: re.search(rf"step {step}: validation loss (\S+) . where nothing of the clip is given: (\S+)", printed)
        for step in (1, 4)
    }
    assert float(losses[1][1]) > 0
    assert losses[4][1] != losses[4][2]
    run, before = load_run(tmp_path / "run"), load_run(base[0])
    started = parameter_partition.split(before.model.unet)[1]
    assert tree_hash(load_tree(tmp_path / "run" / "base")) == tree_hash(started)
    new = parameter_partition.split(build_unet(run.config))[1]
    assert not np.any(new["conv_in"]["condition"]["kernel"])
    start = start_from_base(run.config, RunDirectory(run.path), run.mesh, {"unet": new})["unet"]
    assert tree_hash({name: start[name] for name in started}) == tree_hash(started)
    trained = parameter_partition.split(run.model.unet)[1]
    assert np.abs(trained["conv_in"]["condition"]["kernel"]).max() > 0
    assert trained.keys() == new.keys()
    given = image_to_video(np.zeros((16, 16, 3), np.float32), 4)
    for videos in (sample_videos(run, ["a red circle"]), complete_videos(run, ["a red circle"], given)):
        assert np.isfinite(videos).all()
    export_temporal(tmp_path / "run", tmp_path / "conditional.safetensors")
    exported = load_temporal(tmp_path / "conditional.safetensors", init_from=str(base[0] / "image_model"))
    np.testing.assert_array_equal(
        complete_videos(exported, ["a red circle"], given), complete_videos(run, ["a red circle"], given)
    )
    config.conditioning.base = str(tmp_path / "run")
    with pytest.raises(ValueError, match="is a conditional model: give the one that it was fine-tuned from"):
        train.train(config, tmp_path / "next")


def test_frozen_parameters_are_kept_in_the_compute_dtype(base, data_dir, tmp_path, monkeypatch):
    """Trained parameters, their average and the optimiser's slots stay float32."""
    dtypes = {}

    def recorded(state, frozen, *arguments, **settings):
        for name, tree in {"frozen": frozen, "trained": state[1:]}.items():
            dtypes[name] = {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if leaf.ndim}
        return train_step.train_step(state, frozen, *arguments, **settings)

    monkeypatch.setattr(train_setup, "train_step", recorded)
    config = small_config(stunet, data_dir, steps=1, preview_every=0)
    config.init_from, config.compute_dtype = str(base[0] / "image_model"), "bfloat16"
    train.train(config, tmp_path)
    assert dtypes == {"frozen": {"bfloat16"}, "trained": {"float32"}}


def test_text_encoder_went_through_t5x_format(base):
    workdir, _ = base
    assert (workdir / "text_encoder" / "checkpoint_0" / "checkpoint").is_file()
    assert (workdir / "image_model" / "text_encoder" / "checkpoint_4" / "target.token_embedder.embedding").is_dir()


def test_previews(base):
    workdir, _ = base
    directory = workdir / "previews" / "step_000004"
    names = {path.name for path in directory.iterdir()}
    stem = "000_a_large_red_circle_moving_left"
    assert names == {"sheet.png", *(stem + end for end in (".mp4", ".gif", "_sheet.png", "_xt.png", ".json"))}
    frames, _ = video_io.decode_video(directory / f"{stem}.mp4")
    assert frames.shape == (4, 16, 16, 3)


def test_page_and_measured_values(base):
    workdir, _ = base
    for directory, title in ((workdir, "stunet:test"), (workdir / "image_model", "text_to_image:test")):
        page = (directory / "index.html").read_text()
        assert f"<title>100% {title}</title>" in page
        assert "all steps are done" in page
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "train/loss" in record] == [1, 2, 3, 4]
    first, *_, last = [record for record in records if "validation/loss" in record]
    gates = [name for name in first if name.startswith("gate_norms/")]
    assert len(gates) == 7
    assert all(last[name] > first[name] >= 0 for name in gates)
    assert "trained/unet/down/0/layers/0/projection/kernel" in (workdir / "parameters.txt").read_text()


def test_stopped_inflated_run_ends_bitwise_as_an_undisturbed_one(base, data_dir, tmp_path, monkeypatch, capsys):
    """It continues on its own copies of the image model."""
    config = small_config(stunet, data_dir)
    config.init_from = str(base[0] / "image_model")
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="is saved at step 3 of 4"):
        train.train(config, tmp_path)
    config.init_from = str(tmp_path / "gone")
    train.train(config, tmp_path)
    assert "continuing from step 3" in capsys.readouterr().out
    assert tree_hash(state_of(tmp_path)) == tree_hash(state_of(base[0]))
    train.train(config, tmp_path)
    assert "nothing to do: 4 of 4 steps are done" in capsys.readouterr().out


def test_mixture_of_data_sets_and_batches_of_single_frames(base, data_dir, tmp_path, monkeypatch):
    config = small_config(stunet, data_dir, image_share=0.5, image_batch_size=3)
    config.init_from = str(base[0] / "image_model")
    config.dataset.update({"name": "mixture", "path": "moving_shapes:tiny=1", "flip_probability": 0.5})
    seen, batches = [], train_setup.make_batches

    def recorded(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            seen.append((batch["video"].shape, kwargs.get("flip_probability"), kwargs.get("caption_dropout")))
            yield batch

    monkeypatch.setattr(train_setup, "make_batches", recorded)
    train.train(config, tmp_path)
    assert RunDirectory(tmp_path).checkpoints().latest_step() == 4
    validation, *training = seen  # one more is loaded than is used
    assert validation == ((2, 4, 16, 16, 3), None, None)
    images, clips = ((3, 1, 16, 16, 3), 0.5, 0.1), ((2, 4, 16, 16, 3), 0.5, 0.1)
    assert training[:4] == [images, clips, images, clips]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training.image_share", 0.5, "image_share=0.5 needs training.image_batch_size of at least 1, not 0"),
        ("training.image_share", 1.0, "image_share=1.0 must be at least 0 and below 1"),
        ("dataset.path", "moving_shapes:tiny", "'moving_shapes:tiny' is not NAME:PATH=WEIGHT"),
    ],
)
def test_data_that_cannot_be_trained_on(base, data_dir, tmp_path, field, value, message):
    config = small_config(stunet, data_dir)
    config.init_from = str(base[0] / "image_model")
    config.dataset.name = "mixture" if field == "dataset.path" else "moving_shapes"
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_exported_temporal_layers_over_an_image_model_of_our_own(base, tmp_path):
    workdir, _ = base
    file = tmp_path / "temporal.safetensors"
    metadata = export_temporal(workdir, file)
    assert metadata["backbone_sha256"] == tree_hash(load_tree(workdir / "backbone"))
    again = load_temporal(file, init_from=str(workdir / "image_model"))
    assert tree_hash(again.parameters()) == tree_hash(load_run(workdir).parameters())
    with pytest.raises(ValueError, match="refers to no imported U-Net, it holds its own"):
        load_run(workdir, init_from="elsewhere")
    with pytest.raises(ValueError, match="refers to no imported one, it holds its own"):
        load_run(workdir, text_checkpoint="elsewhere")
    with pytest.raises(ValueError, match="is the run of an image model"):
        export_temporal(workdir / "image_model", tmp_path / "image.safetensors")


# ------------------------------------------------------------------------------------ bad input


def test_unknown_config_field(tmp_path):
    process = command("train", "--config=configs/stunet.py:test", f"--workdir={tmp_path}", "--config.training.stesp=3")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "stesp" in printed
    assert not list(tmp_path.iterdir())


def test_continuing_under_another_config(base, data_dir):
    workdir, _ = base
    before = tree_hash(state_of(workdir))
    config = small_config(stunet, data_dir, learning_rate=5e-4)
    with pytest.raises(ValueError, match=r"training.learning_rate: 0.001 when it was started, 0.0005 now"):
        train.train(config, workdir)
    assert tree_hash(state_of(workdir)) == before


def test_backbone_that_is_not_there(data_dir, tmp_path):
    config = small_config(stunet, data_dir)
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"nowhere is no run directory"):
        train.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training.steps", 0, "training.steps=0"),
        ("clip.frames", 0, "clip.frames=0"),
        ("training.optimizer", "sgd", "training.optimizer='sgd'"),
        ("diffusion.schedule", "linear", "linear"),
        ("sampling.variance", "learned_range", "6 output channels, .* this one has 3"),
        ("sampling.threshold", "clip", "threshold='clip': use one of"),
        ("diffusion.low_res_factor", 3, "low_res_factor=3 does not divide clip.size=16"),
        ("diffusion.max_blur", -1.0, "diffusion.max_blur=-1.0: give a standard deviation"),
        ("diffusion.min_jpeg_quality", 101, "diffusion.min_jpeg_quality=101: give a whole number from 1"),
        ("diffusion.max_blur", 0.5, "diffusion.max_blur=0.5 and .* are for super-resolution, .*low_res_factor is 0"),
        ("clip.crop_from", 8, "clip.crop_from=8 is smaller than the crops, clip.size=16"),
        ("diffusion.prediction", "epsilon", "weighting=.truncated_snr., objective=.epsilon."),
        ("text.checkpoint", "t5", "text.tokenizer=''"),
        ("dataset.name", "imagenet", "dataset.name='imagenet'"),
        ("dataset.flip_probability", 2.0, "dataset.flip_probability=2.0 must be 0 to 1"),
        ("remat.block", "ful", "remat.block='ful': use one of none, products, full"),
        ("text.dropout", -0.1, "text.dropout=-0.1 must be 0 to 1"),
        ("training.image_share", 0.5, "clip.frames=1, every batch is of single frames already"),
        ("text.length", 3, "the limit is 3"),
    ],
)
def test_values_that_cannot_be_trained(data_dir, tmp_path, field, value, message):
    config = small_config(text_to_image, data_dir)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_unknown_variant():
    with pytest.raises(ValueError, match="no variant 'giant'"):
        stunet.get_config("giant")


def test_changed_fields_are_told_apart(base):
    directory = RunDirectory(base[0])
    saved, data = directory.read_config(), directory.read_data()
    assert data.keys() == {"training", "validation"}
    check_same_run(saved, saved, data, data)
    check_same_run(saved, saved, {}, data)  # started before there was a hash
    check_same_run(None, saved, {}, data)
    other = saved.copy_and_resolve_references()
    other.temporal.strides = (1,)
    message = r"temporal.strides: \(2,\) when it was started, \(1,\) now"
    with pytest.raises(ValueError, match=message):
        check_same_run(saved, other, data, data)
    other.training.steps, other.temporal.strides = 5, (2,)
    check_same_run(saved, other, data, data)
