"""T5X's own encoder behind our function; where t5x is not installed, what it says then."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

from lumiere_jax.text.load_t5 import encoder_from_parameters
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.t5x_adapter import T5XEncoder

SIZES = {"vocab_size": 30, "emb_dim": 16, "num_heads": 2, "num_layers": 2, "head_dim": 6, "mlp_dim": 20}
TOKENS = np.random.default_rng(0).integers(2, 30, (2, 20)).astype(np.int32)
TOKENS[1, 5:] = 0


def parameters(**sizes) -> dict:
    """Random, with norm scales off 1."""
    draw = jax.jit(lambda: nnx.state(T5Encoder(T5Config(**SIZES | sizes), rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype("f"), nnx.to_pure_dict(draw()))


def test_message_where_t5x_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "t5x", None)
    monkeypatch.delitem(sys.modules, "t5x.examples.t5", raising=False)
    monkeypatch.delitem(sys.modules, "t5x.examples", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'git\+https://github\.com/google-research/t5x'"):
        T5XEncoder({})


@pytest.mark.parametrize("padding_sees_tokens", [False, True])
def test_same_function_as_ours(padding_sees_tokens):
    network = pytest.importorskip("t5x.examples.t5.network")
    tree = parameters()
    ours, theirs = encoder_from_parameters(tree), T5XEncoder(tree)
    assert theirs.config == ours.config

    @jax.jit
    def encode(encoder, tokens, mask=None):
        with jax.default_matmul_precision("highest"):
            return encoder(tokens, mask, padding_sees_tokens=padding_sees_tokens)

    np.testing.assert_allclose(encode(theirs, TOKENS), encode(ours, TOKENS), atol=1e-5, rtol=1e-5)
    mask = np.arange(20)[None] % 3 != np.arange(2)[:, None]
    np.testing.assert_allclose(encode(theirs, TOKENS, mask), encode(ours, TOKENS, mask), atol=1e-5, rtol=1e-5)
    if not padding_sees_tokens:
        expected = theirs.transformer.apply(
            {"params": tree}, TOKENS, enable_dropout=False, method=network.Transformer.encode
        )
        np.testing.assert_allclose(encode(theirs, TOKENS), expected, atol=1e-5, rtol=1e-5)


def test_models_that_t5x_does_not_have():
    pytest.importorskip("t5x.examples.t5.network")
    with pytest.raises(ValueError, match="one position bias of 32 buckets"):
        T5XEncoder(parameters(shared_position_bias=False))
