"""A published model is the run that it was made of, in fewer bytes and without what is its maker's own."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from random_runs import random_run, write_run
from safetensors.numpy import load_file, save_file
from small_runs import small_config

from configs import conditional, distill, stunet, style
from lumiere_jax.checkpoints import published_model
from lumiere_jax.checkpoints.checkpointing import CheckpointError, load_tree, named_leaves
from lumiere_jax.checkpoints.image_model import load_image_model
from lumiere_jax.checkpoints.published_model import publish
from lumiere_jax.checkpoints.run_directory import Reference, References, RunDirectory
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.export_weights import export
from lumiere_jax.models import parameter_partition
from lumiere_jax.prepare_text_embeddings import prepare_text_embeddings
from lumiere_jax.train_base import base_image_model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run = random_run()
    run.config.dataset.data_dir = "/home/somebody/data"
    run.config.training.steps = run.step
    write_run(run, workdir)
    return workdir


@pytest.fixture(scope="module")
def published(written, tmp_path_factory):
    output = tmp_path_factory.mktemp("published") / "model"
    publish(written, output, dtype="float32", license_text="CC0-1.0")
    return output


def leaves_of(run):
    return named_leaves(run.parameters())


def test_it_is_the_run(written, published):
    run, found = load_run(written), load_run(published)
    assert leaves_of(run).keys() == leaves_of(found).keys()
    for name, leaf in leaves_of(run).items():
        np.testing.assert_array_equal(leaf, leaves_of(found)[name], strict=True)
    types = [[type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(each.model))] for each in (run, found)]
    assert types[0] == types[1]  # what is trained and what is frozen
    assert (found.step, found.tokenizer.model_bytes) == (run.step, run.tokenizer.model_bytes)
    assert found.model.padding_sees_tokens == run.model.padding_sees_tokens


def test_it_has_all_that_sampling_and_its_successors_ask_of_a_config(written, published):
    run, found = load_run(written).config, load_run(published, require_finished=True).config
    for section in ("clip", "unet", "temporal", "diffusion", "sampling", "remat", "compute_dtype", "seed"):
        assert found[section] == run[section], section
    assert "somebody" not in (published / "config.json").read_text()
    assert found.training.steps == 1


def test_bfloat16_takes_half_the_bytes(written, published, tmp_path):
    export(str(written), str(tmp_path / "half"), "bfloat16", "")
    sizes = [(directory / "weights.safetensors").stat().st_size for directory in (published, tmp_path / "half")]
    parameters = parameter_partition.count(load_run(published).parameters())
    assert sizes[0] - sizes[1] == pytest.approx(2 * parameters, rel=0.01)
    exact, rounded = leaves_of(load_run(published)), leaves_of(load_run(tmp_path / "half"))
    for name, leaf in rounded.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, exact[name], rtol=2**-8, atol=0)


def test_a_video_model_is_no_image_model(published):
    with pytest.raises(ValueError, match="is an inflated run"):
        load_image_model(published)


def test_what_cannot_be_published(monkeypatch, written, published):
    with pytest.raises(FileExistsError, match=r"output=.*model exists"):
        publish(written, published)
    imported = References(unet=Reference("/weights/if_m", "0" * 64))
    refers = dataclasses.replace(load_run(written), references=imported)
    monkeypatch.setattr(published_model, "load_run", lambda path: refers)
    with pytest.raises(ValueError, match="imported weights"):
        publish(written, published.parent / "other")


def test_a_damaged_one_says_what_is_missing(published, tmp_path):
    directory = RunDirectory(tmp_path)
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    arrays = load_file(published / "weights.safetensors")
    del arrays["unet/conv_out/bias"]
    save_file(arrays, directory.published_weights)
    with pytest.raises(ValueError, match=r"missing: .*conv_out.*bias"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"ema_decay=0\.5"):
        load_run(published, ema_decay=0.5)
    directory.published_weights.unlink()
    save_file({"other/kernel": np.zeros(2, np.float32)}, directory.published_weights)
    with pytest.raises(CheckpointError, match=r"holds \['other'\], not the unet and text_encoder"):
        load_run(tmp_path)


def test_where_a_conditional_model_was_trained_stays_private(tmp_path):
    run = random_run(conditional=True)
    run.config.conditioning.base = "/home/somebody/stunet"
    write_run(run, tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "published", dtype="float32")
    assert "somebody" not in (tmp_path / "published/config.json").read_text()
    found = leaves_of(load_run(tmp_path / "published"))
    for name, leaf in leaves_of(load_run(tmp_path / "run")).items():
        np.testing.assert_array_equal(leaf, found[name], strict=True)


def test_it_lies_where_the_mesh_says(published):
    run = load_run(published)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(run.parameters())} == {run.mesh}


def test_its_text_encoder_runs_in_the_train_step(published, data_dir, tmp_path):
    config = small_config(stunet, data_dir)
    config.init_from = str(published)
    with pytest.raises(ValueError, match="is a published model, whose text encoder is as small"):
        prepare_text_embeddings(config, tmp_path / "embeddings")


@pytest.mark.parametrize(
    ("successor", "field"),
    [(conditional, "conditioning.base"), (style, "style.base"), (distill, "distillation.teacher")],
)
def test_its_successors_start_from_it_as_from_the_run(written, published, tmp_path, successor, field):
    (section, name), taken = field.split("."), []
    for base in (written, published):
        config, run_dir = successor.get_config("test"), RunDirectory(tmp_path / base.name)
        config[section][name] = str(base)
        # A run must have come to its end, which a published model always has.
        image = base_image_model(config, run_dir, make_mesh())
        layers = parameter_partition.split(load_run(written).model.unet)[1]
        temporal = {} if section == "style" else load_tree(run_dir.base, layers)  # a style has spatial ones alone
        parts = image.unet, image.text_encoder
        taken.append(named_leaves([nnx.to_pure_dict(nnx.state(each)) for each in parts] + [temporal]))
    assert taken[0].keys() == taken[1].keys()
    for name, leaf in taken[0].items():
        np.testing.assert_array_equal(leaf, taken[1][name], err_msg=name)
