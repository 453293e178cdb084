"""What a run directory keeps of its config and its text encoder."""

import jax
import pytest
from flax import nnx

from configs import stunet, text_to_image
from lumiere_jax.checkpoints.checkpointing import tree_hash
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.models.rematerialization import Rematerialization
from lumiere_jax.text.load_t5 import load_t5_encoder
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.train_config import check_same_run


@pytest.mark.parametrize("module", [text_to_image, stunet])
def test_a_config_comes_back(tmp_path, module):
    config = module.get_config("test")
    config.text.padding_sees_tokens = True
    RunDirectory(tmp_path).write_config(config, {})
    assert RunDirectory(tmp_path).read_config().to_dict() == config.to_dict()


@pytest.mark.parametrize("module", [text_to_image, stunet])
def test_older_runs_encoded_text_as_t5x(tmp_path, module):
    config = module.get_config("test")
    del config.text.padding_sees_tokens
    RunDirectory(tmp_path).write_config(config, {})
    read = RunDirectory(tmp_path).read_config()
    assert read.text.padding_sees_tokens is False
    assert read.text.length == config.text.length


@pytest.mark.parametrize("module", [text_to_image, stunet])
def test_older_runs_go_on_without_flips_and_single_frames(tmp_path, module):
    config, older = module.get_config("test"), module.get_config("test")
    del older.dataset.flip_probability, older.training.image_share, older.training.image_batch_size
    RunDirectory(tmp_path).write_config(older, {})
    read = RunDirectory(tmp_path).read_config()
    check_same_run(read, config, {}, {})
    config.dataset.flip_probability = 0.5
    with pytest.raises(ValueError, match=r"dataset\.flip_probability: 0.0 when it was started, 0.5 now"):
        check_same_run(read, config, {}, {})


@pytest.mark.parametrize("module", [text_to_image, stunet])
def test_older_runs_go_on_without_crops_and_degraded_inputs(tmp_path, module):
    config, older = module.get_config("test"), module.get_config("test")
    del older.clip.crop_from, older.diffusion.max_blur, older.diffusion.min_jpeg_quality, older.diffusion.align_corners
    RunDirectory(tmp_path).write_config(older, {})
    check_same_run(RunDirectory(tmp_path).read_config(), config, {}, {})


@pytest.mark.parametrize("module", [text_to_image, stunet])
def test_runs_go_on_under_another_remat_and_older_ones_kept_everything(tmp_path, module):
    config, older = module.get_config("test"), module.get_config("test")
    del older.remat
    RunDirectory(tmp_path).write_config(older, {})
    read = RunDirectory(tmp_path).read_config()
    assert read.remat.to_dict() == vars(Rematerialization())
    config.remat.block = "full"
    check_same_run(read, config, {}, {})


def test_text_encoder_after_a_kill_and_after_a_loss(tmp_path):
    """What was left half-written is passed over and removed; so are encoders of steps that no training state has."""
    directory = RunDirectory(tmp_path)
    sizes = T5Config(vocab_size=8, emb_dim=4, num_heads=1, num_layers=1, head_dim=4, mlp_dim=4)
    encoder = T5Encoder(sizes, rngs=nnx.Rngs(0))
    parameters = nnx.to_pure_dict(nnx.state(encoder))
    for step in (2, 4, 6):
        directory.write_text_encoder(step, parameters, keep=3)
    (tmp_path / "text_encoder" / "checkpoint_8.tmp-01").mkdir()
    assert directory.text_encoder(4).name == "checkpoint_4"
    doubled = jax.tree.map(lambda leaf: 2 * leaf, parameters)
    directory.write_text_encoder(4, doubled, keep=3)  # the training state of step 6 was lost
    assert {path.name for path in (tmp_path / "text_encoder").iterdir()} == {"checkpoint_2", "checkpoint_4"}
    loaded = load_t5_encoder(directory.text_encoder(4))
    assert tree_hash(nnx.to_pure_dict(nnx.state(loaded))) == tree_hash(doubled)
