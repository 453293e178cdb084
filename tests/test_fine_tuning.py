"""Fine-tuning: `init_from` names an inflated run or a published model, whose temporal layers are trained further."""

import numpy as np
import pytest
from random_runs import random_run, write_run
from small_runs import small_config, state_of

from configs import stunet
from lumiere_jax.checkpoints.checkpointing import named_leaves
from lumiere_jax.checkpoints.published_model import publish
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.train import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A published model of another number of frames, temporal layers and diffusion than the config's."""
    root, run = tmp_path_factory.mktemp("base"), random_run()
    run.config.clip.frames, run.config.diffusion.log_snr_shift = 8, 0.5
    run.config.text.length = 128  # its tokenizer has seen too little for few tokens
    write_run(run, root / "run")
    publish(root / "run", root / "published", dtype="float32")
    return root / "published"


def config_of(data_dir, base, **training):
    config = small_config(stunet, data_dir, preview_every=0, **training)
    config.init_from = str(base)
    return config


def test_it_starts_from_the_bases_layers_and_goes_on(base, data_dir, tmp_path):
    """With a learning rate of zero they stay what they were."""
    assert stunet.get_config("test").temporal != load_run(base).config.temporal
    train(config_of(data_dir, base, steps=1, learning_rate=0.0), tmp_path)
    before, run = load_run(base), load_run(tmp_path)
    after = named_leaves(run.parameters())
    for name, leaf in named_leaves(before.parameters()).items():
        np.testing.assert_allclose(after[name], leaf, rtol=1e-6, err_msg=name)  # the average rounds
    assert run.config.clip.frames == stunet.get_config("test").clip.frames
    assert run.config.temporal == before.config.temporal
    assert run.config.diffusion == before.config.diffusion
    train(config_of(data_dir, tmp_path / "moved away", steps=2, learning_rate=0.0), tmp_path)
    assert int(state_of(tmp_path)["step"]) == 2


def test_it_does_not_start_from_what_has_other_inputs(data_dir, tmp_path):
    for name, message in (("conditional", "conditioning: "), ("super_resolution", ".*low_res_factor=2, the config 0")):
        run = random_run(**{name: True})
        run.config.training.steps = run.step
        write_run(run, tmp_path / name)
        with pytest.raises(ValueError, match=f"init_from=.*{name} has {message}"):
            train(config_of(data_dir, tmp_path / name), tmp_path / "run")
