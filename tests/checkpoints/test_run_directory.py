"""What a run directory keeps of its config."""

import pytest

from configs import stunet, text_to_image
from lumiere_jax.checkpoints.run_directory import RunDirectory


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
