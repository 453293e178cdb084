"""From a file of either format to an encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from lumiere_jax.text.load_t5 import encoder_from_parameters, load_t5_encoder
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.t5x_checkpoint import write_t5x_checkpoint

CONFIG = T5Config(vocab_size=20, emb_dim=8, num_heads=2, num_layers=1, head_dim=4, mlp_dim=12)


@pytest.fixture(scope="module")
def parameters() -> dict:
    draw = jax.jit(lambda: nnx.state(T5Encoder(CONFIG, rngs=nnx.Rngs(3))))
    return nnx.to_pure_dict(draw())


@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [(jnp.float32, None), (jnp.bfloat16, None), (jnp.float32, jnp.bfloat16)]
)
def test_a_written_encoder_comes_back(tmp_path, parameters, dtype, param_dtype):
    """What a run directory does: the trained encoder is written, and loaded from the parent directory."""
    write_t5x_checkpoint(tmp_path, 4, parameters)
    encoder = load_t5_encoder(tmp_path, dtype, param_dtype=param_dtype)
    assert encoder.config == CONFIG
    assert encoder.dtype == encoder.encoder.encoder_norm.dtype == dtype
    param_dtype = param_dtype or dtype
    found = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(encoder)), sep="/")
    for name, array in traverse_util.flatten_dict(parameters, sep="/").items():
        assert isinstance(found[name], jax.Array)
        assert found[name].dtype == param_dtype
        np.testing.assert_array_equal(found[name], array.astype(param_dtype), err_msg=name)


def test_parameters_are_not_copied(parameters):
    encoder = encoder_from_parameters(parameters)
    assert encoder.token_embedder.embedding[...] is parameters["token_embedder"]["embedding"]


def test_on_host(tmp_path, parameters):
    write_t5x_checkpoint(tmp_path, 4, parameters)
    encoder = load_t5_encoder(tmp_path, on_host=True)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(nnx.state(encoder)))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(encoder)), parameters)
    with pytest.raises(ValueError, match="exclude each other"):
        load_t5_encoder(tmp_path, on_host=True, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def test_both_formats_give_the_same_encoder(fixtures):
    directory = fixtures / "t5x_checkpoint"
    ours, theirs = (load_t5_encoder(directory / name) for name in ("ckpt", "hf"))
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(ours), nnx.state(theirs))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no T5X checkpoint at"):
        load_t5_encoder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"t5\.safetensors does not exist"):
        load_t5_encoder(tmp_path / "t5.safetensors")
