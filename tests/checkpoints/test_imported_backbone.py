"""From import to video: an imported U-Net and T5 are inflated, trained, sampled, moved, exported and put together."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import published_files as published
import pytest
import safetensors.numpy
from flax import nnx

from configs import stunet, text_to_image
from lumiere_jax import sample, train, train_setup
from lumiere_jax.checkpoints.checkpointing import CheckpointError, save_tree, tree_hash
from lumiere_jax.checkpoints.frozen_parts import load_imported_text_encoder
from lumiere_jax.checkpoints.imported_unet import open_imported_unet
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.temporal_weights import export_temporal, load_temporal
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.data import moving_shapes
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.import_weights import import_deepfloyd_if, import_t5
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.text.t5x_checkpoint import write_t5x_checkpoint
from lumiere_jax.text.tokenizer import train_tokenizer

ROOT = pathlib.Path(__file__).parent.parent.parent
PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Directories of an imported U-Net (and another one), and of a T5 with its tokenizer."""
    directory = tmp_path_factory.mktemp("imported")
    for name, seed in (("unet", 0), ("other_unet", 1)):
        tensors = published.as_diffusers(published.unet_parameters(seed=seed))
        import_deepfloyd_if(published.write_unet(directory / "downloaded" / name, tensors), directory / name)
    captions, _ = zip(*moving_shapes.prompts(200, seed=0), strict=True)
    tokenizer = directory / "downloaded" / "spiece.model"
    tokenizer.write_bytes(train_tokenizer(captions, 500).model_bytes)
    t5x = write_t5x_checkpoint(directory / "downloaded", 7, published.nested(published.t5_parameters()))
    import_t5("t5x", t5x, directory / "t5", tokenizer=tokenizer)
    return directory


def config_over(imported, data_dir):
    config = stunet.get_config("test")
    config.dataset.data_dir = str(data_dir)
    config.init_from = str(imported / "unet")
    config.text.update({"checkpoint": str(imported / "t5"), "length": 64})
    config.diffusion.update({"schedule": "discrete_cosine", "prediction": "epsilon", "weighting": "uniform"})
    config.diffusion.log_snr_shift = 0.0
    config.training.update({"steps": 2, "preview_every": 0})
    return config


@pytest.fixture(scope="module")
def trained(imported, data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "stunet"
    train.train(config_over(imported, data_dir), workdir)
    return workdir


def clip(run):
    return sample_videos(run, [PROMPT], seed=3, steps=1, guidance_weight=1.0)


def test_a_run_refers_to_what_was_imported(imported, trained):
    names = {path.name for path in trained.iterdir()}
    assert "tokenizer.model" in names
    assert not {"backbone", "text_encoder", "image_model"} & names
    references = RunDirectory(trained).read_references()
    assert references.unet.path == str(imported / "unet")
    assert references.unet.sha256 == open_imported_unet(imported / "unet").sha256
    assert references.text_encoder.path == str(imported / "t5")
    assert references.text_encoder.sha256 == tree_hash(published.nested(published.t5_parameters()))
    run = load_run(trained)
    assert run.config.unet.to_dict() == dataclasses.asdict(published.UNET)
    state = published.by_path(run.model.unet)
    for name, array in published.unet_parameters().items():
        inflated = name.replace("middle/", "middle/spatial/").replace("resize/resnet", "resize/spatial/resnet")
        parts = inflated.split("/")
        if parts[2:3] == ["layers"]:
            inflated = "/".join([*parts[:4], "spatial", *parts[4:]])
        np.testing.assert_array_equal(state[inflated], array, err_msg=name)
    assert clip(run).shape == (1, 4, 16, 16, 3)


@pytest.mark.parametrize("padding_sees_tokens", [True, False])
def test_how_text_is_encoded_for_an_imported_unet_is_the_configs(imported, data_dir, tmp_path, padding_sees_tokens):
    config = config_over(imported, data_dir)
    config.text.update({"padding_sees_tokens": padding_sees_tokens, "length": 40})
    prepared = train_setup.prepare_image_model(config, RunDirectory(tmp_path), make_mesh(**config.mesh), train.train)
    assert prepared.config.text.padding_sees_tokens == padding_sees_tokens
    assert prepared.config.text.length == 40


def test_imported_weights_that_were_moved(imported, data_dir, trained, tmp_path, capsys):
    workdir, moved = shutil.copytree(trained, tmp_path / "run"), shutil.copytree(imported, tmp_path / "moved")
    file = workdir / "config.json"
    facts = json.loads(file.read_text())
    for name, path in (("unet", "gone/unet"), ("text_encoder", "gone/t5")):
        facts["references"][name]["path"] = str(tmp_path / path)
    file.write_text(json.dumps(facts))
    with pytest.raises(
        CheckpointError, match=r"imported U-Net .* is not at .*gone/unet: .*--init_from=DIR in sampling"
    ):
        load_run(workdir)
    with pytest.raises(CheckpointError, match=r"imported text encoder .* is not at .*gone/t5: .*--text_checkpoint=DIR"):
        load_run(workdir, init_from=str(moved / "unet"))
    found = sample.load(str(workdir), init_from=str(moved / "unet"), text_checkpoint=str(moved / "t5"))
    assert tree_hash(found.parameters()) == tree_hash(load_run(trained).parameters())
    config = config_over(moved, data_dir)
    train.train(config, workdir)
    assert "nothing to do: 2 of 2 steps are done" in capsys.readouterr().out
    assert load_run(workdir).references.unet.path == str(moved / "unet")


def text_encoder_dtypes(text_encoder):
    return {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(text_encoder))}


def test_text_encoder_in_the_compute_dtype(imported, data_dir, trained, tmp_path):
    """Read in bfloat16 on every way to it, computing in float32, and still known by the hash of its float32 values."""
    parameters = published.nested(published.t5_parameters())
    sha256 = tree_hash(parameters)
    config = config_over(imported, data_dir)
    config.compute_dtype = "bfloat16"
    run_dir = RunDirectory(tmp_path / "new")
    for _ in ("started", "continued"):
        prepared = train_setup.prepare_image_model(config, run_dir, make_mesh(**config.mesh), train.train)
        run_dir.write_config(prepared.config, {}, prepared.references)
        assert text_encoder_dtypes(prepared.text_encoder) == {"bfloat16"}
        assert prepared.text_encoder.dtype == np.float32
        assert prepared.references.text_encoder.sha256 == sha256

    workdir = shutil.copytree(trained, tmp_path / "run")
    facts = json.loads((workdir / "config.json").read_text())
    facts["config"]["compute_dtype"] = "bfloat16"
    (workdir / "config.json").write_text(json.dumps(facts))
    run = load_run(workdir)
    assert export_temporal(workdir, tmp_path / "temporal.safetensors")["text_encoder_sha256"] == sha256
    again = load_temporal(
        tmp_path / "temporal.safetensors", init_from=str(imported / "unet"), text_checkpoint=str(imported / "t5")
    )
    expected = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), parameters)
    for each in (run, again):
        found = nnx.to_pure_dict(nnx.state(each.model.text_encoder))
        jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), found, expected)


def test_the_hash_of_a_text_encoder_is_of_float32(tmp_path):
    stored = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), published.nested(published.t5_parameters()))
    write_t5x_checkpoint(tmp_path, 0, stored)
    encoder, reference = load_imported_text_encoder(str(tmp_path), dtype="bfloat16", on_host=True)
    assert reference.sha256 == tree_hash(jax.tree.map(lambda leaf: leaf.astype(np.float32), stored))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(nnx.state(encoder)))
    assert text_encoder_dtypes(encoder) == {"bfloat16"}


def test_other_weights_are_refused(imported, data_dir, trained, tmp_path):
    hashes = [open_imported_unet(imported / name).sha256 for name in ("other_unet", "unet")]
    with pytest.raises(CheckpointError, match=rf"another U-Net .* is {hashes[0]}, wanted is {hashes[1]}"):
        load_run(trained, init_from=str(imported / "other_unet"))
    parameters = published.t5_parameters()
    parameters["encoder/encoder_norm/scale"] += 1e-7
    write_t5x_checkpoint(tmp_path / "t5", 0, published.nested(parameters))
    with pytest.raises(CheckpointError, match=r"another text encoder .* is [0-9a-f]{64}, wanted is [0-9a-f]{64}"):
        load_run(trained, text_checkpoint=str(tmp_path / "t5"))
    before = (trained / "config.json").read_bytes()
    config = config_over(imported, data_dir)
    config.init_from = str(imported / "other_unet")
    with pytest.raises(CheckpointError, match="another U-Net"):
        train.train(config, trained)
    config = config_over(imported, data_dir)
    config.text.length = 65
    config.text.padding_sees_tokens = False
    changed = r"text\.length: 64 when it was started, 65 now\n +text\.padding_sees_tokens: True when .*, False now"
    with pytest.raises(ValueError, match=changed):
        train.train(config, trained)
    assert (trained / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"diffusion.prediction": "x0", "diffusion.schedule": "cosine"},
            r"(?s)diffusion\.schedule=discrete_cosine \(it is cosine\).*diffusion\.prediction=epsilon \(it is x0\)",
        ),
        ({"diffusion.low_res_factor": 2}, r"diffusion\.low_res_factor=0 \(it is 2\)"),
        ({"text.checkpoint": ""}, r"comes without a text encoder: give text\.checkpoint"),
        ({"text.checkpoint": "narrow"}, r"text\.checkpoint=.*narrow is 32 wide, the U-Net expects text_dim=16"),
        ({"text.checkpoint": "downloaded/checkpoint_7"}, r"text\.tokenizer='' and there is no .*tokenizer\.model"),
        ({"text.length": 3}, "the limit is 3"),
        ({"temporal.strides": (2, 2)}, "one positive number for each of the 1 spatial resizes"),
    ],
)
def test_configs_that_do_not_fit_the_import(imported, data_dir, tmp_path, fields, message):
    config = config_over(imported, data_dir)
    for field, value in fields.items():
        if field == "text.checkpoint" and value:
            value = str(imported / value)
        config.update_from_flattened_dict({field: value})
    if config.text.checkpoint.endswith("narrow"):
        narrow = published.t5_parameters(dataclasses.replace(published.T5, emb_dim=32))
        config.text.update({"checkpoint": str(tmp_path / "narrow"), "tokenizer": str(imported / "t5/tokenizer.model")})
        write_t5x_checkpoint(tmp_path / "narrow", 0, published.nested(narrow))
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "run")
    assert {path.name for path in tmp_path.glob("run/*")} <= {"tokenizer.model"}


# ------------------------------------------------------------------------------------ export


def run_command(module, *arguments):
    command = [sys.executable, "-m", f"lumiere_jax.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "temporal.safetensors"
    done = run_command("export_weights", f"--checkpoint={trained}", f"--output={file}", "--license=CC0-1.0")
    assert done.returncode == 0, done.stderr
    return file, done.stdout


def test_only_temporal_layers_are_exported(imported, trained, exported):
    file, printed = exported
    assert "no backbone weights inside" in printed
    metadata = safetensors.safe_open(file, framework="numpy").metadata()
    assert metadata["backbone_sha256"] == open_imported_unet(imported / "unet").sha256
    assert metadata["backbone"].startswith("DeepFloyd IF, stage I, ")
    assert (metadata["step"], metadata["license"]) == ("2", "CC0-1.0")
    assert "jax" in json.loads(metadata["versions"])
    for value in metadata.values():
        assert str(imported) not in value
        assert str(trained.parent) not in value
    arrays = safetensors.numpy.load_file(file)
    state = published.by_path(load_run(trained).model.unet)
    assert len(arrays) == len(state) - len(published.unet_parameters())
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name, strict=True)


def test_exported_layers_sample_as_the_run_does(imported, trained, exported):
    file, _ = exported
    again = load_temporal(file, init_from=str(imported / "unet"), text_checkpoint=str(imported / "t5"))
    run = load_run(trained)
    assert tree_hash(again.parameters()) == tree_hash(run.parameters())
    np.testing.assert_array_equal(clip(again), clip(run))


def test_sampling_command_with_exported_layers(imported, exported, tmp_path):
    done = run_command(
        "sample",
        *(f"--checkpoint={exported[0]}", f"--init_from={imported / 'unet'}", f"--text_checkpoint={imported / 't5'}"),
        *(f"--prompt={PROMPT}", "--steps=1", "--guidance=1", f"--output={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def test_exported_layers_belong_to_one_image_model(imported, trained, exported, tmp_path):
    file, _ = exported
    text = {"text_checkpoint": str(imported / "t5")}
    hashes = [open_imported_unet(imported / name).sha256 for name in ("other_unet", "unet")]
    with pytest.raises(CheckpointError, match=rf"another U-Net .* is {hashes[0]}, wanted is {hashes[1]}"):
        load_temporal(file, init_from=str(imported / "other_unet"), **text)
    (tmp_path / "other.model").write_bytes(train_tokenizer(["a b c"], 300).model_bytes)
    with pytest.raises(CheckpointError, match=r"the tokenizer .* is [0-9a-f]{64}, wanted is [0-9a-f]{64}"):
        load_temporal(file, init_from=str(imported / "unet"), tokenizer=str(tmp_path / "other.model"), **text)
    changed = published.t5_parameters()
    changed["encoder/encoder_norm/scale"] += 1e-7
    write_t5x_checkpoint(tmp_path / "t5", 0, published.nested(changed))
    shutil.copy(imported / "t5" / "tokenizer.model", tmp_path / "t5")
    with pytest.raises(CheckpointError, match=r"the text encoder .* is [0-9a-f]{64}, wanted is [0-9a-f]{64}"):
        load_temporal(file, init_from=str(imported / "unet"), text_checkpoint=str(tmp_path / "t5"))
    with pytest.raises(ValueError, match="say with --init_from=DIR which image model"):
        sample.load(str(file))
    with pytest.raises(ValueError, match="was not written by export_weights"):
        load_temporal(imported / "unet" / "unet.safetensors", init_from=str(imported / "unet"), **text)
    with pytest.raises(FileExistsError, match="exists: remove it"):
        export_temporal(trained, file)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        export_temporal(trained, tmp_path / "x.bin")


# ------------------------------------------------------------------------------------ a T5 under an image model


def test_an_image_model_over_a_pretrained_text_encoder(imported, data_dir, tmp_path):
    """It refers to the encoder, and so does what is inflated from it; its own U-Net is copied."""
    image = text_to_image.get_config("test")
    image.dataset.data_dir = str(data_dir)
    image.unet.update({"text_dim": 16, "cross_attention_dim": 32})
    image.text.update({"checkpoint": str(imported / "t5"), "length": 64})
    image.training.update({"steps": 1, "preview_every": 0})
    train.train(image, tmp_path / "image")
    assert not (tmp_path / "image" / "text_encoder").exists()
    run = load_run(tmp_path / "image")
    assert run.references.text_encoder.path == str(imported / "t5")
    assert run.references.unet is None
    trains_its_own = image.copy_and_resolve_references()
    trains_its_own.text.update({"checkpoint": "", "tokenizer": "x"})
    with pytest.raises(ValueError, match=r"text\.tokenizer='x' belongs to an encoder"):
        train.train(trains_its_own, tmp_path / "new")

    config = stunet.get_config("test")
    config.init_from = str(tmp_path / "image")
    inflated = RunDirectory(tmp_path / "inflated")
    prepared = train_setup.prepare_image_model(config, inflated, make_mesh(**config.mesh), train.train)
    inflated.write_config(prepared.config, {}, prepared.references)
    assert prepared.references == run.references
    assert prepared.config.text.length == 64
    assert {path.name for path in inflated.path.iterdir()} == {"backbone", "config.json", "tokenizer.model"}
    again = train_setup.prepare_image_model(config, inflated, make_mesh(**config.mesh), train.train)
    for each in (prepared, again):
        assert tree_hash(nnx.to_pure_dict(nnx.state(each.image_unet))) == tree_hash(
            nnx.to_pure_dict(nnx.state(run.model.unet))
        )
    assert again.config == prepared.config
    config.text.checkpoint = str(imported / "other")
    with pytest.raises(CheckpointError, match=r"imported text encoder .* is not at .*imported0/other"):
        train_setup.prepare_image_model(config, inflated, make_mesh(**config.mesh), train.train)


def test_what_an_unfinished_start_left_is_not_taken_for_the_runs_own(imported, data_dir, tmp_path):
    run_dir = RunDirectory(tmp_path)
    run_dir.write_text_encoder(0, published.nested(published.t5_parameters()))
    save_tree(run_dir.backbone, {"a": np.ones(2, np.float32)})
    config = config_over(imported, data_dir)
    train_setup.prepare_image_model(config, run_dir, make_mesh(**config.mesh), train.train)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.model"}
