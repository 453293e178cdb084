"""What a run directory keeps of its config."""

import pytest

from configs import stunet, text_to_image
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.train_setup import check_same_run


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
    check_same_run(read, config)
    config.dataset.flip_probability = 0.5
    with pytest.raises(ValueError, match=r"dataset\.flip_probability: 0.0 when it was started, 0.5 now"):
        check_same_run(read, config)


@pytest.mark.parametrize("module", [text_to_image, stunet])
def test_runs_go_on_under_another_remat_and_older_ones_kept_everything(tmp_path, module):
    config, older = module.get_config("test"), module.get_config("test")
    del older.remat
    RunDirectory(tmp_path).write_config(older, {})
    read = RunDirectory(tmp_path).read_config()
    assert read.remat.to_dict() == {"block": "none", "spatial": "none", "temporal": "none"}
    config.remat.block = "full"
    check_same_run(read, config, {}, {})
